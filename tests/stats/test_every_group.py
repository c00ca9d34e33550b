"""What holds for every group of statistics: additivity, exact ranks, tracing, NaN, one token."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sinks.stats.accumulators import Accumulators, add, combination, total_over_ranks
from tests.stats.cases import CASES, Case

every_case = pytest.mark.parametrize("name", CASES)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(
            found[name], x, rtol=rtol, atol=1e-9, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def total(case: Case, inputs: tuple[Tensor, ...], cuts: list[slice]) -> Accumulators:
    accumulators: Accumulators | None = None
    for cut in cuts:
        accumulators = add(accumulators, case.accumulators(*case.part(inputs, cut)))
    assert accumulators is not None
    return accumulators


@every_case
@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_uneven_batches_add_up(name: str, length: int) -> None:
    case = CASES[name]
    inputs = case.inputs(batch=6, length=length)
    parts = total(case, inputs, [slice(0, 1), slice(1, 5), slice(5, 6)])
    whole = case.accumulators(*inputs)
    assert_same(parts, whole)
    assert_same(case.statistics(parts), case.statistics(whole))


@every_case
def test_batches_of_different_length_add_up(name: str) -> None:
    case = CASES[name]
    long, short = case.accumulators(*case.inputs(2, 9)), case.accumulators(*case.inputs(3, 2))
    assert {n: m.shape for n, m in long.items()} == {n: m.shape for n, m in short.items()}
    assert all(torch.isfinite(x).all() for x in case.statistics(add(long, short)).values())


@every_case
def test_sums_are_float64_and_statistics_float32(name: str) -> None:
    case = CASES[name]
    accumulators = case.accumulators(*case.inputs(2, 5))
    assert {m.dtype for n, m in accumulators.items() if combination(n) == "sum"} == {torch.float64}
    statistics = case.statistics(accumulators)
    assert {x.dtype for x in statistics.values()} <= {torch.float32, torch.int64}
    assert not any(x.requires_grad for x in statistics.values())


@every_case
def test_half_precision_is_computed_in_float32(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs(2, 5)
    half = tuple(x.bfloat16() if x.is_floating_point() else x for x in inputs)
    rounded = tuple(x.float() if x.is_floating_point() else x for x in half)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.accumulators(*half)
    assert_same(found, case.accumulators(*rounded))


@every_case
def test_traces_without_a_break(name: str) -> None:
    case = CASES[name]
    torch._dynamo.reset()
    statistics = torch.compile(lambda *x: case.statistics(case.accumulators(*x)), fullgraph=True, backend="aot_eager")
    for batch, length in ((2, 6), (3, 9), (4, 8)):  # the second shape is traced as a dynamic one, and serves the third
        inputs = case.inputs(batch, length)
        assert_same(statistics(*inputs), case.statistics(case.accumulators(*inputs)))


# Of all but `lost_other`, which is what the others leave.
ROUTES = {
    "effective_weight", "effective_weight_cv", "closed", "missing", "lost_first", "lost_own", "lost_learned", "excess",
    "first_token_weight", "own_token_weight", "gate_gain",
}  # fmt: skip
# Statistics unaffected by one non-finite value at sample 0, head 1, token 3 (channel 2); all others must not be finite.
UNTOUCHED = {
    ("attention", 0): {"learned_sink_mass"},
    ("attention", 1): {"first_token_mass", "first_token_mass_with_first_row", "sink_ratio_0.3", "sink_ratio_0.8"},
    ("attention_row", 0): {"logit_mean", "logit_max"},
    ("attention_row", 1): {"entropy", "entropy_share"},
    ("contribution", 0): {"projected_norm_ratio", "undefined_rows"},
    ("contribution", 1): {"contribution_share", "mass_share", "contribution_over_mass", "undefined_rows"},
    ("contribution", 2): {"mass_share", "projected_norm_ratio", "undefined_rows"},
    ("neighbors", 0): {"previous_token_mass"},
    ("neighbors", 1): {"own_token_mass"},
    ("routes", 0): ROUTES - {"effective_weight", "effective_weight_cv", "closed"},
    ("routes", 1): ROUTES - {"excess"},
    ("routes", 2): ROUTES - {"missing"},
    ("routes", 3): ROUTES - {"lost_first", "first_token_weight"},
    ("routes", 4): ROUTES - {"lost_own", "own_token_weight"},
    ("routes", 5): ROUTES - {"lost_own"},
    ("routes", 6): (ROUTES | {"lost_other"}) - {"effective_weight", "effective_weight_cv", "closed", "gate_gain"},
    ("routes", 7): ROUTES - {"lost_learned"},
    ("routes", 8): ROUTES - {"lost_learned"},
    ("attention_gate", 0): {"gate_first"},
    ("router", 0): {"load", "load_max", "unused"},
    ("update", 0): {"ratio_first_token", "cosine_first_token"},
    ("update", 1): {"ratio_first_token", "cosine_first_token"},
}


@every_case
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_nonfinite_value_is_counted_and_not_averaged_away(name: str, bad: float) -> None:
    case = CASES[name]
    inputs = case.inputs(3, 8)
    for which in range(len(inputs) - len(case.shared)):
        broken = [x.clone() for x in inputs]
        place = (0, 3, 2) if broken[which].shape[1] == 8 else (0, 1, 3) if broken[which].dim() == 3 else (0, 1, 3, 2)
        broken[which][place] = bad
        statistics = case.statistics(total(case, tuple(broken), [slice(0, 1), slice(1, 3)]))
        assert statistics.pop("nonfinite") == 1
        finite = {key for key, x in statistics.items() if x.is_floating_point() and torch.isfinite(x).all()}
        assert finite == UNTOUCHED.get((name, which), set())


@every_case
def test_one_token_gives_nan_or_a_number_but_no_error(name: str) -> None:
    case = CASES[name]
    statistics = case.statistics(case.accumulators(*case.inputs(2, 1)))
    more = case.statistics(case.accumulators(*case.inputs(2, 6)))
    assert {n: (x.shape, x.dtype) for n, x in statistics.items()} == {n: (x.shape, x.dtype) for n, x in more.items()}


RANK = """
import sys, torch, torch.distributed as dist
from sinks.stats.accumulators import add, total_over_ranks
from tests.stats.cases import CASES
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
cuts = [[slice(0, 2), slice(2, 3)], [slice(3, 4)]][rank]  # uneven: two batches and one
groups = {}
for name, case in CASES.items():
    inputs = case.inputs(4, 7)
    for cut in cuts:
        groups[name] = add(groups.get(name), case.accumulators(*case.part(inputs, cut)))
