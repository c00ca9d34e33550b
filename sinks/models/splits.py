"""How tensor parallelism splits a parameter, defined by the sublayer that owns it."""

from typing import Literal, NamedTuple


class Split(NamedTuple):
    """How a parameter is split over the processes of a sublayer.

    Args:
        how: "rows" or "columns" of the matrix are divided (a vector has rows), dimension 0 or 1, or the "last" one of
            a stack of matrices; "shared": replicated, each process with only its own heads' part of the gradient;
            "added": a bias added once per process before outputs are summed.
        unit: what is divided, for error messages, e.g. `n_heads`; empty if nothing is.
        units: number of them.
    """

    how: Literal["rows", "columns", "last", "shared", "added"]
    unit: str = ""
    units: int = 0
