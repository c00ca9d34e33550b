"""Value, gradient and memory of the chunked cross-entropy."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sinks.models import cross_entropy as module
from sinks.models.cross_entropy import cross_entropy, linear_cross_entropy, loss_memory, token_losses

ROWS, VOCAB_SIZE = 37, 19


@pytest.fixture(autouse=True)
def _five_rows_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 5 * VOCAB_SIZE)


def made(dtype: torch.dtype, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(ROWS, VOCAB_SIZE, generator=generator)
    return logits.to(dtype).requires_grad_(), torch.randint(0, VOCAB_SIZE, (ROWS,), generator=generator)


def oracle(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float64."""
    wide = logits.detach().double().requires_grad_()
    loss = F.cross_entropy(wide, targets)
    loss.backward()
    assert wide.grad is not None
    return loss.detach(), wide.grad


@pytest.mark.parametrize("spread", [3.0, 1e4])
@pytest.mark.parametrize(
    ("dtype", "loss_rtol", "gradient_rtol"),
    [(torch.float64, 1e-12, 1e-12), (torch.float32, 1e-6, 1e-5), (torch.bfloat16, 1e-6, 2**-8)],
)
def test_loss_and_gradient_are_those_in_float64(
    dtype: torch.dtype, loss_rtol: float, gradient_rtol: float, spread: float
) -> None:
    logits, targets = made(dtype, spread)
    expected, gradient = oracle(logits, targets)
    loss = cross_entropy(logits, targets)
    (3 * loss).backward()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(loss.double(), expected, rtol=loss_rtol, atol=0)
    torch.testing.assert_close(logits.grad.double(), 3 * gradient, rtol=gradient_rtol, atol=1e-7)


def test_logits_of_a_projection_transposed_and_used_twice() -> None:
    logits, targets = made(torch.float64)
    _, gradient = oracle(logits, targets)
    transposed = logits.detach().t().contiguous().t().requires_grad_()
    loss = cross_entropy(transposed, targets)
    (loss + cross_entropy(transposed, targets) + transposed.sum()).backward(retain_graph=True)
    assert transposed.grad is not None
    torch.testing.assert_close(transposed.grad, 2 * gradient + 1)
    loss.backward()
    torch.testing.assert_close(transposed.grad, 3 * gradient + 1)
    torch.testing.assert_close(transposed.detach(), logits.detach(), rtol=0, atol=0)


def test_non_finite_logits_and_gradients_stay_non_finite() -> None:
    logits, targets = made(torch.float32)
    (torch.nan * cross_entropy(logits, targets)).backward()
    assert logits.grad is not None
    assert logits.grad.isnan().all()
    poisoned = logits.detach().clone()
    poisoned[ROWS - 1, 0] = torch.inf
    assert not cross_entropy(poisoned, targets).isfinite()


def test_a_target_outside_the_vocabulary_is_an_error() -> None:
    logits, targets = made(torch.float32)
    targets[-1] = VOCAB_SIZE
    with pytest.raises(IndexError, match="out of bounds"):
        cross_entropy(logits, targets)


class _Largest(TorchDispatchMode):
    """Counts the new tensors as large as the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.numel() >= ROWS * VOCAB_SIZE:
                self.found.add(leaf.untyped_storage().data_ptr())
        return result


def test_the_gradient_is_the_only_new_tensor_as_large_as_the_logits() -> None:
    logits, targets = made(torch.float32)
    with _Largest() as forward:
        loss = cross_entropy(logits, targets)
    assert not forward.found
    with _Largest() as backward:
        loss.backward()
    assert logits.grad is not None
    assert backward.found == {logits.grad.untyped_storage().data_ptr()}


def test_compiled_as_a_whole_it_is_one_graph() -> None:
    logits, targets = made(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(cross_entropy, backend="aot_eager", fullgraph=True)
    loss = compiled(logits, targets)
    loss.backward()
    expected, gradient = oracle(logits, targets)
    assert logits.grad is not None
    torch.testing.assert_close(loss.double(), expected)
    torch.testing.assert_close(logits.grad.double(), gradient)
    torch._dynamo.reset()


def test_the_second_derivative_is_that_of_finite_differences() -> None:
    logits, targets = made(torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: cross_entropy(x, targets), (logits,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_loss_of_each_token(dtype: torch.dtype) -> None:
    """Its mean is what training minimizes."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, ROWS, VOCAB_SIZE, generator=generator)).to(dtype)
    targets = torch.randint(VOCAB_SIZE, (2, ROWS), generator=generator)
    found = token_losses(logits, targets)
    exact = -logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert found.dtype == torch.float64
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found, exact, rtol=tolerance, atol=tolerance)
    mean = cross_entropy(logits.flatten(0, 1), targets.flatten()).double()
    torch.testing.assert_close(found.mean(), mean, rtol=tolerance, atol=tolerance)


