"""GatedNorm: the reference in float64, the Triton kernels against it, and rejected inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sink_kernels import gated_norm, gated_norm_op

from benchmarks.kernels.checks import NORM_TOLERANCES, make_norm_inputs, norm_checks
from benchmarks.kernels.checks import norm_and_grads as gradients
from benchmarks.kernels.checks import run_norm as run

# shape of x, rank, PreAffine, offset
CASES = [
    ((70, 96), 16, False, 0.0),
    ((3, 47, 64), 5, True, 1.5),
    ((1, 40), 1, True, 0.0),
    ((130, 128), 40, True, -0.5),
]


@pytest.fixture
def make_inputs():
    return make_norm_inputs


def test_the_reference_is_rms_norm_times_its_low_rank_gate(make_inputs):
    x, weight, w_down, w_up, pre = make_inputs((4, 6, 32), 8, True, torch.float64)
    n = F.rms_norm(pre * x, (32,), weight, 1e-5)
    expected = n * torch.sigmoid(F.linear(F.silu(F.linear(n, w_down)), w_up) + 0.7)
    y, stats = run(
        [x, weight, w_down, w_up, pre], eps=1e-5, offset=0.7, stats=("absmax", "fourth_moment"), backend="reference"
    )
    torch.testing.assert_close(y, expected)
    rows = expected.detach().flatten(0, 1)
    torch.testing.assert_close(stats["absmax"], rows.abs().amax(0).float())
    torch.testing.assert_close(stats["fourth_moment"], (rows**4).mean(0).float())


def test_reference_gradcheck(make_inputs):
    inputs = make_inputs((3, 6), 2, True, torch.float64)
    assert torch.autograd.gradcheck(lambda *tensors: run(tensors, backend="reference"), inputs)


def test_the_reference_supports_a_gate_per_token(make_inputs):
    x, weight, w_down, w_up = make_inputs((5, 16), 4, False, torch.float64)
    n = F.rms_norm(x, (16,), weight, 1e-6)
    gate = torch.sigmoid(F.silu(n @ w_down.T) @ w_up[:1].T)
    torch.testing.assert_close(gated_norm(x, weight, w_down, w_up[:1]), n * gate)


def test_triton_rejects_a_gate_per_token(triton_device):
    tensors = [tensor.to(triton_device) for tensor in (X, GAIN, DOWN, UP[:1])]
    with pytest.raises(ValueError, match=r"gate per token.*reference"):
        gated_norm(*tensors, backend="triton")


def test_zero_up_projection_halves_the_norm(make_inputs):
    x, weight, w_down, w_up = make_inputs((5, 16), 4, False)
    y = gated_norm(x, weight, w_down, torch.zeros_like(w_up))
    torch.testing.assert_close(2 * y, F.rms_norm(x, (16,), weight, 1e-6))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", NORM_TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_equals_the_reference_in_float64(case, dtype, make_inputs, triton_device):
    shape, rank, pre_affine, offset = case
    options = {"offset": offset, "eps": 1e-5}
    for name, check in norm_checks(shape, rank, pre_affine, dtype, triton_device, **options).items():
        assert check.passed, f"{name}: {check.error:.1e}, the limit is {check.limit:.1e}"

    own = make_inputs(shape, rank, pre_affine, dtype, triton_device)
    y, grads = gradients(own, backend="triton", **options)
    assert y.dtype == dtype
    assert y.shape == own[0].shape
    assert [(grad.dtype, grad.shape) for grad in grads] == [(dtype, tensor.shape) for tensor in own]
    with_stats, stats = run(own, backend="triton", stats=("absmax", "fourth_moment"), **options)
    torch.testing.assert_close(with_stats, y)
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in stats.values())


def test_triton_takes_parameters_of_another_dtype(make_inputs, relative_error, triton_device):
    own = make_inputs((40, 64), 16, True, torch.bfloat16, triton_device, parameters=torch.float32)
    y, grads = gradients(own, backend="triton")
    expected, expected_grads = gradients(make_inputs((40, 64), 16, True, torch.float64, triton_device))
    assert relative_error(y, expected) < 4e-3
    assert [grad.dtype for grad in grads] == [torch.bfloat16] + [torch.float32] * 4
    assert all(relative_error(*pair) < 8e-3 for pair in zip(grads, expected_grads, strict=True))


def test_triton_reads_strided_rows_and_expanded_gradients(make_inputs, triton_device, close):
    x, *parameters = make_inputs((40, 128), 16, False, torch.float32, triton_device)
    halves = [p[..., ::2] if p.shape[-1] == 128 else p[::2] for p in parameters]
    for half in (x[:, :64], x[:, ::2], x.T[:, :40].T[:, :64]):
        results = []
        for backend in ("triton", "reference"):
            y = gated_norm(half, *halves, backend=backend)
            results.append([y, *torch.autograd.grad(y.sum(), [x, *parameters])])
        for own, expected in zip(*results, strict=True):
            torch.testing.assert_close(own, expected, **close)


def test_opcheck(make_inputs, triton_device):
    x, weight, w_down, w_up, pre = make_inputs((20, 32), 4, True, torch.float32, triton_device)
    torch.library.opcheck(gated_norm_op.gated_norm_forward, (x, weight, w_down, w_up, pre, 1e-6, 0.0, True))


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_compiles_into_one_graph(backend, make_inputs, triton_device):
    inputs = make_inputs((2, 20, 32), 4, True, torch.float32, triton_device)

    def loss(*tensors):
        y, stats = run(tensors, backend=backend, stats=("absmax",))
        return y.square().sum(), stats["absmax"]

    torch._dynamo.reset()
    value, absmax = loss(*inputs)
    compiled, compiled_absmax = torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(compiled, value)
    torch.testing.assert_close(compiled_absmax, absmax)
    for pair in zip(torch.autograd.grad(compiled, inputs), torch.autograd.grad(value, inputs), strict=True):
        torch.testing.assert_close(*pair)


X, GAIN, DOWN, UP = torch.zeros(4, 8), torch.zeros(8), torch.zeros(2, 8), torch.zeros(8, 2)
INVALID = {
    "no rows": ({"x": X[:0]}, "at least one row"),
    "integers": ({"x": X.long()}, "int64: supported are"),
    "gain of another width": ({"weight": GAIN[:4]}, r"weight has shape \(4,\).*\(8,\)"),
    "pre_affine of another width": ({"pre_affine": GAIN[:4]}, r"pre_affine has shape \(4,\)"),
    "w_down transposed": ({"w_down": UP}, r"w_down has shape \(8, 2\).*\[r, D\]"),
    "w_up transposed": ({"w_up": DOWN}, r"w_up has shape \(2, 8\).*\(8, 2\)"),
    "gain on another device": ({"weight": GAIN.to("meta")}, "meta.*(cpu|cuda)"),
    "negative eps": ({"eps": -1.0}, "eps=-1.0"),
    "infinite offset": ({"offset": float("inf")}, "offset=inf"),
    "unknown statistic": ({"stats": ("mean",)}, "'mean'.*absmax"),
    "unknown backend": ({"backend": "flash"}, "'flash'.*triton"),
    "float64 on triton": ({"x": X.double(), "backend": "triton"}, "float64.*reference"),
    "rank over the limit": (
        {"w_down": torch.zeros(129, 8), "w_up": torch.zeros(8, 129), "backend": "triton"},
        "up to 128.*129",
    ),
}


@pytest.mark.parametrize("what", INVALID)
def test_invalid_input_is_rejected(what, triton_device):
    arguments, message = INVALID[what]
    arguments = {"x": X, "weight": GAIN, "w_down": DOWN, "w_up": UP, **arguments}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and value.device.type == "cpu":
            arguments[name] = value.to(triton_device)
    with pytest.raises(ValueError, match=message) as error:
        gated_norm(**arguments)
    assert "\n" not in str(error.value)
