"""TensorBoard maps: layer x head first-token mass, site x dimension magnitude, and histograms of the residual."""

from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from sinks.record import Statistics
from sinks.stats import functional

CELL = 12
FIRST_TOKEN_MASS = "attention/first_token_mass"


def picture(values: np.ndarray, cell: int) -> np.ndarray:
    """Gray levels [1, rows * cell, columns * cell] uint8 of values in 0 ... 1; NaN is black."""
    gray = (255 * np.nan_to_num(values.clip(0, 1))).astype(np.uint8)
    return np.kron(gray, np.ones((cell, cell), dtype=np.uint8))[None]


def write_maps(trainer: Trainer, statistics: Statistics, histograms: dict[str, Tensor], step: int) -> None:
    """Write the maps of one validation to every TensorBoard logger.

    Args:
        trainer: whose loggers are written to.
        statistics: arrays [1, sites, ...] of one step.
        histograms: counts of |h| of each norm site, in the fixed log-spaced bins.
        step: optimizer step.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):
            continue
        writer = logger.experiment
        if FIRST_TOKEN_MASS in statistics.arrays:
            writer.add_image("maps/first_token_mass", picture(statistics.by_layer(FIRST_TOKEN_MASS)[0], CELL), step)
        magnitude = statistics.arrays.get("residual/mean_abs")
        if magnitude is not None:
            relative = np.log10(magnitude[0] / np.median(magnitude[0], axis=1, keepdims=True)) / 2
            writer.add_image("maps/residual_over_median_log10_0_to_2", picture(relative, 2), step)
        for site, counts in histograms.items():
            add_histogram(writer, f"residual/{site}", counts, step)


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
