"""Attention and residual sink statistics during training and validation."""

from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from sinks.callbacks.groups import GROUPS, Group
from sinks.callbacks.maps import write_maps
from sinks.callbacks.summary import Key, summarise
from sinks.errors import UserError
from sinks.models.attention import Attention
from sinks.models.clips import Clamp
from sinks.models.norms import NormSite
from sinks.models.taps import Tap
from sinks.record import Statistics
from sinks.record.logger import RunFolderLogger, log_to_all
from sinks.stats import functional
from sinks.stats.moments import Moments, add, part_of_heads, total_over_ranks

GroupName = Literal[
    "residual", "massive", "kurtosis", "energy", "rescale", "bound", "gain", "norm_gate", "gate_magnitude",
    "norm_clip", "stream_clip", "mass", "rows", "keys", "values", "contribution", "attention_gate",
]  # fmt: skip


class SinkStatistics(Callback):
    """Reads the taps on sampled training steps and over every validation, and logs what they show.

    Moments are gathered on the device and summed over ranks in two collectives per logged step; no other step is
    touched. A sampled step runs uncompiled: each site would need a graph of its own, and torch.compile gives up after a
    few, for all other steps too. The sink dimensions of the rescale group are those of the previous logged step, so
    that they are fixed before they are measured; they are recorded, and survive a resume.

    Args:
        interval: optimiser steps between sampled training steps; the first is sampled too.
        start: first optimiser step that may be sampled.
        stop: last optimiser step that may be sampled; null for no end.
        validation: whether to read validation too.
        sites: patterns of norm and attention sites, e.g. "blocks.0.*"; one that matches nothing is an error.
        leave_out: groups that are not read.
        sink_dimensions: how many dimensions count as the residual sink of a site.
        maps: whether TensorBoard gets maps and histograms with every validation.
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
    ) -> None:
        for name, value in (("interval", interval), ("start", start), ("sink_dimensions", sink_dimensions)):
            if value < 1:
                raise UserError(f"statistics.{name} is {value}, but must be at least 1: give e.g. 50")
        if stop is not None and stop < start:
            raise UserError(
                f"statistics.stop is {stop}, but must not be below start = {start}: leave it out for no end"
            )
        for name in leave_out:
            if name not in GROUPS:
                raise UserError(f"statistics.leave_out has {name!r}, but groups are {', '.join(GROUPS)}")
        if "residual" in leave_out:
            raise UserError("statistics.leave_out has 'residual', but the others lean on it: leave others out")
        self.interval, self.start, self.stop = interval, start, stop
        self.validation, self.patterns, self.maps = validation, sites, maps
        self.groups = [group for group in GROUPS.values() if group.name not in leave_out]
        self.sink_dimensions = sink_dimensions
        self.latest: dict[str, float] = {}
        self.latest_arrays: Statistics | None = None
        self._taps: list[Tap] = []
        self._sites: dict[str, list[str]] = {}
        self._dimensions: dict[str, Tensor] = {}
        self._moments: dict[Key, Moments] = {}
        self._sampling = False

    def state_dict(self) -> dict[str, Any]:
        return {"dimensions": {site: d.tolist() for site, d in self._dimensions.items()}, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._dimensions = {site: torch.tensor(d) for site, d in state_dict["dimensions"].items()}
        self.latest = state_dict["latest"]

    # -- switching the taps -------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._attach(pl_module)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._to_device(pl_module.device)  # some strategies restore callbacks only after on_fit_start

    def _attach(self, pl_module: lightning.LightningModule) -> None:
        """Listen at the sites that the patterns name.

        Raises:
            UserError: if a pattern matches no site.
        """
        found: list[tuple[str, str, Tap, Any]] = []
        for module in pl_module.modules():
            if isinstance(module, NormSite):
                found.append(("norm", module.parts.site.removesuffix(".parts"), module.parts, module))
            if isinstance(module, Attention):
                found.append(("attention", module.shape.site, module.parts, module))
                module.row_statistics = ("entropy", "max_logit") if GROUPS["rows"] in self.groups else ()
            if isinstance(module, Clamp):
                found.append(("clip", module.share.site, module.share, module))
        for pattern in self.patterns:
            if not any(fnmatchcase(site, pattern) for _, site, _, _ in found):
                names = ", ".join(site for _, site, _, _ in found)
                raise UserError(f"statistics.sites has {pattern!r}, which matches no site: sites are {names}")
        self._taps, self._sites = [], {"norm": [], "attention": [], "clip": []}
        for kind, site, tap, module in found:
            if any(fnmatchcase(site, pattern) for pattern in self.patterns):
                groups = [group for group in self.groups if group.kind == kind]
                tap.listener = partial(self._take, site, module, groups)
                self._taps.append(tap)
                self._sites[kind].append(site)
        if not self._sites["norm"]:
            raise UserError(f"statistics.sites is {self.patterns}, which leaves no norm site: add e.g. '*.norm'")
        self._to_device(pl_module.device)

    def _to_device(self, device: torch.device) -> None:
        self._dimensions = {site: d.to(device) for site, d in self._dimensions.items()}

    def _take(self, site: str, module: Any, groups: list[Group], tap_site: str, record: dict[str, Tensor]) -> None:
        if "input" in record:
            record["median"] = functional.token_median(record["input"])
        for group in groups:
            moments = group.moments(record, module, self._dimensions.get(site))
            if moments is not None:
                key = (site, group.name)
                self._moments[key] = add(self._moments.get(key), moments)

    def _switch(self, on: bool) -> None:
        for tap in self._taps:
            tap.on = on

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        last_micro_batch = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        step = trainer.global_step + 1  # this step's number once it is done
        due = step >= self.start and (self.stop is None or step <= self.stop)
        self._sampling = last_micro_batch and due and (step == self.start or step % self.interval == 0)
        if self._sampling:
            torch.compiler.set_stance("force_eager")
        self._switch(self._sampling)

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        # Activation checkpointing runs the forward again during backward; it must not count twice.
        self._switch(False)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._sampling:
            torch.compiler.set_stance("default")  # not before: the backward pass of a checkpointed block runs it again
            self._log(trainer, "train")

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.validation:
            self._attach(pl_module)
            self._moments = {}
            torch.compiler.set_stance("force_eager")
            self._switch(True)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._switch(False)
        if self.validation:
            torch.compiler.set_stance("default")
            self._log(trainer, "validation")

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._switch(False)
        torch.compiler.set_stance("default")

    # -- what follows from the moments --------------------------------------------------------------------------

    def _log(self, trainer: lightning.Trainer, stage: str) -> None:
        found = self._totals(trainer.lightning_module.device_mesh)
        totals = {key: {n: m.cpu() for n, m in named.items()} for key, named in found.items()}
        self._moments = {}
        used = {site: self._dimensions[site].cpu() for site in self._dimensions if (site, "rescale") in totals}
        if trainer.is_global_zero:
            scalars, statistics = summarise(totals, self._sites, used, trainer.global_step)
            if stage == "validation":
                self.latest, self.latest_arrays = scalars, statistics
            log_to_all(trainer, {f"{stage}/{name}": value for name, value in scalars.items()}, trainer.global_step)
            for logger in trainer.loggers:
                if isinstance(logger, RunFolderLogger):
                    logger.log_statistics(stage, statistics)
            if self.maps and stage == "validation":
                histograms = {site: m["histogram"] for (site, group), m in totals.items() if group == "residual"}
                write_maps(trainer, statistics, histograms, trainer.global_step)
        if trainer.training or trainer.state.fn == "fit":
            self._choose_dimensions(totals, trainer.strategy.root_device)

    def _totals(self, mesh: DeviceMesh | None = None) -> dict[Key, Moments]:
        heads = None if mesh is None else mesh["tensor_parallel"]
        if heads is None or heads.size() == 1:
            return total_over_ranks(self._moments)
        rank, size = heads.get_local_rank(), heads.size()
        return total_over_ranks(
            {
                (site, group): part_of_heads(moments, rank, size, per_head=GROUPS[group].kind == "attention")
                for (site, group), moments in self._moments.items()
            }
        )

    def _choose_dimensions(self, totals: dict[Key, Moments], device: torch.device) -> None:
        """Fix the sink dimensions for the next logged step; all ranks hold the same totals."""
        for site in self._sites["norm"]:
            mean_abs = functional.residual_statistics(totals[site, "residual"])["mean_abs"]
            count = min(self.sink_dimensions, len(mean_abs))
            self._dimensions[site] = functional.choose_sink_dimensions(mean_abs, count).to(device)
