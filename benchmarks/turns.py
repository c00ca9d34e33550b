"""Timing in turns for `make bench`, so that noise affects all contestants alike."""

import json
from collections.abc import Callable
from typing import TypeVar

from sinks.record.provenance import provenance

T = TypeVar("T")


def in_turns(contestants: dict[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """The values of each contestant, one per turn, after two warm-up turns."""
    turns = [{name: run() for name, run in contestants.items()} for _ in range(repeats + 2)]
    return {name: [turn[name] for turn in turns[2:]] for name in contestants}


def print_provenance() -> None:
    """One line of JSON: which code ran where."""
    print(json.dumps({k: provenance()[k] for k in ("commit", "dirty", "versions", "device", "threads")}))
