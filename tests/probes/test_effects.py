"""The rule of roles, and what the bootstrap draws."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sinks.probes.effects import ATTENTION, RESIDUAL, documents, role, windows


def test_units() -> None:
    values = torch.arange(6.0).view(2, 3)
    rows = windows(2, 3)
    assert rows.sums(values).tolist() == [3, 12]
    assert rows.sizes.tolist() == [3, 3]
    # Documents begin with 9; rows begin inside of one. The last id of a row predicts nothing.
    ids = torch.tensor([[4, 9, 5, 6], [7, 8, 9, 9]])
    found = documents(ids, 9)
    assert found.of_tokens.tolist() == [[0, 1, 1], [2, 2, 3]]
    assert found.sums(values).tolist() == [0, 3, 7, 5]


def sums(mean: float, noise: float = 0.0) -> Tensor:
    return mean + noise * torch.tensor([1.0, -1.0] * 8, dtype=torch.float64)


def named(rule: dict[str, tuple[str, str | None]], **changes: Tensor) -> Any:
    changes = {name.replace("_", "-"): change for name, change in changes.items()}
    controls = {name: [sums(0.05), sums(0.15)] for name in changes}
    found = role(rule, changes, controls, torch.ones(16, dtype=torch.float64), 0)
    return found and found["named"]


@pytest.mark.parametrize(
    ("effects", "expected"),
    [
        ((9, 0, 0, 0), ["bias"]),
        ((1, 9, 2, 4), ["contributes", "rescales"]),
        ((3.1, 9, 9.5, 0), ["constant scale", "contributes"]),
        ((0, 0, 1.1, 3), ["rescales", "constant scale"]),
        ((0, 0, 0, 0), ["nothing"]),
        ((-5, -5, -5, -5), ["nothing"]),
    ],
)
@pytest.mark.parametrize("side", ["residual", "attention"])
def test_roles(side: str, effects: tuple[float, ...], expected: list[str]) -> None:
    """From the definition: changes that have these effects beside controls of 0.1 each, which are taken away."""
    bias, contributes, constant_scale, rescales = effects
    constant, scale = sums(0.1 + contributes), sums(0.1 + rescales)
    direct, denominator = constant + bias, scale + constant_scale
    if side == "residual":
        found = named(
            RESIDUAL, direct=direct, constant_direct=constant, denominator=denominator, constant_denominator=scale
        )
    else:
        found = named(
            ATTENTION, value=direct, constant_contribution=constant, rescaling=denominator, constant_rescaling=scale
        )
    assert found == expected


def test_an_effect_whose_interval_holds_zero_is_not_named() -> None:
    noisy = {"direct": sums(5, 40), "constant_direct": sums(0.1), "denominator": sums(0.1)}
    assert named(RESIDUAL, **noisy, constant_denominator=sums(0.1)) == ["nothing"]
    sure = noisy | {"direct": sums(5, 4)}
    assert named(RESIDUAL, **sure, constant_denominator=sums(0.1)) == ["bias"]


def test_no_role_without_every_edit_and_its_control() -> None:
    assert named(RESIDUAL, direct=sums(1), constant_direct=sums(1), denominator=sums(1)) is None
    changes = dict.fromkeys(("direct", "constant-direct", "denominator", "constant-denominator"), sums(1))
    assert role(RESIDUAL, changes, {}, torch.ones(16, dtype=torch.float64), 0) is None
