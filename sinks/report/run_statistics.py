"""The statistics of a run that tables and figures are made of."""

import numpy as np

from sinks.record import RunFolder, Statistics
from sinks.record.folder import NotRecorded
from sinks.report.ablation import Run

FIRST_TOKEN_MASS_BY_HEAD = "attention/first_token_mass"


def statistics_with(run: Run | RunFolder, name: str, stage: str = "validation") -> Statistics | None:
    """A stage's statistics, if the run wrote them and the array has a finite value at the last step."""
    folder = run.folder if isinstance(run, Run) else run
    try:
        statistics = folder.statistics(stage)
    except NotRecorded:
        return None
    array = statistics.arrays.get(name)
    return statistics if array is not None and np.isfinite(array[-1:]).any() else None
