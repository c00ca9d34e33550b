"""Ends a run at a non-finite gradient, as a result: names the first non-finite tensor and keeps no checkpoint."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from sinks.callbacks.course import due
from sinks.callbacks.recorder import RunRecorder
from sinks.models.taps import Tap, taps_of
from sinks.record.folder import to_json, write_atomically

DIVERGENCE_FILE = "divergence.json"


@dataclass(frozen=True)
class NonFiniteReport:
    """The first non-finite tensor of a step.

    Args:
        micro_batch: of the step, from 0.
        order: of computation within the micro-batch.
        rank: on which process.
        kind: "activation", "loss", "gradient" (of an activation), "parameter gradient", "gradient norm", or
            "not reproduced" where the replay of the step is finite.
        site: name of the tap or parameter.
        max_abs: largest |value| among the finite ones; None if there are none.
    """

    micro_batch: int
    order: int
    rank: int
    kind: str
    site: str
    max_abs: float | None

    def sentence(self) -> str:
        """What happened, for a person."""
        if self.kind == "not reproduced":
            return "but is when the step is run again: randomness in the model, or a fault of the machine"
        largest = "none of it is" if self.max_abs is None else f"the largest finite |value| is {self.max_abs:.4g}"
        return f"first in the {self.kind} at {self.site} on rank {self.rank} ({largest})"


class NonFiniteDetector:
    """Sees every value of a replay on one rank in the order of computation, and keeps the first non-finite one."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.micro_batch = self.checked = 0
        self.first: NonFiniteReport | None = None

    def check(self, kind: str, site: str, value: Tensor) -> None:
        """Check one tensor; of a sharded one, this process's shard."""
        self.checked += 1
        if self.first is not None or not value.is_floating_point():
            return
        local = value.to_local().detach() if isinstance(value, DTensor) else value.detach()
        finite = local.isfinite()
        if not finite.all():
            some = local[finite]
            max_abs = float(some.abs().max()) if len(some) else None
            self.first = NonFiniteReport(self.micro_batch, self.checked, self.rank, kind, site, max_abs)

    def check_tap(self, site: str, value: Tensor) -> None:
        """A tap's listener."""
        self.check("activation", site, value)

    def check_gradient_of(self, tap: Tap, inputs: Any, output: Tensor) -> None:
        """A tap's forward hook: checks the gradient in the backward pass."""
        if output.requires_grad:
            output.register_hook(lambda gradient: self.check("gradient", tap.site, gradient))


class Diverged(Exception):
    """A run has ended because its gradient is not finite."""


class Divergence(Callback):
    """Ends a run from the first step on whose gradient is not finite.

    `CausalLM` marks that step on the device and makes no update from it on. The mark is read every
    `log_every_n_steps` steps and before a checkpoint, where the host waits for the device anyway. Then the step is run
    again on its own rows with every tap on, to name the first non-finite tensor, forward or backward; this is printed
    and stored in divergence.json, and `Diverged` is raised.
    """

    def __init__(self) -> None:
        self._step_before = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if due(trainer, batch_idx):
            self._end_if_diverged(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._end_if_diverged(trainer, pl_module)

    def _end_if_diverged(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = int(pl_module.first_nonfinite_step)
        if not step:
            return
        found = replay(trainer, pl_module, training_rows(trainer, step, self._step_before))
        if trainer.is_global_zero:
            recorder = next(c for c in trainer.callbacks if isinstance(c, RunRecorder))
            report = {"step": step} | {k: v for k, v in asdict(found).items() if k != "order"}
            write_atomically(recorder.folder.path / DIVERGENCE_FILE, to_json(report, indent=2) + "\n")
            print(f"diverged: the gradient of step {step} is not finite, {found.sentence()}", flush=True)
        raise Diverged(f"the gradient of step {step} is not finite")


def training_rows(trainer: Trainer, step: int, step_before: int) -> list[Tensor]:
    """This process's rows [B, T + 1] of each micro-batch of an optimizer step, counted from 1.

    Args:
        trainer: that is training.
        step: the step that is wanted.
        step_before: last step before this process began to train.
    """
    loader: Any = trainer.train_dataloader
    sampler = copy.copy(loader.batch_sampler)
    batches = (step - 1 - step_before) * trainer.accumulate_grad_batches
    sampler.start += batches * sampler.batch_size * sampler.world_size
    wanted = islice(sampler, trainer.accumulate_grad_batches)
    device = trainer.strategy.root_device
    return [loader.collate_fn([loader.dataset[index] for index in indices]).to(device) for indices in wanted]


@torch.inference_mode(False)
@torch.enable_grad()
def replay(trainer: Trainer, module: LightningModule, batches: list[Tensor]) -> NonFiniteReport:
    """Run one optimizer step again, forward and backward but without the update, and name its first non-finite tensor.

    Args:
        trainer: that is training; a collective call.
        module: as it was before the step.
        batches: rows [B, T + 1] of each micro-batch.
    """
    detector = NonFiniteDetector(trainer.global_rank)
    taps = taps_of(module)
    module.train()
    module.zero_grad()
    # Compiled code skips hooks.
    with torch.compiler.set_stance("force_eager"):
        for detector.micro_batch, rows in enumerate(batches):
            hooks = [tap.register_forward_hook(detector.check_gradient_of) for tap in taps]
            for tap in taps:
                tap.listener = detector.check_tap
            output: Any = trainer.strategy.training_step(rows, detector.micro_batch)
            loss = output["loss"] if isinstance(output, Mapping) else output
            detector.check("loss", "loss", loss)
            # A checkpointed block runs again in the backward pass.
            for tap, hook in zip(taps, hooks, strict=True):
                tap.listener = None
                hook.remove()
            trainer.strategy.backward(loss / len(batches), trainer.optimizers[0])
    check_parameters(detector, module)
    return first_of_all(
        detector.first or NonFiniteReport(len(batches), detector.checked, detector.rank, "not reproduced", "", None)
    )


def check_parameters(detector: NonFiniteDetector, module: LightningModule) -> None:
    """Check the gradients of parameters, last defined first; if each is finite, their global norm."""
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    for name in reversed(gradients):
        detector.check("parameter gradient", name, gradients[name])
    norms = {name: gradient.norm() for name, gradient in gradients.items()}
    norms = {name: norm.full_tensor() if isinstance(norm, DTensor) else norm for name, norm in norms.items()}
    largest = max(norms, key=lambda name: float(norms[name]))
    detector.check("gradient norm", largest, torch.stack([n.to(torch.float32) for n in norms.values()]).norm())


def first_of_all(own: NonFiniteReport) -> NonFiniteReport:
    """The earliest of all processes' reports."""
    if not (dist.is_available() and dist.is_initialized()):
        return own
    reports: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reports, own)
    return min(reports, key=lambda report: (report.micro_batch, report.order, report.rank))
