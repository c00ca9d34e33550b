"""Rank correlations of runs, token by token: on values known by hand, and end to end on short runs."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sinks.cli import main
from sinks.observe import AttentionRecord, NormRecord, Reader, sites_of
from sinks.runs import load_run
from sinks.stats import functional
from sinks.transfer.compare import BASELINE, ITSELF, comparisons, head_correlations, rank_correlation
from sinks.transfer.token_values import TokenValues, token_values

FIT = [
    "--data=Backcopy", "--data.context_length=12", "--data.batch_size=2", "--data.validation_rows=6",
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_steps=2", "--progress.enabled=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a baseline and a gate, two seeds each."""
    folder = tmp_path_factory.mktemp("transfer")
    for variant, model in (("baseline", "Baseline"), ("gate", "Gated")):
        for seed in (0, 1):
            where = ["--run.dir", str(folder / variant / f"seed{seed}"), f"--seed_everything={seed}"]
            assert main(["fit", f"--model={model}", *FIT, *where]) == 0
    return folder


def ranks_with_ties(x: list[float]) -> list[float]:
    """Rank of each value, the mean of the ranks that equal values share."""
    return [sum(y < value for y in x) + (x.count(value) + 1) / 2 for value in x]


def test_ties_share_their_ranks() -> None:
    x, y = [3.0, 1.0, 1.0, 2.0, 5.0, 5.0, 0.5], [1.0, 1.0, 2.0, 7.0, 7.0, 7.0, 0.0]
    pair = torch.tensor([ranks_with_ties(x), ranks_with_ties(y)])
    expected = float(torch.corrcoef(pair)[0, 1])
    assert rank_correlation(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("constant", [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0 + 1e-7], [0.0, 0.0, 0.0], [1.0, torch.nan, 2.0]])
def test_no_correlation_with_a_constant_or_what_is_not_finite(constant: list[float]) -> None:
    series = torch.tensor([1.0, 2.0, 3.0])
    assert rank_correlation(series, torch.tensor(constant)) is None
    assert rank_correlation(torch.tensor(constant), series) is None


def values(weight: Tensor, mass: list[float], site: str = "blocks.0.attention") -> TokenValues:
    """Of one layer with weights [H, N, Q], all queries alike."""
    return TokenValues(
        rows=torch.zeros(1, 2),
        queries={"all": torch.ones(weight.shape[1:], dtype=torch.bool)},
        weight={site: weight},
        first_token_mass={site: torch.tensor(mass)},
        scale={"head.norm": weight[0]},
        score={"blocks.0.attention.norm": 9.0, "head.norm": 2.0},
    )


RISING = torch.arange(1.0, 7.0).view(1, 2, 3)


def test_the_same_head_the_best_head_and_the_mean_of_the_layer() -> None:
    x = values(torch.cat([RISING, RISING]), [0.1, 0.9])
    y = values(torch.cat([2 * RISING, -RISING]), [0.1, 0.1])
    found = head_correlations(x, y, "blocks.0.attention", 1, "all")
    assert found is not None
    assert found["same_head"] == pytest.approx(-1.0)
    assert (found["best_head"], found["best"]) == (0, pytest.approx(1.0))
    assert found["layer_mean"] == pytest.approx(1.0)


def test_with_another_number_of_heads_only_the_layers_are_compared() -> None:
    x, y = values(torch.cat([RISING, RISING]), [0.1, 0.9]), values(RISING, [0.5])
    assert head_correlations(x, y, "blocks.0.attention", 1, "all") == {"layer_mean": pytest.approx(1.0)}
    assert head_correlations(x, values(RISING, [0.5], "blocks.1.attention"), "blocks.0.attention", 1, "all") is None


def test_a_head_that_is_constant_is_absent() -> None:
    x, y = values(RISING, [0.9]), values(torch.ones(1, 2, 3), [0.9])
    found = head_correlations(x, y, "blocks.0.attention", 0, "all")
    assert found == {"layer_mean": None, "same_head": None, "best_head": None, "best": None}


