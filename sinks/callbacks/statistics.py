"""Attention and residual sink statistics during training and validation."""

from functools import partial
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sinks.errors import UserError
from sinks.models.taps import Tap, taps_of
from sinks.record import Statistics
from sinks.record.logger import RunFolderLogger, log_to_all
from sinks.stats import functional
from sinks.stats.moments import Moments, add, total_over_ranks

RESIDUAL_SITES = (".norm.input",)


class SinkStatistics(Callback):
    """Reads the taps on sampled training steps and over every validation, and logs what they show.

    Costs two collectives per logged step and no host synchronisation in any other step.

    Args:
        interval: optimiser steps between sampled training steps; the first is sampled too.
    """

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:
            raise UserError(f"statistics.interval is {interval}, but must be at least 1: give e.g. 50")
        self.interval = interval
        self.latest: dict[str, float] = {}
        self._taps: list[Tap] = []
        self._moments: dict[str, Moments] = {}
        self._sampling = False

    # -- switching the taps -------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._attach(pl_module)

    def _attach(self, pl_module: lightning.LightningModule) -> None:
        self._taps = []
        for tap in taps_of(pl_module):
            handler = self._handler(tap.site, pl_module)
            if handler is not None:
                tap.listener = handler
                self._taps.append(tap)

    def _handler(self, site: str, pl_module: lightning.LightningModule) -> Any:
        """What to do with the value of a tap, or None if the site is not read."""
        if site.endswith(RESIDUAL_SITES):
            return partial(self._take, functional.residual_moments)
        if site.endswith(".mass"):
            return partial(self._take, lambda value: functional.attention_moments(**value))
        if site.endswith(".attention.value"):
            return partial(self._take, functional.value_moments)
        if site.endswith(".attention.gate"):
            return partial(self._take, functional.attention_gate_moments)
        if site.endswith(".norm.gain"):
            return self._take_gain
        if site.endswith(".norm.gate"):
            channels = pl_module.architecture.d_model
            return partial(self._take, partial(functional.norm_gate_moments, channels=channels))
        if site.endswith(".clip"):
            return partial(self._take, functional.share_moments)
        return None

    def _take(self, moments: Any, site: str, value: Any) -> None:
        self._moments[site] = add(self._moments.get(site), moments(value))

    def _take_gain(self, site: str, gain: Tensor) -> None:
        # A parameter, the same on every rank and for every batch: the maximum over ranks leaves it as it is.
        self._moments[site] = {"gain_max": gain.float().abs()}

    def _switch(self, on: bool) -> None:
        for tap in self._taps:
            tap.on = on

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        last_micro_batch = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        step = trainer.global_step + 1  # this step's number once it is done
        self._sampling = last_micro_batch and (step == 1 or step % self.interval == 0)
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
            self._log(trainer, "train", trainer.global_step)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._attach(pl_module)
        self._moments = {}
        self._switch(True)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._switch(False)
        self._log(trainer, "validation", trainer.global_step)

    # -- what follows from the moments --------------------------------------------------------------------------

    def _log(self, trainer: lightning.Trainer, stage: str, step: int) -> None:
        moments = {site: {n: m.cpu() for n, m in named.items()} for site, named in self._totals().items()}
        self._moments = {}
        if not trainer.is_global_zero:
            return
        scalars, statistics = summarise(moments, step)
        if stage == "validation":
            self.latest = scalars
        log_to_all(trainer, {f"{stage}/{name}": value for name, value in scalars.items()}, step)
        for logger in trainer.loggers:
            if isinstance(logger, RunFolderLogger):
                logger.log_statistics(stage, statistics)

    def _totals(self) -> dict[str, Moments]:
        return total_over_ranks(self._moments)


