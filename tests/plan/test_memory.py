"""Memory against torch's own tracker, which follows every tensor of a training step that has no memory."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.families.objectives import Distillation, Objective, OutlierPenalty
from sinks.models.norms import RMSNorm
from sinks.parallel.tensor_parallel import shard_plan
from sinks.plan.activations import decoder_memory
from sinks.plan.layout import PRECISIONS, Layout, Precision
from sinks.plan.memory import Pieces, device_memory
from sinks.plan.plan import Batch, on_one_device, plan_model
from tests.families.variants import SMALL, build

WIDE = dataclasses.replace(SMALL, d_model=64, head_dim=16, ffn_hidden=160, n_layers=3)
TOKENS, VOCABULARY, ROWS = 256, 500, 6


def tracked(model: CausalLM, precision: Precision) -> int:
    """Largest sum of all tensors in a second training step on the CPU."""
    with FakeTensorMode():
        torch.set_default_dtype(precision.stored)
        try:
            decoder = model.make_decoder()
        finally:
            torch.set_default_dtype(torch.float32)
        optimizer = torch.optim.AdamW(decoder.parameters())
        rows = torch.zeros(ROWS, TOKENS + 1, dtype=torch.int64)

        def step() -> None:
            with torch.autocast("cpu", precision.autocast, enabled=precision.autocast is not None):
                logits = decoder(rows[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
            del logits
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        tracker = MemTracker()
        tracker.track_external(decoder, optimizer)
        with tracker:
            step()
        (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return snapshot["Total"]


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("baseline", "32-true"),
        ("baseline", "bf16-mixed"),
        ("baseline", "bf16-true"),
        ("gated", "bf16-mixed"),
        ("learnable-sink", "bf16-mixed"),
        ("clip-stream", "32-true"),
    ],
)
def test_the_peak_of_one_device_is_what_torch_tracks(name: str, precision: str) -> None:
    """With fused attention; the reference makes T x T matrices for a moment, which a plan for a GPU need not know."""
    model = build(name, TOKENS, VOCABULARY, architecture=WIDE)
    batch = Batch(VOCABULARY, TOKENS, ROWS, accumulated=1)
    plan = plan_model(model, Layout(1, "one device"), PRECISIONS[precision], batch, "cpu")
    # Counted to the tensor; what differs are the batch itself and small tensors that live for a moment.
    assert plan.memory.peak == pytest.approx(tracked(model, PRECISIONS[precision]), rel=0.01)


def test_checkpointing_keeps_the_inputs_of_the_blocks_and_one_block() -> None:
    model = build("baseline", TOKENS, VOCABULARY, architecture=WIDE)
    held = decoder_memory(model.make_decoder, TOKENS, PRECISIONS["32-true"], "cpu").per_row
    assert held.inputs == [TOKENS * 64 * 4] * 3
    assert len(set(held.blocks[1:])) == 1
    assert held.activations(True) == sum(held.inputs) + max(held.blocks) + held.rest
    assert held.activations(False) == sum(held.blocks) + held.rest


def test_a_gpu_that_is_not_there_is_planned_by_its_own_kernels() -> None:
    """Sigmoid attention keeps a T x T matrix on a CPU, and nothing of the kind in the fused kernel of a GPU."""
    model = build("sigmoid", 512, VOCABULARY, architecture=WIDE)
    kept = {
        (device, tokens): decoder_memory(
            model.make_decoder, tokens, PRECISIONS["bf16-mixed"], device
        ).per_row.activations(False)
        for device in ("cpu", "cuda")
        for tokens in (256, 512)
    }
    assert kept["cuda", 512] == 2 * kept["cuda", 256]
    assert kept["cpu", 512] > 3 * kept["cpu", 256]


def test_a_model_that_reads_values_is_refused_in_one_line() -> None:
    class ReadsValues(RMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.max().item() > 0 else x

    model = CausalLM(VOCABULARY, TOKENS, architecture=WIDE, norm=ReadsValues)
    with pytest.raises(UserError, match="whose result depends on values"):
        decoder_memory(model.make_decoder, TOKENS, PRECISIONS["32-true"], "cpu")


@pytest.mark.parametrize("name", ["gated", "headwise-gate", "unconditional-gate", "learnable-sink", "key-value-bias",
                                  "hybrid-gated", "experts"])  # fmt: skip
def test_a_tensor_parallel_share_is_what_the_split_leaves(name: str) -> None:
    architecture = dataclasses.replace(SMALL, bias=True, qk_norm=True)
    model = build(name, architecture=architecture)
    share = model.meta_decoder(on_one_device(architecture, 2))
    left = 0
    whole = model.meta_decoder()
    divided = {name for block in whole.blocks for name, split in shard_plan(block).items() if split.unit}  # type: ignore[arg-type]
    for parameter, value in whole.named_parameters():
        inside = parameter.split(".", 2)[-1] if parameter.startswith("blocks.") else ""
        left += value.numel() // (2 if inside in divided else 1)
    assert sum(p.numel() for p in share.parameters()) == left


def test_shards_are_divided_and_replicas_are_not() -> None:
    pieces = Pieces(blocks=[300, 500], rest=200)
    options = {"buffers": 0, "weight_copies": 0, "activations": 10_000, "logits": 7, "accumulates": False}
    mixed = PRECISIONS["bf16-mixed"]
    one = device_memory(pieces, Layout(1, "one device"), mixed, **options)
    assert (one.parameters, one.gradients, one.optimizer) == (4000, 4000, 8000)
    assert (one.buckets, one.gathered) == (0, 0)
    assert one.peak == one.at_the_loss == 4000 + 8000 + 10_000 + 7
    ddp = device_memory(pieces, Layout(8, "ddp"), mixed, **options)
    assert (ddp.parameters, ddp.buckets) == (4000, 4000)
    sharded = device_memory(pieces, Layout(8, "sharded", replicas=2), mixed, **options)
    assert (sharded.parameters, sharded.optimizer) == (1000, 2000)
    assert sharded.gathered == (200 + 2 * 500) * 4
    averaged = device_memory(pieces, Layout(8, "sharded", replicas=2), mixed, **options, averages=1)
    assert averaged.peak == sharded.peak + 1000
    accumulating = device_memory(pieces, Layout(1, "one device"), mixed, **options | {"accumulates": True})
    assert accumulating.at_the_loss == one.at_the_loss + 4000
    true = device_memory(pieces, Layout(1, "one device"), PRECISIONS["bf16-true"], **options)
    assert true.parameters == 2000


@pytest.mark.parametrize(
    "objective", [Distillation, partial(OutlierPenalty, objective=Distillation)], ids=["alone", "with a penalty"]
)
def test_an_objective_that_reads_logits_is_planned_with_all_of_them(objective: Callable[[], Objective]) -> None:
    batch = Batch(VOCABULARY, TOKENS, ROWS, accumulated=1)

    def logits(model: CausalLM) -> int:
        return plan_model(model, Layout(1, "one device"), PRECISIONS["bf16-mixed"], batch, "cuda").memory.logits

    options: dict[str, Any] = {"architecture": WIDE, "start_from": "runs/original"}
    assert logits(CausalLM(VOCABULARY, TOKENS, objective=objective, **options)) == 3 * 4 * ROWS * TOKENS * VOCABULARY
    assert logits(CausalLM(VOCABULARY, TOKENS, **options)) < 3 * 4 * ROWS * TOKENS * VOCABULARY
