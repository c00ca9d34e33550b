"""How fast training runs: tokens and floating-point operations a second, and the time spent waiting for data."""

import math
import time
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from sinks.callbacks.course import due
from sinks.parallel.ranks import data_ranks
from sinks.plan.peak import dense_peak
from sinks.record.logger import log_to_all


def matmul_dtype(precision: str) -> torch.dtype:
    """The dtype of matrix products under a precision setting of Lightning."""
    if "bf16" in precision:
        return torch.bfloat16
    return {"16": torch.float16, "64": torch.float64}.get(precision.split("-")[0], torch.float32)


# The first two steps of a process compile and take memory, for a step with statistics and for one without.
WARM_UP_STEPS = 2


class Throughput(Callback):
    """Logs throughput every `log_every_n_steps` steps; in between it only reads clocks.

    Training time is wall time without validations, without checkpoints (from the end of the step they follow), and
    without the first two optimizer steps of a process, in which kernels are compiled and memory is first taken. Where
    the device runs asynchronously, the host synchronizes when logging and at no other time. Clocks, waiting and memory
    are those of rank 0; ranks train in lockstep.
    """

    def __init__(self) -> None:
        self.trained_s, self.waited_s, self.tokens = 0.0, 0.0, 0
        self._flops_per_token = 0.0
        self._peak: float | None = None
        self._warm, self._warm_from = False, 0
        self._resumed_at: float | None = None  # when the running stretch of training began; None between stretches
        self._step_ended = self._loader_waited_s = 0.0
        self._logged = (0.0, 0.0, 0)

    def state_dict(self) -> dict[str, Any]:
        self._pause(self._step_ended)  # called when a checkpoint is taken
        return {"trained_s": self.trained_s, "waited_s": self.waited_s, "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trained_s, self.waited_s = state_dict["trained_s"], state_dict["waited_s"]
        self.tokens = state_dict["tokens"]

    # -- the clock ----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flops_per_token = pl_module.flops_per_token().per_token
        self._peak = dense_peak(trainer.strategy.root_device, matmul_dtype(trainer.precision))
        self._warm, self._resumed_at = False, None
        self._warm_from = trainer.global_step + WARM_UP_STEPS
        self._logged = (self.trained_s, self.waited_s, self.tokens)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        waited = trainer.train_dataloader.waited_s - self._loader_waited_s
        self._loader_waited_s += waited
        if not self._warm:
            return
        self.waited_s += waited
        if self._resumed_at is None:
            # The wait for this batch belongs to training; the time before it does not.
            self._resumed_at = time.perf_counter() - waited

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self._warm:
            self._warm = trainer.global_step >= self._warm_from
            return
        self.tokens += batch[:, 1:].numel() * data_ranks(trainer)[1]
        if due(trainer, batch_idx):
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.synchronize(trainer.strategy.root_device)
            now = time.perf_counter()
            self._pause(now)
            self._resumed_at = now
            self._log(trainer)
        self._step_ended = time.perf_counter()

    def _pause(self, at: float) -> None:
        if self._resumed_at is not None:
            self.trained_s += at - self._resumed_at
            self._resumed_at = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause(self._step_ended)

    # -- rates --------------------------------------------------------------------------------------------------

    def _log(self, trainer: Trainer) -> None:
        before_s, waited_before_s, tokens_before = self._logged
        since = (self.trained_s - before_s, self.waited_s - waited_before_s, self.tokens - tokens_before)
        self._logged = (self.trained_s, self.waited_s, self.tokens)
        metrics = {f"train/{name}": value for name, value in self._rates(trainer, *since).items()}
        if trainer.strategy.root_device.type == "cuda":
            metrics["train/peak_memory_gb"] = torch.cuda.max_memory_allocated(trainer.strategy.root_device) / 1e9
        log_to_all(trainer, metrics, trainer.global_step)

    def _rates(self, trainer: Trainer, trained_s: float, waited_s: float, tokens: int) -> dict[str, float]:
        tokens_per_second = tokens / trained_s
        flops_per_second = tokens_per_second * self._flops_per_token / trainer.world_size
        rates = {
            "tokens_per_second": tokens_per_second,
            "tflops_per_second": flops_per_second / 1e12,
            "data_wait_share": waited_s / trained_s,
        }
        if self._peak is not None:
            rates["mfu"] = flops_per_second / self._peak
        return rates

    def summary(self, trainer: Trainer) -> dict[str, float]:
        """The rates over the whole run, runs that it resumed included."""
        if not self.trained_s:
            return {"tokens_per_second": math.nan}
        return self._rates(trainer, self.trained_s, self.waited_s, self.tokens)
