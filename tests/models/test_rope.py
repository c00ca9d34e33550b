"""Rotary positions: what rotates, by which frequencies; tests/interop compares the frequencies with transformers'."""

import math
from functools import partial
from typing import Any

import pytest
import torch

from sinks.errors import UserError
from sinks.models.decoder import Architecture
from sinks.models.positions import PartialRotary, Rope, Rotary
from sinks.models.rope import Frequencies, Linear, Llama3, Yarn

WIDTH, BASE, LENGTH = 8, 100.0, 6


def rotated(x: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Each pair (x_i, x_{i + R / 2}) as a complex number, turned by position times frequency."""
    first, second = x.chunk(2, -1)
    angle = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequencies
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.3])
def test_a_fraction_of_each_head_rotates(fraction: float) -> None:
    x = torch.randn(2, 3, LENGTH, WIDTH, dtype=torch.float64)
    rotary = Rope(BASE, fraction).rotary(WIDTH, LENGTH).double()
    rotary.reset_parameters()  # in float64
    width = int(fraction * WIDTH)
    assert type(rotary) is (Rotary if width == WIDTH else PartialRotary)
    expected = torch.cat([rotated(x[..., :width], Frequencies(width, BASE).values()), x[..., width:]], -1)
    torch.testing.assert_close(rotary(x), expected)


def test_plain_frequencies_are_a_geometric_series() -> None:
    expected = [BASE ** (-2 * i / WIDTH) for i in range(WIDTH // 2)]
    torch.testing.assert_close(Frequencies(WIDTH, BASE).values(), torch.tensor(expected, dtype=torch.float64))


def test_linear_scaling_divides_all() -> None:
    assert torch.equal(Linear(WIDTH, BASE, 4.0).values(), Frequencies(WIDTH, BASE).values() / 4)


@pytest.mark.parametrize("kind", [Llama3, Yarn])
def test_fast_frequencies_are_kept_and_slow_ones_divided(kind: Any) -> None:
    plain = Frequencies(64, 1e4).values()
    found = kind(64, 1e4, factor=4.0, original_context=256).values()
    assert found[0] == plain[0]
    torch.testing.assert_close(found[-1], plain[-1] / 4)
    ratio = plain / found
    assert bool((ratio.diff() >= -1e-12).all())
    assert 1 < float(ratio[10]) < 4  # between the two


def test_yarn_makes_queries_and_keys_longer() -> None:
    assert Yarn(WIDTH, BASE, 32.0, 4).attention_factor == 0.1 * math.log(32) + 1
    assert Yarn(WIDTH, BASE, 0.5, 4).attention_factor == 1
    stretched = Rope(BASE, 1.0, partial(Yarn, factor=4.0, original_context=4, attention_factor=1.5))
    assert float(stretched.rotary(WIDTH, LENGTH).cosine[0, 0]) == 1.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rope().rotary(7, 4), "head_dim is 7, but rotary positions need an even one: give 8"),
        (lambda: Rope(fraction=0.4).rotary(8, 4), "rope_fraction 0.4 of head_dim 8 is 3 channels"),
        (lambda: Rope(fraction=0.1).rotary(8, 4), "is 0 channels"),
        (lambda: Architecture(rope_fraction=0.0), "architecture.rope_fraction is 0.0"),
        (lambda: Linear(8, BASE, 0.0), "rope factor is 0.0"),
        (lambda: Llama3(8, BASE, 4.0, 8, low=4.0, high=4.0), "rope high is 4.0, but must be above 4.0"),
        (lambda: Yarn(8, BASE, 4.0, 0), "rope original_context is 0"),
        (lambda: Yarn(8, BASE, 4.0, 8, fast=0.5), "rope fast is 0.5"),
    ],
)
def test_what_cannot_be_is_one_line(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()
