"""No kernel reads or writes outside its tensors, which the interpreter lets pass and on which a GPU faults.

A masked element counts as not accessed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sink_kernels import STATISTICS, attention
from sink_kernels.tiles import Tile

from benchmarks.kernels.checks import make_norm_inputs, norm_and_grads, out_and_grads

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's addresses are checked"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture
def accesses(monkeypatch, triton_device):
    """Checks every address of a launch against the storages of its arguments; counts the checked ones."""
    from triton.runtime import interpreter

    allowed: list[tuple[int, int]] = []
    checked = [0]
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    prepare, load, store = executor._init_args_hst, builder.create_masked_load, builder.create_masked_store

    def prepared(self, arguments, constants):
        found = prepare(self, arguments, constants)
        storages = [x.untyped_storage() for x in (*found[0], *found[1].values()) if isinstance(x, torch.Tensor)]
        allowed[:] = [(storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages]
        return found

    def check(pointers, mask):
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        inside = np.zeros(addresses.shape, dtype=bool)
        for first, end in allowed:
            inside |= (addresses >= first) & (addresses + size <= end)
        assert inside.all(), f"{(~inside).sum()} of {inside.size} addresses are outside every tensor"
        checked[0] += inside.size

    def loaded(self, pointers, mask, *others):
        check(pointers, mask)
        return load(self, pointers, mask, *others)

    def stored(self, pointers, value, mask, *others):
        check(pointers, mask)
        return store(self, pointers, value, mask, *others)

    monkeypatch.setattr(executor, "_init_args_hst", prepared)
    monkeypatch.setattr(builder, "create_masked_load", loaded)
    monkeypatch.setattr(builder, "create_masked_store", stored)
    return checked


@pytest.mark.parametrize("schedule", ["plain", "ahead"])
@pytest.mark.parametrize(
    "case",
    [
        {"normalizer": "learnable_sink", "tokens": 37, "head_dim": 24, "gate": "element", "kv_heads": 1},
        {"normalizer": "softmax", "tokens": 33, "window": 20, "gate": "head"},
        {"normalizer": "sigmoid", "tokens": 47, "softcap": 2.0},
        {"normalizer": "softmax", "tokens": 1},
    ],
    ids=str,
)
def test_attention(case, schedule, accesses, make_call, monkeypatch):
    from sink_kernels import triton_attention

    monkeypatch.setattr(triton_attention, "tile_for", lambda *_: Tile(16, 16, 4, 2, schedule))
    call = make_call(**{"head_dim": 16, "heads": 2, **case}).cast(torch.float32)
    out_and_grads(call, attention, backend="triton")
    call.run(attention, backend="triton", stats=STATISTICS, numbers=call.q[..., :1].detach().abs())
    assert accesses[0] > 0


@pytest.mark.parametrize("shape", [(37, 48), (3, 70)])
def test_gated_norm(shape, accesses):
    norm_and_grads(make_norm_inputs(shape, 5, True), backend="triton")
    assert accesses[0] > 0
