"""Timing in turns for `make bench`, so that noise affects all contestants alike."""

import json
from collections.abc import Callable
from typing import TypeVar

from sinks.record.provenance import provenance

T = TypeVar("T")


def in_turns(contestants: dict[str, Callable[[], T]], repeats: int, warm_up: int = 2) -> dict[str, list[T]]:
    """The values of each contestant, one per turn, after the warm-up turns."""
    turns = [{name: run() for name, run in contestants.items()} for _ in range(repeats + warm_up)]
    return {name: [turn[name] for turn in turns[warm_up:]] for name in contestants}


def print_provenance(*packages: str) -> None:
    """One line of JSON: which code ran where.

    Args:
        packages: whose versions matter too.
    """
    print(json.dumps({k: provenance(*packages)[k] for k in ("commit", "dirty", "versions", "device", "threads")}))