def of_strongest_head(mass: Tensor, by_kv_head: Tensor) -> Tensor:
    """The entry of [layers, n_kv_heads] that serves the query head with the largest mass [layers, H]."""
    layer, head = divmod(int(mass.argmax()), mass.shape[1])
    return by_kv_head[layer, head * by_kv_head.shape[1] // mass.shape[1]]


def summarise(moments: dict[str, Moments], step: int) -> tuple[dict[str, float], Statistics]:
    """Scalars under `group/name`, and arrays [1, sites, ...], from the moments of all sites."""
    residual = {s: functional.residual_statistics(m) for s, m in moments.items() if s.endswith(RESIDUAL_SITES)}
    attention = {
        s.removesuffix(".mass"): functional.attention_statistics(m) for s, m in moments.items() if s.endswith(".mass")
    }
    arrays: dict[str, Tensor] = {
        f"residual/{name}": torch.stack([statistics[name] for statistics in residual.values()])
        for name in ("mean_abs", "argmax_share", "max_abs", "sink_score", "kurtosis")
    }
    for name in ("first_token_mass", "learned_sink_mass"):
        arrays[f"attention/{name}"] = torch.stack([statistics[name] for statistics in attention.values()])
    if not arrays["attention/learned_sink_mass"].any():
        del arrays["attention/learned_sink_mass"]
    values = [m["ratio_sum"] / m["samples"] for s, m in moments.items() if s.endswith(".attention.value")]
    arrays["attention/value_norm_ratio"] = torch.stack(values)
    gates = [m["gate_sum"] / m["count"] for s, m in moments.items() if s.endswith(".attention.gate")]
    if gates:
        arrays["attention/gate_mean"] = torch.stack(gates)
    norm_gates = {s.removesuffix(".gate"): m for s, m in moments.items() if s.endswith(".norm.gate")}
    gains = {s.removesuffix(".gain"): m["gain_max"] for s, m in moments.items() if s.endswith(".norm.gain")}
    norms = [site.removesuffix(".input") for site in residual]
    nowhere = torch.full_like(arrays["residual/mean_abs"][0], torch.nan)
    if gains:
        arrays["norm/gain"] = torch.stack([gains.get(site, nowhere) for site in norms])
    if norm_gates:
        arrays["norm/gate_by_channel"] = torch.stack(
            [norm_gates[s]["gate_sum"] / norm_gates[s]["count"] if s in norm_gates else nowhere for s in norms]
        )
    clips = [m for s, m in moments.items() if s.endswith(".clip")]

    scores = arrays["residual/sink_score"]
    read = scores[1:] if len(scores) > 1 else scores  # the first site is the bare embedding
    strongest = int(read.argmax()) + len(scores) - len(read)
    mass = arrays["attention/first_token_mass"]
    scalars = {
        "attention/first_token_mass": mass.mean(),
        "attention/first_token_mass_max_head": mass.max(),
        "attention/value_norm_ratio": arrays["attention/value_norm_ratio"].mean(),
        "attention/value_norm_ratio_max_head": of_strongest_head(mass, arrays["attention/value_norm_ratio"]),
        "residual/max_abs": arrays["residual/max_abs"][:, 1].max(),
        "residual/max_abs_first_token": arrays["residual/max_abs"][:, 0].max(),
        "residual/max_over_median": torch.stack([s["max_over_median"] for s in residual.values()]).max(),
        "residual/sink_score": scores[strongest],
        "residual/sink_consistency": list(residual.values())[strongest]["sink_consistency"],
        "residual/kurtosis": arrays["residual/kurtosis"].max(),
        "residual/p999": torch.stack([s["p999"] for s in residual.values()]).max(),
        "residual/nonfinite": torch.stack([s["nonfinite"] for s in residual.values()]).sum(),
    }
    for eps in functional.SINK_THRESHOLDS:
        ratios = torch.stack([statistics[f"sink_ratio_{eps}"] for statistics in attention.values()])
        scalars[f"attention/sink_ratio_{eps}"] = ratios.mean()
    if "attention/learned_sink_mass" in arrays:
        scalars["attention/learned_sink_mass"] = arrays["attention/learned_sink_mass"].mean()
    if gates:
        scalars["attention/gate_mean"] = arrays["attention/gate_mean"].mean()
    if norm_gates:
        scalars["norm/gate_mean"] = arrays["norm/gate_by_channel"].nanmean()
    at_sink = [
        functional.gain_at_sink(gains[norm], statistics["sink_dimension"])
        for (site, statistics), norm, score in zip(residual.items(), norms, scores, strict=True)
        if norm in gains and score >= 0.8 * scores[strongest]
    ]
    if at_sink:
        scalars["norm/gain_at_sink"] = torch.stack(at_sink).median()
    if clips:
        clipped, passes = (torch.stack([m[name] for m in clips]).sum() for name in ("share_sum", "count"))
        scalars["residual/clipped_share"] = clipped / passes
    sites = {"residual": list(residual), "norm": norms, "attention": list(attention)}
    steps = torch.tensor([step])
    return (
        {name: float(value) for name, value in scalars.items()},
        Statistics(steps.numpy(), {name: array[None].numpy() for name, array in arrays.items()}, sites),
    )
