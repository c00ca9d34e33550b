"""Transfer over the finished runs of an ablation."""

from typing import Any, cast

import torch

from sinks.errors import UserError
from sinks.progress import live
from sinks.record.provenance import provenance
from sinks.report.ablation import Ablation
from sinks.runs import load_run
from sinks.transfer.compare import comparisons
from sinks.transfer.token_values import TokenValues, token_values


def measure(ablation: Ablation, rows: int, first_query: int) -> dict[str, Any]:
    """Every comparison of `comparisons`, and what they were measured on.

    Args:
        ablation: whose finished, seeded runs are read from their last checkpoints.
        rows: of the validation set.
        first_query: queries before it are left out.

    Raises:
        UserError: without a baseline, a run's checkpoint, or where the runs' validation rows differ.
    """
    if ablation.baseline is None:
        raise UserError(f"{ablation.root} has no finished baseline, which all are compared with: run it, or name one")
    values: dict[str, dict[int, TokenValues]] = {}
    first: tuple[str, TokenValues] | None = None
    seeded = [(variant.name, run) for variant in ablation.variants for run in variant.runs if run.seed is not None]
    with live("reading runs", len(seeded), "run") as advance:
        for name, run in seeded:
            found = token_values(load_run(run.folder.path), rows, first_query)
            if first is not None and not torch.equal(found.rows, first[1].rows):
                raise UserError(
                    f"{run.folder.path} and {first[0]} have other validation rows, but only the same can be compared "
                    "token by token: give runs of one task and one validation set"
                )
            first = first or (str(run.folder.path), found)
            values.setdefault(name, {})[cast(int, run.seed)] = found
            advance(1)
    if first is None or ablation.baseline.name not in values:
        raise UserError(f"{ablation.root} has no run with a seed: pairs are of one seed, so give runs that have one")
    return {
        "baseline": ablation.baseline.name,
        "rows": len(first[1].rows),
        "tokens": first[1].rows.shape[1] - 1,
        "first_query": first_query,
        "queries": {name: int(mask.sum()) for name, mask in first[1].queries.items()},
        "comparisons": list(comparisons(values, ablation.baseline.name)),
        "provenance": provenance(),
    }
