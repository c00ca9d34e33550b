"""The forward in Gluon: its schedule, modeled on a CPU, and the calls that it leaves to the other kernel."""

from __future__ import annotations

import pytest
import torch
from sink_kernels import attention
from sink_kernels.tiles import SPECIALIZED, Tile

from benchmarks.kernels.checks import ATTENTION_TOLERANCES, relative_error
from tests.kernels.gluon_on_a_cpu import Machine, threads_switch_often

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the kernel itself, in make gpu-report")

SMALL, WIDE, THREE = (
    Tile(64, 64, 4, 2, "specialized"),
    Tile(64, 128, 4, 2, "specialized"),
    Tile(128, 32, 8, 3, "specialized"),
)
CASES = [
    ("softmax", SMALL, {"tokens": 300, "heads": 2}),
    ("softmax", SMALL, {"tokens": 1}),
    ("softmax", WIDE, {"tokens": 64, "gate": "head"}),
    ("off_by_one", SMALL, {"tokens": 129, "gate": "element", "batch": 2}),
    ("learnable_sink", WIDE, {"tokens": 300, "heads": 4, "kv_heads": 2}),
    ("learnable_sink", THREE, {"tokens": 257, "gate": "element", "kv_heads": 1}),
    ("learnable_sink", SPECIALIZED["forward", 128][0], {"tokens": 400, "head_dim": 128, "gate": "head"}),
]


@pytest.fixture
def machine(monkeypatch, triton_device):
    from sink_kernels import gluon_forward

    with threads_switch_often():
        yield Machine(monkeypatch, gluon_forward)


@pytest.fixture
def use_tile(monkeypatch, triton_device):
    from sink_kernels import triton_attention

    return lambda tile: monkeypatch.setattr(triton_attention, "tile_for", lambda *_: tile)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("normalizer", "tile", "case"), CASES, ids=str)
def test_equals_the_reference_in_float64(dtype, normalizer, tile, case, machine, use_tile, make_call):
    use_tile(tile)
    call = make_call(normalizer, dtype=dtype, **{"head_dim": 64, "heads": 2, **case})
    with torch.no_grad():
        out, stats = call.run(attention, backend="triton", stats=("lse",))
        expected, expected_stats = call.cast(torch.float64).run(attention, backend="reference", stats=("lse",))
    assert machine.launches == 1
    assert relative_error(out, expected) < ATTENTION_TOLERANCES[dtype][0]
    torch.testing.assert_close(stats["lse"], expected_stats["lse"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "stats", "change"),
    [
        ({"window": 20}, ("lse",), lambda x: x),
        ({"softcap": 2.0}, ("lse",), lambda x: x),
        ({"normalizer": "sigmoid"}, ("lse",), lambda x: x),
        ({}, ("first_key_mass",), lambda x: x),
        ({}, ("entropy",), lambda x: x),
        ({"head_dim": 32}, ("lse",), lambda x: x),
        ({"dtype": torch.float32}, ("lse",), lambda x: x),
        ({}, ("lse",), lambda x: torch.cat([x, x[..., :1]], -1)[..., :64]),  # rows of 130 bytes
        (
            {},
            ("lse",),
            lambda x: torch.cat([x[:, :, :1], x], 2).flatten(2)[..., 1 : 1 + 40 * 64].unflatten(2, (40, 64)),
        ),
    ],
    ids=("window", "softcap", "sigmoid", "first key", "entropy", "narrow", "float32", "steps of 130 bytes", "offset"),
)
def test_what_it_does_not_support_runs_the_other_kernel(case, stats, change, machine, use_tile, make_call):
    use_tile(SMALL)
    call = make_call(**{"tokens": 40, "head_dim": 64, "heads": 1, "dtype": torch.bfloat16, **case})
    call = call._replace(q=change(call.q))
    with torch.no_grad():
        out, taken = call.run(attention, backend="triton", stats=stats)
        expected, expected_stats = call.cast(torch.float64).run(attention, backend="reference", stats=stats)
    assert machine.launches == 0
    assert relative_error(out, expected) < 4e-3
    torch.testing.assert_close(taken[stats[0]], expected_stats[stats[0]], rtol=1e-3, atol=1e-3)


def test_projections_that_hold_their_heads_side_by_side_need_no_copy(machine, use_tile, make_call):
    use_tile(SMALL)
    call = make_call(tokens=80, head_dim=64, heads=2, dtype=torch.bfloat16)
    side_by_side = call._replace(q=call.q.transpose(1, 2).contiguous().transpose(1, 2))
    with torch.no_grad():
        out = side_by_side.run(attention, backend="triton")
    assert machine.launches == 1
    assert relative_error(out, call.cast(torch.float64).run(attention, backend="reference").detach()) < 4e-3