groups["extremes"] = {"bad_max": torch.tensor([1.0, 2.0, 3.0]), "bad_min": torch.tensor([1.0, 2.0, 3.0])}
if rank == 1:
    groups["extremes"] = {n: torch.tensor([torch.nan, 5.0, -torch.inf]) for n in groups["extremes"]}
calls = []
all_reduce = dist.all_reduce
dist.all_reduce = lambda *a, **k: (calls.append(1), all_reduce(*a, **k))[1]
totals = total_over_ranks(groups)
dist.all_reduce = all_reduce
some, all_of_them = (total_over_ranks(groups if given else {}, may_be_empty=True) for given in (rank == 1, True))
assert not some and all_of_them.keys() == totals.keys()
torch.save((totals, len(calls)), f"{store}.{rank}")
dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    store = tmp_path / "store"
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(store)]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    for rank in range(2):
        totals, collectives = torch.load(f"{store}.{rank}")
        assert collectives == 2
        for name, case in CASES.items():
            accumulators = case.accumulators(*case.inputs(4, 7))
            assert_same(totals[name], accumulators)
            assert [m.dtype for m in totals[name].values()] == [m.dtype for m in accumulators.values()]
        extremes = totals["extremes"]
        torch.testing.assert_close(extremes["bad_max"], torch.tensor([torch.nan, 5, 3]), equal_nan=True)
        torch.testing.assert_close(extremes["bad_min"], torch.tensor([torch.nan, 2, -torch.inf]), equal_nan=True)


def test_one_process_keeps_its_accumulators() -> None:
    groups = {"a": {"x": torch.ones(2)}}
    assert total_over_ranks(groups) is groups


def test_accumulators_combine_by_name() -> None:
    a = {"n": torch.tensor(1.0), "n_max": torch.tensor(1.0), "n_min": torch.tensor(1.0)}
    b = {"n": torch.tensor(2.0), "n_max": torch.tensor(2.0), "n_min": torch.tensor(2.0)}
    assert {n: float(x) for n, x in add(add(None, a), b).items()} == {"n": 3, "n_max": 2, "n_min": 1}
    broken = {n: torch.tensor(torch.nan) for n in a}
    assert all(x.isnan() for x in add(a, broken).values())
    assert all(x.isnan() for x in add(broken, a).values())
