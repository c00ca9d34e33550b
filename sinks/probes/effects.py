"""Changes of loss with intervals, and the role of a sink, which follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinks.stats.bootstrap import interval

SMALLEST_PART = 1 / 3  # of the largest effect, which a role must reach to be named
BIAS, CONTRIBUTES, CONSTANT_SCALE, RESCALES, NOTHING = "bias", "contributes", "constant scale", "rescales", "nothing"


@dataclass(frozen=True)
class Units:
    """What a bootstrap draws: documents, or windows of a text that has no documents.

    Args:
        of_tokens: number of the unit of each scored token [N, T].
        name: "documents" or "windows".
    """

    of_tokens: Tensor
    name: str

    @property
    def sizes(self) -> Tensor:
        """Tokens of each unit [U] float64."""
        return torch.bincount(self.of_tokens.flatten()).double()

    def sums(self, values: Tensor) -> Tensor:
        """Sum over the tokens of each unit [U] float64, of values [N, T]."""
        empty = torch.zeros(len(self.sizes), dtype=torch.float64)
        return empty.index_add(0, self.of_tokens.flatten(), values.double().flatten())


def windows(rows: int, tokens: int) -> Units:
    """Every row is a unit."""
    return Units(torch.arange(rows)[:, None].expand(rows, tokens), "windows")


def documents(ids: Tensor, start: int) -> Units:
    """The parts of documents in rows of ids [N, T + 1], of which each begins with an id; none reaches over two rows.

    A prediction belongs to the document of the token at which it is made.
    """
    begun = ids[:, :-1] == start
    begun[:, 0] = True
    return Units(begun.flatten().cumsum(0).view_as(begun) - 1, "documents")


# Role -> the edits whose changes make it: the first minus the second.
RESIDUAL: dict[str, tuple[str, str | None]] = {
    BIAS: ("direct", "constant-direct"),
    CONTRIBUTES: ("constant-direct", None),
    CONSTANT_SCALE: ("denominator", "constant-denominator"),
    RESCALES: ("constant-denominator", None),
}
ATTENTION: dict[str, tuple[str, str | None]] = {
    BIAS: ("value", "constant-contribution"),
    CONTRIBUTES: ("constant-contribution", None),
    CONSTANT_SCALE: ("rescaling", "constant-rescaling"),
    RESCALES: ("constant-rescaling", None),
}


def role(
    rule: Mapping[str, tuple[str, str | None]],
    changes: Mapping[str, Tensor],
    controls: Mapping[str, Sequence[Tensor]],
    sizes: Tensor,
    seed: int,
) -> dict[str, Any] | None:
    """What a sink does to the loss: each effect minus its random control.

    Named are the roles whose interval lies above 0 and whose effect reaches a third of the largest, the largest first.

    Args:
        rule: `RESIDUAL` or `ATTENTION`.
        changes: edit -> change of loss, summed over each unit [U].
        controls: edit -> the same of each random control.
        sizes: tokens of each unit [U].
        seed: of the bootstrap.

    Returns:
        effects: role -> mean, low, high. named: roles, or "nothing". None where an edit that the rule needs is missing,
            or where a single unit gives no interval.
    """
    needed = {edit for pair in rule.values() for edit in pair if edit is not None}
    if not all(changes.keys() >= {edit} and controls.get(edit) for edit in needed):
        return None
    net = {edit: changes[edit] - torch.stack(list(controls[edit])).mean(0) for edit in needed}
    effects = {
        name: interval(net[edit] if other is None else net[edit] - net[other], sizes, seed)
        for name, (edit, other) in rule.items()
    }
    lows = {name: low for name, effect in effects.items() if (low := effect["low"]) is not None}
    if len(lows) < len(effects):
        return None
    largest = max(effect["mean"] for effect in effects.values())
    named = [n for n, e in effects.items() if lows[n] > 0 and e["mean"] >= SMALLEST_PART * largest]
    return {"effects": effects, "named": sorted(named, key=lambda n: -effects[n]["mean"]) or [NOTHING]}
