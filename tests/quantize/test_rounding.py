"""Weights under scales with the least error, and weights that make good one another's errors."""

import pytest
import torch
from torch import Tensor

from sinks.quantize.formats import Blocks, Format, Integer
from sinks.quantize.replacements import replacements_of
from sinks.quantize.rounding import DAMPING, GPTQ, SHRINKS, clipped, nearest
from sinks.quantize.schemes import SCHEMES, Quantizer
from tests.quantize.test_quantized_models import inputs, subject

WIDTH = 272  # two batches of columns and a part of one; blocks of 16, 32 and 128, the last of 128 and 32 short


def weights_and_inputs() -> tuple[Tensor, Tensor]:
    """A matrix with a few large entries [6, K], and correlated inputs [300, K]."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, WIDTH, generator=generator)
    weight[torch.rand(weight.shape, generator=generator) < 0.01] *= 6
    mixing = torch.randn(WIDTH // 4, WIDTH, generator=generator)
    x = torch.randn(300, WIDTH // 4, generator=generator) @ mixing + 0.3 * torch.randn(300, WIDTH, generator=generator)
    return weight, x * torch.logspace(-1, 1, WIDTH)


def weight_quantizer(name: str) -> Quantizer:
    quantizer = SCHEMES[name].weights
    assert quantizer is not None
    return quantizer


def largest_of(name: str, weight: Tensor) -> Tensor:
    return weight.abs().amax() if weight_quantizer(name).reach == "tensor" else weight.abs().amax(1, keepdim=True)


def naive_gptq(number_format: Format, weight: Tensor, largest: Tensor, products: Tensor) -> Tensor:
    """Optimal brain quantization in order, with the inverse of the remaining inputs' matrix at every step, float64."""
    products = products + DAMPING * products.diagonal().mean() * torch.eye(len(products), dtype=torch.float64)
    w, scale = weight.clone(), number_format.scale(largest, largest)
    for j in range(w.shape[1]):
        if number_format.block is not None and j % number_format.block == 0:
            peak = w[:, j : j + number_format.block].abs().amax(1, keepdim=True)
            scale = number_format.scale(peak, largest)
        rounded = number_format.at(w[:, j, None], scale)[:, 0]
        inverse = torch.linalg.inv(products[j:, j:])
        w[:, j:] -= ((w[:, j] - rounded) / inverse[0, 0])[:, None] * inverse[0]
        w[:, j] = rounded
    return w


@pytest.mark.parametrize("name", SCHEMES)
def test_gptq_is_that_of_a_naive_loop(name: str) -> None:
    """In float64, where no value is so close to a tie that another order of the same sums rounds it otherwise."""
    weight, x = (tensor.double() for tensor in weights_and_inputs())
    number_format, largest = weight_quantizer(name).format, largest_of(name, weight)
    found = GPTQ(x.T @ x)(number_format, weight, largest)
    torch.testing.assert_close(found, naive_gptq(number_format, weight, largest, x.T @ x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SCHEMES)
def test_gptq_keeps_the_output_closer_than_the_nearest_numbers(name: str) -> None:
    weight, x = weights_and_inputs()
    number_format, largest = weight_quantizer(name).format, largest_of(name, weight)
    losses = [
        ((weight - rounding(number_format, weight, largest)) @ x.T).square().sum()
        for rounding in (GPTQ(x.T @ x), nearest)
    ]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("name", SCHEMES)
def test_clipping_is_the_best_of_a_plain_search(name: str) -> None:
    """Block by block, with each factor of the block's largest weight."""
    weight, _ = weights_and_inputs()
    number_format, largest = weight_quantizer(name).format, largest_of(name, weight)
    found = clipped(number_format, weight, largest)
    size = number_format.block or WIDTH
    clipped_blocks = 0
    for row in range(len(weight)):
        outer = largest if largest.ndim == 0 else largest[row]
        for at in range(0, WIDTH, size):
            block = weight[row, at : at + size]
            tried = [
                number_format.at(block, number_format.scale(shrink * block.abs().amax(), outer))
                for shrink in (1.0, *SHRINKS)
            ]
            errors = torch.stack([(values - block).square().sum() for values in tried])
            actual = (found[row, at : at + size] - block).square().sum()
            torch.testing.assert_close(actual, errors.min(), rtol=1e-5, atol=0)
            clipped_blocks += int(errors.min() < errors[0])
    assert clipped_blocks > 0 or name not in ("w4a16", "int4", "nvfp4")


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_of_the_format_pass_unchanged(name: str) -> None:
    weight, x = weights_and_inputs()
    once = weight_quantizer(name)(weight)
    number_format, largest = weight_quantizer(name).format, largest_of(name, once)
    for rounding in (clipped, GPTQ(x.T @ x)):
        assert torch.equal(rounding(number_format, once, largest), once)


def test_inputs_that_are_always_zero_have_the_nearest_weights() -> None:
    weight, x = weights_and_inputs()
    x[:, 40:] = 0
    number_format, largest = Integer(4), largest_of("int4", weight)
    found = GPTQ(x.T @ x)(number_format, weight, largest)
    assert torch.equal(found[:, 40:], number_format(weight, largest)[:, 40:])
    assert torch.equal(GPTQ(0 * x.T @ x)(number_format, weight, largest), number_format(weight, largest))


@pytest.mark.parametrize("transform", ["none", "hadamard-16"])
def test_the_model_gets_these_weights(transform: str) -> None:
    """With products of the transformed inputs on calibration text."""
    of = subject()
    read: list[Tensor] = []
    each = inputs(of, ("attention.in",))[0]
    handle = each.first.register_forward_pre_hook(lambda module, args: read.append(args[0].detach().flatten(0, 1)))
    with torch.no_grad():
        of.logits(of.calibration)
    handle.remove()
    batches = of.calibration.split(3)
    made = {
        method: replacements_of([each], SCHEMES["int4"], transform, of.logits, batches, method)[0]  # type: ignore[arg-type]
        for method in ("clip", "gptq")
    }
    x = made["gptq"].transform.inputs(read[0])
    for name, linear in each.linears.items():
        weight = made["gptq"].transform.weights(linear.weight).detach().float()
        largest = weight.abs().amax(1, keepdim=True)
        for method, rounding in (("clip", clipped), ("gptq", GPTQ(x.T @ x))):
            expected = rounding(Integer(4), weight, largest)
            assert not torch.equal(expected, Integer(4)(weight, largest))
            torch.testing.assert_close(made[method].weights[name].float(), expected, rtol=1e-5, atol=1e-6)


def test_a_block_of_gptq_has_the_scale_of_what_it_holds_when_it_is_reached() -> None:
    """A first block whose errors make the second one larger than the matrix was."""
    weight, x = weights_and_inputs()
    number_format = Blocks(Integer(2), 16)
    found = GPTQ(x.T @ x)(number_format, weight, torch.tensor(0.0))
    peaks = weight.unflatten(1, (-1, 16)).abs().amax(-1)
    reached = found.unflatten(1, (-1, 16)).abs().amax(-1)
    assert torch.equal(reached[:, 0], peaks[:, 0])
    assert (reached[:, 1:] > peaks[:, 1:]).any()
