"""Statistics leave torch.compile its graphs: all blocks share one, and only sampled steps run without it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from sinks.callbacks import RunRecorder
from tests.cli.small import fit

LAYERS = 10  # above torch.compile's limit of 8 graphs for a function
ACCUMULATED = 2


def test_every_unsampled_step_runs_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []
    calls = 0
    calls_by_step: Counter[int] = Counter()

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)

        def run(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return graph(*arguments)

        return run

    def compile_with_counter(self: torch.nn.Module) -> None:
        self._compiled_call_impl = torch.compile(self._call_impl, backend=backend)

    step = before = 0
    original_start, original_end = RunRecorder.on_train_batch_start, RunRecorder.on_train_batch_end

    def start(self: Callback, trainer: Any, *rest: Any) -> None:
        nonlocal step, before
        step, before = trainer.global_step + 1, calls
        original_start(self, trainer, *rest)

    def end(self: Callback, trainer: Any, *rest: Any) -> None:
        calls_by_step[step] += calls - before
        original_end(self, trainer, *rest)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_with_counter)
    monkeypatch.setattr(RunRecorder, "on_train_batch_start", start)
    monkeypatch.setattr(RunRecorder, "on_train_batch_end", end)
    torch.compiler.reset()
    options = ("--model.execution.compile=true", f"--model.architecture.n_layers={LAYERS}", "--trainer.max_steps=8")
    fit(tmp_path, *options, "--statistics.interval=4", f"--trainer.accumulate_grad_batches={ACCUMULATED}")
    every = LAYERS * ACCUMULATED
    assert dict(calls_by_step) == {1: 0, 2: every, 3: every, 4: 0, 5: every, 6: every, 7: every, 8: 0}
    assert len(graphs) == 1