WIDTH = 8


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head and its loss as a GPU computes them, six rows a chunk."""
    monkeypatch.setattr(module, "without_logits", lambda device, dtype: dtype != torch.float16)
    monkeypatch.setattr(module, "GPU_CHUNK", 6 * VOCAB_SIZE)


def projected(dtype: torch.dtype, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """What the head reads, its weight, and targets."""
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(n, WIDTH, generator=generator).bfloat16() for n in (rows, VOCAB_SIZE))
    targets = torch.randint(VOCAB_SIZE, (rows,), generator=generator)
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


@pytest.mark.parametrize("rows", [ROWS, 6, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_of_the_head_loss_and_both_gradients_are_those_in_float64(
    dtype: torch.dtype, rows: int, on_a_gpu: None
) -> None:
    x, weight, targets = projected(torch.float64, rows)
    expected = torch.autograd.grad(3 * F.cross_entropy(x @ weight.t(), targets), (x, weight))
    value = F.cross_entropy(x @ weight.t(), targets).detach()
    own_x, own_weight, _ = projected(dtype, rows)
    loss = linear_cross_entropy(own_x, own_weight, targets)
    found = torch.autograd.grad(3 * loss, (own_x, own_weight))
    # Half precision rounds the logits; the loss of them is not rounded again.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(loss.double(), value, rtol=tolerance, atol=0)
    for own, exact in zip(found, expected, strict=True):
        assert own.dtype == dtype
        assert (own.double() - exact).norm() <= 4 * tolerance * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_the_head_it_is_as_exact_as_with_whole_logits(dtype: torch.dtype, on_a_gpu: None) -> None:
    exact_x, exact_weight, targets = projected(torch.float64)
    exact = torch.autograd.grad(F.cross_entropy(exact_x @ exact_weight.t(), targets), (exact_x, exact_weight))
    errors = []
    for loss_of in (linear_cross_entropy, lambda x, weight, targets: cross_entropy(F.linear(x, weight), targets)):
        x, weight, _ = projected(dtype)
        found = torch.autograd.grad(loss_of(x, weight, targets), (x, weight))
        errors.append([float((own.double() - real).norm()) for own, real in zip(found, exact, strict=True)])
    assert all(own <= 1.5 * whole for own, whole in zip(*errors, strict=True))


def test_of_the_head_one_gradient_alone_and_the_second_derivative(on_a_gpu: None) -> None:
    x, weight, targets = projected(torch.float64, rows=7)
    both = torch.autograd.grad(linear_cross_entropy(x, weight, targets), (x, weight))
    of_x = torch.autograd.grad(linear_cross_entropy(x, weight.detach(), targets), x)
    of_weight = torch.autograd.grad(linear_cross_entropy(x.detach(), weight, targets), weight)
    torch.testing.assert_close((*of_x, *of_weight), both)
    assert torch.autograd.gradcheck(linear_cross_entropy, (x, weight, targets))
    assert torch.autograd.gradgradcheck(linear_cross_entropy, (x, weight, targets))


def test_of_the_head_no_gradient_is_computed_where_none_is_wanted(
    on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, targets = projected(torch.float32)
    expected = linear_cross_entropy(x, weight, targets)
    given: list[tuple[object, object]] = []
    original = module._add_gradients

    def counted(*inputs: Any) -> Tensor:
        given.append(inputs[3:5])
        return original(*inputs)

    monkeypatch.setattr(module, "_add_gradients", counted)
    with torch.no_grad():
        loss = linear_cross_entropy(x, weight, targets)
    assert given
    assert all(each == (None, None) for each in given)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())


def test_of_the_head_under_autocast_it_is_that_of_the_rounded_product(on_a_gpu: None) -> None:
    x, weight, targets = projected(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets)
        whole = cross_entropy(F.linear(x, weight), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, whole)
    found, expected = (torch.autograd.grad(each, (x, weight)) for each in (loss, whole))
    for own, exact in zip(found, expected, strict=True):
        assert own.dtype == torch.float32
        assert (own - exact).norm() <= 2**-7 * exact.norm()


def test_whole_logits_are_avoided_on_a_gpu_but_in_float16() -> None:
    """Whose gradients vanish before the loss is scaled."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert module.without_logits("cuda", dtype)
        assert not module.without_logits("cpu", dtype)
    assert not module.without_logits("cuda", torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_of_the_head_the_memory_is_what_torch_tracks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the paper's 2B sizes, by tensors without memory; all logits at once would take 28 GiB."""
    monkeypatch.setattr(module, "without_logits", lambda device, dtype: True)
    rows, width, vocab_size = 4 * 4096, 2048, 151936
    with FakeTensorMode():
        x, weight = (torch.zeros(n, width, dtype=dtype, requires_grad=True) for n in (rows, vocab_size))
        targets = torch.zeros(rows, dtype=torch.int64)
        tracker = MemTracker()
        tracker.track_external(x, weight, targets)
        with tracker:
            linear_cross_entropy(x, weight, targets)
        (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    arguments = sum(each.numel() * each.element_size() for each in (x, weight, targets))
    planned = loss_memory(rows, width, vocab_size, "cpu", dtype)
    assert snapshot["Total"] - arguments == pytest.approx(planned, rel=0.02)
    assert planned < 5e9


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="torch has none before 2.14")
def test_torchs_own_rounds_the_loss_to_half_precision() -> None:
    """Once it does not, it can take the place of ours."""
    x, weight, targets = projected(torch.bfloat16)
    options = torch.nn.LinearCrossEntropyOptions(acc_policy="accurate", acc_dtype=torch.float32)
    loss = F.linear_cross_entropy(x, weight, targets, options=options)
    assert loss.dtype == torch.bfloat16
