"""Baseline models are compiled as their users would."""

import pytest
import torch
import torch._dynamo.testing

from benchmarks.gpu_report.baselines import BaselineModel, llama, stepper
from sinks.models.decoder import Architecture

pytest.importorskip("transformers")


@pytest.fixture
def tiny() -> BaselineModel:
    return llama(Architecture(d_model=16, n_layers=3, n_heads=2, ffn_hidden=24), 32, 8)


def test_llamas_layers_are_compiled_once_and_without_a_mask(tiny: BaselineModel) -> None:
    torch._dynamo.reset()
    tokens = torch.randint(0, 32, (2, 8))
    expected = tiny.logits(tokens)
    masks = []
    for layer in tiny.layers:
        layer.register_forward_pre_hook(lambda _, __, given: masks.append(given["attention_mask"]), with_kwargs=True)
    tiny.logits(tokens)
    assert masks == [None] * 3
    for layer in tiny.layers:
        layer._forward_pre_hooks.clear()
        layer._forward_pre_hooks_with_kwargs.clear()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    assert tiny.compile(backend=counter, fullgraph=True) == "layers compiled"
    torch.testing.assert_close(tiny.logits(tokens), expected)
    tiny.logits(tokens).sum().backward()
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_another_model_is_compiled_as_a_whole() -> None:
    model = torch.nn.Linear(4, 4)
    counter = torch._dynamo.testing.CompileCounter()
    assert BaselineModel(model, model).compile(backend=counter) == "compiled"
    model(torch.ones(1, 4))
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_taken_in_the_named_precision(dtype: torch.dtype, tiny: BaselineModel) -> None:
    seen = []
    before = [p.detach().clone() for p in tiny.model.parameters()]
    projection = next(m for m in tiny.model.modules() if isinstance(m, torch.nn.Linear))
    projection.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    stepper(tiny.model, tiny.loss, torch.device("cpu"), dtype)(torch.randint(0, 32, (2, 9)))
    assert seen == [dtype]
    assert not all(torch.equal(a, b) for a, b in zip(before, tiny.model.parameters(), strict=True))
