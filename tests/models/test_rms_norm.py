"""Value and gradients of the RMS normalization on a CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.models.rms_norm import rms_norm

SHAPE, EPS = (3, 7, 16), 1e-6


def made(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(SHAPE, generator=generator)
    weight, gradient = (torch.randn(shape, generator=generator) for shape in (SHAPE[-1:], SHAPE))
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), gradient.to(dtype)


def results(y: Tensor, x: Tensor, weight: Tensor, gradient: Tensor) -> list[Tensor]:
    return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, (x, weight), gradient))]


# At a scale of 1e-3, eps is as large as the mean square.
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradients_are_torchs_in_float64(dtype: torch.dtype, rtol: float, scale: float) -> None:
    x, weight, gradient = made(dtype, scale)
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, weight, gradient)]
    expected = results(F.rms_norm(wide[0], SHAPE[-1:], wide[1], EPS), *wide)
    for own, right in zip(results(rms_norm(x, weight, EPS), x, weight, gradient), expected, strict=True):
        assert (own - right).abs().max() <= rtol * right.abs().max()


def test_of_a_transposed_view_with_a_frozen_gain() -> None:
    x, weight, gradient = made()
    weight.requires_grad_(False)
    heads = x.transpose(1, 2)  # [3, 16, 7] as in [B, H, T, head_dim]
    gain, upstream = weight[:7], gradient.transpose(1, 2)
    (own,) = torch.autograd.grad(rms_norm(heads, gain, EPS), x, upstream)
    (right,) = torch.autograd.grad(F.rms_norm(heads, (7,), gain, EPS), x, upstream)
    torch.testing.assert_close(own, right)


def test_other_dtypes_are_torchs() -> None:
    x, weight, gradient = made(torch.bfloat16)
    own = results(rms_norm(x, weight, EPS), x, weight, gradient)
    right = results(F.rms_norm(x, SHAPE[-1:], weight, EPS), x, weight, gradient)
    assert all(torch.equal(a, b) for a, b in zip(own, right, strict=True))


def test_backward_inside_autocast_is_as_exact_and_repeatable() -> None:
    x, weight, gradient = made(torch.float32)
    y = rms_norm(x, weight, EPS)
    outside = torch.autograd.grad(y, (x, weight), gradient, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(y, (x, weight), gradient)
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


def test_non_finite_values_stay_non_finite() -> None:
    for poison in (torch.inf, torch.nan):
        x, weight, gradient = made(torch.float32)
        with torch.no_grad():
            x[1, 2, 3] = poison
        y, to_x, _ = results(rms_norm(x, weight, EPS), x, weight, gradient)
        assert not y[1, 2].isfinite().all()
        assert not to_x[1, 2].isfinite().all()
        assert y[0].isfinite().all()


def test_the_second_derivative_is_that_of_finite_differences() -> None:
    x, weight, _ = made()
    assert torch.autograd.gradgradcheck(lambda *given: rms_norm(*given, EPS), (x, weight))
