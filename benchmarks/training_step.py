"""`make bench`: a training step at the text-cpu size, in one process and thread.

Against the baseline models of the same shape that are installed, eager and compiled, in float32 and under bfloat16
autocast; float32 against bfloat16, with and without the CPU's instructions for it; and with statistics against without.
Reported is the median of the per-turn ratios of CPU seconds, which other processes disturb least.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.gpu_report import recipe
from benchmarks.gpu_report.baselines import BASELINE_MODELS, Step, llama, sampled, stepper
from benchmarks.turns import in_turns, print_provenance
from sinks.families import Baseline, CausalLM
from sinks.models.decoder import Architecture
from sinks.models.execution import Execution
from sinks.observe.groups import GROUPS

CPU = torch.device("cpu")
VOCAB_SIZE, CONTEXT_LENGTH, BATCH_SIZE = 4096, 256, 8
DTYPES = (torch.float32, torch.bfloat16)
# What PyTorch and oneDNN read before they choose instructions: those of a CPU without bfloat16.
WITHOUT_BFLOAT16 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
OURS = "sinks"


def architecture() -> Architecture:
    """The one of experiments/models/text-cpu.yaml."""
    return recipe.architecture(recipe.layered("models/text-cpu.yaml")["model"])


def ours(compiled: bool = False) -> CausalLM:
    execution = Execution(compile=compiled)
    model = Baseline(VOCAB_SIZE, CONTEXT_LENGTH, architecture=architecture(), execution=execution)
    model.configure_model()
    return model


def statistics_cost(repeats: int) -> None:
    """Print the extra time of a step with statistics, for all groups and for each."""
    model = ours()
    step = stepper(model, model.loss, CPU)
    everything = list(GROUPS)
    kinds = {"all groups": everything, "residual": ["residual"]}
    kinds |= {name: ["residual", name] for name in everything if name != "residual"}
    seconds = interleaved({"none": step} | {n: sampled(step, model, groups) for n, groups in kinds.items()}, repeats)
    extra = {name: extra_time(seconds[name], seconds["none"]) for name in kinds}
    print("extra time of a sampled step, in steps; every group includes residual:")
    for name, value in extra.items():
        print(
            f"  {name:<16} {value:+.3f}"
            + ("" if name in ("all groups", "residual") else f"  alone {value - extra['residual']:+.3f}")
        )
    print(f"overhead of training with statistics at interval 50: {100 * extra['all groups'] / 50:.2f} %")


def transformers_statistics_cost(repeats: int) -> None:
    """Print the same overhead for Hugging Face's Llama of this shape, if transformers is installed."""
    try:
        other = llama(architecture(), VOCAB_SIZE, CONTEXT_LENGTH)
    except ImportError as reason:
        print(f"statistics of Hugging Face's Llama are not timed: {reason}")
        return
    step = stepper(other.model, other.loss, CPU)
    seconds = interleaved({"none": step, "all groups": sampled(step, other.model)}, repeats)
    extra = extra_time(seconds["all groups"], seconds["none"])
    print(f"overhead of training Hugging Face's Llama with statistics at interval 50: {100 * extra / 50:.2f} %")


def extra_time(sampled_steps: list[float], plain: list[float]) -> float:
    """Of a sampled step, in steps."""
    return statistics.median(a / b - 1 for a, b in zip(sampled_steps, plain, strict=True))


def interleaved(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each step, taken in turns."""
    rows = torch.randint(0, VOCAB_SIZE, (BATCH_SIZE, CONTEXT_LENGTH + 1))

    def timed(step: Step) -> float:
        start = time.process_time()
        step(rows)
        return time.process_time() - start

    return in_turns({name: functools.partial(timed, step) for name, step in steps.items()}, repeats)


def name_of(model: str, compiled: bool, dtype: torch.dtype) -> str:
    return f"{model}, {'compiled' if compiled else 'eager'}, {str(dtype).removeprefix('torch.')}"


def steps_of(model: str, built: Callable[[bool], tuple[nn.Module, Callable[[Tensor], Tensor]]]) -> dict[str, Step]:
    """Steps of a model, eager and compiled, in both precisions; `built(compiled)` returns it and its loss."""
    steps: dict[str, Step] = {}
    for compiled in (False, True):
        module, loss = built(compiled)
        steps |= {name_of(model, compiled, dtype): stepper(module, loss, CPU, dtype) for dtype in DTYPES}
    return steps


def build_ours(compiled: bool) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    model = ours(compiled)
    return model, model.loss


def build_baseline(name: str, compiled: bool) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A baseline model and its loss.

    Raises:
        ImportError: if it is not installed.
    """
    other = BASELINE_MODELS[name](architecture(), VOCAB_SIZE, CONTEXT_LENGTH)
    if compiled:
        other.compile()
    return other.model, other.loss


def compare(repeats: int) -> None:
    """Print our step beside those of the baseline models."""
    steps, installed = steps_of(OURS, build_ours), []
    for name in BASELINE_MODELS:
        try:
            steps |= steps_of(name, functools.partial(build_baseline, name))
            installed.append(name)
        except ImportError as reason:
            print(f"{name} is not compared: {reason}")
    seconds = interleaved(steps, repeats)
    for compiled in (False, True):
        for dtype in DTYPES:
            name = name_of(OURS, compiled, dtype)
            rate = BATCH_SIZE * CONTEXT_LENGTH / statistics.median(seconds[name])
            ratios = {other: faster(seconds[name_of(other, compiled, dtype)], seconds[name]) for other in installed}
            text = "".join(f"; {ratio:.3f} times {other}'s" for other, ratio in ratios.items())
            print(f"{name:<26} {rate:9,.0f} tokens per CPU second{text}")
    print(f"ratios of tokens per CPU second are medians of {repeats} turns")


def faster(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def compare_precisions(repeats: int) -> None:
    """Print bfloat16 against float32 for the instructions that this process uses."""
    model = ours()
    single, half = interleaved({str(d): stepper(model, model.loss, CPU, d) for d in DTYPES}, repeats).values()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"bfloat16 is {faster(single, half):.3f} times as fast as float32, eager, with {capability}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--statistics-repeats", type=int, default=6)
    parser.add_argument("--precisions", action="store_true", help="only bfloat16 against float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    compare_precisions(options.repeats)
    if options.precisions:
        return
    command = [sys.executable, "-m", "benchmarks.training_step", "--precisions", "--repeats=2"]
    subprocess.run(command, env=os.environ | WITHOUT_BFLOAT16, check=True)
    compare(options.repeats)
    statistics_cost(options.statistics_repeats)
    transformers_statistics_cost(options.statistics_repeats)
    print_provenance()


if __name__ == "__main__":
    main()
