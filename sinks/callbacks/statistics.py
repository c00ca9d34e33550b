"""Attention and residual sink statistics during training and validation."""

from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sinks.callbacks.course import last_micro_batch
from sinks.callbacks.maps import write_maps
from sinks.errors import UserError, require
from sinks.observe import Reader
from sinks.observe.groups import GROUPS
from sinks.record import Statistics
from sinks.record.logger import RunFolderLogger, log_to_all

GroupName = Literal[
    "residual", "massive", "kurtosis", "energy", "rescale", "bound", "gain", "scale", "norm_gate", "gate_magnitude",
    "norm_clip", "stream_clip", "output_norm", "output_gain", "update", "mass", "rows", "keys", "values",
    "contribution", "neighbors", "routes", "attention_gate",
]  # fmt: skip


class SinkStatistics(Callback):
    """Reads the taps on sampled training steps and over every validation, and logs their statistics.

    A sampled step is read as a whole, each of the micro-batches that are accumulated for it. Rows of a transformers
    model that are packed without showing where documents start, by a mask or by `cu_seq_lens_q` alone, have none.

    Accumulators stay on the device and are reduced over ranks in two collectives per logged step; no other step is
    affected. A sampled step runs uncompiled: each site would need a graph of its own, and torch.compile gives up after
    a few, for all other steps too. The sink dimensions of the rescale group are those of the previous logged step, so
    that they are fixed before they are measured; they are recorded, and survive a resume.

    Args:
        interval: optimizer steps between sampled training steps; the first is sampled too.
        start: first optimizer step that may be sampled.
        stop: last optimizer step that may be sampled; null for no end.
        validation: whether to read validation too.
        sites: patterns of norm and attention sites, e.g. "blocks.0.*"; one that matches nothing is an error.
        leave_out: groups to skip.
        sink_dimensions: how many dimensions count as the residual sink of a site.
        maps: whether TensorBoard gets maps and histograms with every validation.
        document_start: id of the first token of every document: each document of a row is then read on its own
            (docs/statistics.md). By default the first token of a row is apart, whatever it is.
    """

    def __init__(
        self,
        interval: int = 50,
        start: int = 1,
        stop: int | None = None,
        validation: bool = True,
        sites: list[str] = ["*"],  # noqa: B006
        leave_out: list[GroupName] = [],  # noqa: B006
        sink_dimensions: int = 1,
        maps: bool = True,
        document_start: int | None = None,
    ) -> None:
        for name, value in (("interval", interval), ("start", start), ("sink_dimensions", sink_dimensions)):
            require(f"statistics.{name}", value, at_least=1, remedy="give a positive number")
        if stop is not None:
            require("statistics.stop", stop, at_least=start, remedy="leave it out for no end")
        for name in leave_out:
            if name not in GROUPS:
                raise UserError(f"statistics.leave_out has {name!r}, but groups are {', '.join(GROUPS)}")
        self.interval, self.start, self.stop = interval, start, stop
        self.validation, self.patterns, self.maps = validation, sites, maps
        self.groups = [name for name in GROUPS if name not in leave_out]
        self.sink_dimensions = sink_dimensions
        if document_start is not None:
            remedy = "give the id of the token that begins each document"
            require("statistics.document_start", document_start, at_least=0, remedy=remedy)
        self.document_start = document_start
        self.latest: dict[str, float] = {}
        self.latest_arrays: Statistics | None = None
        self.sampling = False
        self._reader: Reader | None = None
        self._module: LightningModule | None = None
        self._resumed_dimensions: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        dimensions = self._resumed_dimensions if self._reader is None else self._reader.dimensions
        return {"dimensions": {site: d.tolist() for site, d in dimensions.items()}, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed_dimensions = {site: torch.tensor(d) for site, d in state_dict["dimensions"].items()}
        self.latest = state_dict["latest"]
        if self._reader is not None:
            self._reader.dimensions = dict(self._resumed_dimensions)

    @property
    def reader(self) -> Reader:
        """Of the model that is being run; a UserError if there is none yet."""
        if self._reader is None:
            raise UserError("SinkStatistics has read no model yet: give it to a trainer, or use sinks.observe.Reader")
        return self._reader

    # -- when the model is read ---------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach(pl_module)
        self.reader.forget()

    def _attach(self, pl_module: LightningModule) -> None:
        """Listen at the sites that the patterns name; one that matches nothing is an error."""
        if self._reader is None or self._module is not pl_module:
            from sinks.interop.find import find_sites

            sites = find_sites(pl_module, self.document_start, skip_unknown_documents=True)
            self._reader = Reader(sites, self.groups, self.sink_dimensions, self.patterns)
            self._reader.dimensions, self._module = dict(self._resumed_dimensions), pl_module

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step + 1  # this step's number once it is done
        in_time = step >= self.start and (self.stop is None or step <= self.stop)
        self.sampling = in_time and (step == self.start or step % self.interval == 0)
        if self.sampling:
            torch.compiler.set_stance("force_eager")
            self.reader.start()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # Activation checkpointing runs the forward again during backward; it must not count twice.
        if self.sampling:
            self.reader.stop()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.sampling and last_micro_batch(trainer, batch_idx):
            torch.compiler.set_stance("default")  # not before: the backward pass of a checkpointed block runs it again
            self._log(trainer, "train")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validation:
            self._attach(pl_module)
            self.reader.forget()
            torch.compiler.set_stance("force_eager")
            self.reader.start()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validation:
            self.reader.stop()
            torch.compiler.set_stance("default")
            self._log(trainer, "validation")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._reader is not None:
            self._reader.stop()
        torch.compiler.set_stance("default")

    # -- logging ------------------------------------------------------------------------------------------------

    def _log(self, trainer: Trainer, stage: str) -> None:
        scalars, statistics = self.reader.summarize(trainer.global_step, trainer.lightning_module.device_mesh)
        if not trainer.is_global_zero or not scalars:
            return
        if stage == "validation":
            self.latest, self.latest_arrays = scalars, statistics
        log_to_all(trainer, {f"{stage}/{name}": value for name, value in scalars.items()}, trainer.global_step)
        for logger in trainer.loggers:
            if isinstance(logger, RunFolderLogger):
                logger.log_statistics(stage, statistics)
        if self.maps and stage == "validation":
            write_maps(trainer, statistics, self.reader.histograms, trainer.global_step)
