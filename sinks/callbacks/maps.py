"""What TensorBoard gets with every validation, besides scalars: maps, curves by layer, histograms of the residual."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from sinks.callbacks.heat_map import Scale, heat_map
from sinks.record import Statistics
from sinks.record.board import BY_LAYER, HISTOGRAMS, MAPS
from sinks.stats import functional

FIRST_TOKEN_MASS = "attention/first_token_mass"
FRACTION = Scale(0, 1)


@dataclass(frozen=True)
class Map:
    """A statistic that is drawn as one image.

    Args:
        array: its name in the statistics.
        title: above the image.
        unit: of the values.
        scale: of the colors, the same at every step.
        over_median: whether each row is divided by its median.
    """

    array: str
    title: str
    unit: str
    scale: Scale
    over_median: bool = False


# Of layers x heads, and of sites x channels.
HEADS = (
    Map(FIRST_TOKEN_MASS, "First-token mass", "fraction of attention", FRACTION),
    Map("attention/effective_weight", "Effective weight", "1: all attention is used", Scale(0, 1.5)),
    Map("attention/learned_sink_mass", "Mass on learned sinks", "fraction of attention", FRACTION),
    Map("attention/gate_mean", "Attention gate", "mean", FRACTION),
)
CHANNELS = (
    Map("residual/mean_abs", "Mean |h| of each channel", "over the median channel", Scale(0.1, 100, log=True), True),
    Map("norm/gain", "Gain of the norm", "absolute", Scale(0.01, 10, log=True)),
)


def write_maps(trainer: Trainer, statistics: Statistics, histograms: dict[str, Tensor], step: int) -> None:
    """Write the maps and the numbers by layer of one validation to every TensorBoard logger.

    Args:
        trainer: whose loggers are written to.
        statistics: arrays [1, sites, ...] of one step.
        histograms: counts of |h| of each norm site, in the fixed log-spaced bins.
        step: optimizer step.
    """
    writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if not writers:
        return
    images, numbers = list(maps(statistics)), by_layer(statistics)
    for writer in writers:
        for tag, image in images:
            add_image(writer, tag, image, step)
        for tag, value in numbers.items():
            writer.add_scalar(tag, value, step)
        for site, counts in histograms.items():
            add_histogram(writer, f"{HISTOGRAMS}/{site}", counts, step)


def add_image(writer: Any, tag: str, png: bytes, step: int) -> None:
    """A finished PNG; the writer's own method would encode pixels once more."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

    width, height = struct.unpack(">II", png[16:24])
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def maps(statistics: Statistics) -> Iterator[tuple[str, bytes]]:
    """Tags and PNG of the maps of one step: an image for each statistic that the run has."""
    for each in HEADS:
        if each.array in statistics.arrays:
            values = statistics.by_layer(each.array)[0]
            rows = [str(layer) for layer in range(len(values))]
            yield _tag(each), heat_map(values, each.title, rows, ("head", "layer"), each.scale, each.unit)
    for each in CHANNELS:
        if each.array in statistics.arrays:
            values = np.abs(statistics.arrays[each.array][0])
            if each.over_median:
                values = values / np.median(values, axis=1, keepdims=True).clip(1e-30)
            rows = [short(site) for site in statistics.sites["norm"]]
            yield _tag(each), heat_map(values, each.title, rows, ("channel", "norm"), each.scale, each.unit)


def _tag(each: Map) -> str:
    return f"{MAPS}/{each.array.replace('/', '_')}"


def short(site: str) -> str:
    """A norm's name in few letters, e.g. `3 attention` of `blocks.3.attention.norm`."""
    return site.removeprefix("blocks.").replace(".norm", "").replace(".", " ").replace("feed_forward", "feed-fwd")


def by_layer(statistics: Statistics) -> dict[str, float]:
    """By tag: first-token mass of the strongest head of each layer, R and the largest |h| of each norm's input."""
    arrays, found = statistics.arrays, dict[str, float]()
    if FIRST_TOKEN_MASS in arrays:
        largest = arrays[FIRST_TOKEN_MASS][0].max(axis=1)
        found |= {
            f"{BY_LAYER}/first_token_mass/{site.removesuffix('.attention')}": float(value)
            for site, value in zip(statistics.sites["attention"], largest, strict=True)
        }
    for name, array in (("residual_sink_score_R", "residual/sink_score"), ("largest_abs_h", "residual/max_abs")):
        if array in arrays:
            values = arrays[array][0] if arrays[array].ndim == 2 else arrays[array][0, :, 1]
            sites = statistics.sites["norm"]
            found |= {f"{BY_LAYER}/{name}/{site}": float(v) for site, v in zip(sites, values, strict=True)}
    return found


def add_histogram(writer: Any, tag: str, counts: Tensor, step: int) -> None:
    """A raw histogram of |h|, one bin per octave, from the fixed log-spaced counts."""
    octaves = counts.view(-1, functional.HISTOGRAM_BINS_PER_OCTAVE).sum(1).double()
    first = functional.HISTOGRAM_OCTAVES[0]
    limits = torch.tensor([2.0 ** (first + i + 1) for i in range(len(octaves))], dtype=torch.float64)
    centers = limits * 0.75
    total = float((octaves * centers).sum())
    squares = float((octaves * centers.square()).sum())
    filled = octaves.nonzero().flatten()
    if not len(filled):
        return
    writer.add_histogram_raw(
        tag,
        min=float(limits[filled[0]]) / 2,
        max=float(limits[filled[-1]]),
        num=int(octaves.sum()),
        sum=total,
        sum_squares=squares,
        bucket_limits=limits.tolist(),
        bucket_counts=octaves.tolist(),
        global_step=step,
    )