def test_pairs_and_their_ceilings() -> None:
    runs = {
        "baseline": {
            0: values(torch.cat([RISING, -RISING]), [0.9, 0.1]),
            1: values(torch.cat([RISING, RISING]), [0, 1]),
        },
        "gate": {1: values(torch.cat([-RISING, RISING]), [0.0, 0.0]), 2: values(torch.cat([RISING, RISING]), [0, 0])},
    }
    found = [e for e in comparisons(runs, "baseline") if e["quantity"] == "weight"]
    pairs = [(e["variant"], e["against"], e["seed"], e["other_seed"], e["head"], e["same_head"]) for e in found]
    # The gate's seed 2 has no baseline, whose strongest head says which head is compared.
    assert pairs == [
        ("baseline", ITSELF, 0, 1, 0, pytest.approx(1.0)),
        ("baseline", ITSELF, 1, 0, 1, pytest.approx(-1.0)),
        ("gate", BASELINE, 1, 1, 1, pytest.approx(1.0)),
        ("gate", ITSELF, 1, 2, 1, pytest.approx(1.0)),
    ]
    scales = [e for e in comparisons(runs, "baseline") if e["quantity"] == "scale"]
    assert {e["site"] for e in scales} == {"head.norm"}  # the first norm reads the bare embedding
    assert [e["same_site"] for e in scales if e["variant"] == "gate"] == [pytest.approx(-1.0)] * 2


def test_values_are_those_of_the_statistics_at_each_query(folder: Path) -> None:
    run = load_run(folder / "gate/seed0")
    found = token_values(run, rows=4, first_query=3)
    inputs = found.rows[:, :-1]
    assert inputs.shape == (4, 12)
    routes: dict[str, Tensor] = {}
    norms: dict[str, NormRecord] = {}

    def listen(site: str, record: object) -> None:
        if isinstance(record, AttentionRecord):
            routes[site] = functional.routes(record.route_inputs())["effective_weight"]
        elif isinstance(record, NormRecord):
            norms[site] = record

    reader = Reader(sites_of(run.model), listener=listen)
    with reader.reading(), torch.no_grad():
        run.model(inputs)
    reader.summarize()
    assert found.weight.keys() == routes.keys()
    for site, weight in routes.items():
        torch.testing.assert_close(found.weight[site], weight[..., 3:].transpose(0, 1))
    assert found.scale.keys() == norms.keys()
    for site, record in norms.items():
        assert record.output is not None
        assert record.gain is not None
        scale = functional.effective_scale(record.input, record.output, record.gain, reader.dimensions[site])
        torch.testing.assert_close(found.scale[site], scale[:, 3:])


def test_queries_after_a_trigger_are_those_whose_token_is_one(folder: Path) -> None:
    run = load_run(folder / "baseline/seed0")
    found = token_values(run, rows=6, first_query=2)
    text = "\n (),.:=_abcdefghijklmnopqrstuvwxyz"  # ids 1, 2, ...
    expected = [[int(i) > 0 and text[int(i) - 1] in "te." for i in row[2:-1]] for row in found.rows]
    assert found.queries["after a trigger"].tolist() == expected
    assert torch.equal(found.queries["elsewhere"], ~found.queries["after a trigger"])
    assert any(map(any, expected))


def test_the_command_writes_what_the_report_shows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transfer", str(folder), "--rows=6"]) == 0
    assert "Effective attention weight, all queries (60)" in capsys.readouterr().out
    content = json.loads((folder / "transfer.json").read_text())
    assert content["provenance"]["versions"]["torch"]
    assert {(e["variant"], e["against"]) for e in content["comparisons"]} == {
        ("baseline", ITSELF), ("gate", BASELINE), ("gate", ITSELF),
    }  # fmt: skip
    assert main(["report", str(folder)]) == 0
    for file in ("report.md", "report.html"):
        text = (folder / file).read_text()
        assert "Transfer: the same job, token by token?" in text
        assert "Effective scale of the norm, queries after a trigger" in text

    (folder / "transfer.json").write_text("{")
    assert main(["report", str(folder)]) == 2
    assert "transfer.json is damaged: delete it" in capsys.readouterr().err
    (folder / "transfer.json").unlink()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rows=0"], "rows is 0"),
        (["--first_query=12"], "first_query is 12, but .* give 1 to 11"),
        (["--first_query=0"], "first_query is 0"),
    ],
)
def test_what_cannot_be_compared_is_named_in_a_line(
    arguments: list[str], reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transfer", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(reason, error)
    assert not (folder / "transfer.json").exists()


def test_without_a_baseline_or_with_other_rows_nothing_is_compared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "gate", tmp_path / "gate")
    assert main(["transfer", str(tmp_path)]) == 2
    assert "has no finished baseline" in capsys.readouterr().err
    other = [option.replace("context_length=12", "context_length=10") for option in FIT]
    assert main(["fit", "--model=Baseline", *other, "--run.dir", str(tmp_path / "baseline/seed0")]) == 0
    capsys.readouterr()
    assert main(["transfer", str(tmp_path)]) == 2
    assert "have other validation rows" in capsys.readouterr().err


def test_a_norm_without_a_scale_is_absent() -> None:
    assert replace(values(RISING, [0.5]), scale={}).strongest_norm is None
