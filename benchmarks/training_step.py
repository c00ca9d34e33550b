"""`make bench`: a training step at the text-cpu size, in one process.

Against Hugging Face's Llama of the same shape, and with statistics against without. Reported is the median of the
per-turn ratios.
"""

import argparse
import functools
import statistics
import time

import torch

from benchmarks.gpu_report import recipe
from benchmarks.gpu_report.baselines import Step, llama, sampled, stepper
from benchmarks.turns import in_turns, print_provenance
from sinks.families import Baseline, CausalLM
from sinks.models.decoder import Architecture
from sinks.observe.groups import GROUPS

CPU = torch.device("cpu")
VOCAB_SIZE, CONTEXT_LENGTH, BATCH_SIZE = 4096, 256, 8


def architecture() -> Architecture:
    """The one of experiments/models/text-cpu.yaml."""
    return recipe.architecture(recipe.layered("models/text-cpu.yaml")["model"])


def ours() -> CausalLM:
    model = Baseline(VOCAB_SIZE, CONTEXT_LENGTH, architecture=architecture())
    model.configure_model()
    return model


def statistics_cost(repeats: int) -> None:
    """Print the extra time of a step with statistics, for all groups and for each."""
    model = ours()
    step = stepper(model, model, CPU)
    everything = list(GROUPS)
    kinds = {"all groups": everything, "residual": ["residual"]}
    kinds |= {name: ["residual", name] for name in everything if name != "residual"}
    seconds = interleaved({"none": step} | {n: sampled(step, model, groups) for n, groups in kinds.items()}, repeats)
    extra = {
        name: statistics.median(a / b - 1 for a, b in zip(seconds[name], seconds["none"], strict=True))
        for name in kinds
    }
    print("extra time of a sampled step, in steps; every group includes residual:")
    for name, value in extra.items():
        print(
            f"  {name:<16} {value:+.3f}"
            + ("" if name in ("all groups", "residual") else f"  alone {value - extra['residual']:+.3f}")
        )
    print(f"overhead of training with statistics at interval 50: {100 * extra['all groups'] / 50:.2f} %")


def interleaved(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, taken in turns."""
    rows = torch.randint(0, VOCAB_SIZE, (BATCH_SIZE, CONTEXT_LENGTH + 1))

    def timed(step: Step) -> float:
        start = time.perf_counter()
        step(rows)
        return time.perf_counter() - start

    return in_turns({name: functools.partial(timed, step) for name, step in steps.items()}, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--statistics-repeats", type=int, default=6)
    options = parser.parse_args()
    repeats = options.repeats
    torch.manual_seed(0)
    own, other = ours(), llama(architecture(), VOCAB_SIZE, CONTEXT_LENGTH)
    models: dict[str, torch.nn.Module] = {"sinks": own, "llama": other.model}
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    steps = {"sinks": stepper(own, own, CPU), "llama": stepper(other.model, other.logits, CPU)}
    seconds = interleaved(steps, repeats)
    tokens = BATCH_SIZE * CONTEXT_LENGTH
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["llama"], seconds["sinks"], strict=True)]
    for name, median in medians.items():
        low, high = min(seconds[name]), max(seconds[name])
        print(
            f"{name:6} {parameters[name]:>10,} parameters  median {1e3 * median:7.1f} ms "
            f"({1e3 * low:.1f} ... {1e3 * high:.1f})  {tokens / median:9,.0f} tokens/s"
        )
    print(f"tokens per second over Llama's: {statistics.median(ratios):.3f} (median of {repeats} pairs)")
    statistics_cost(options.statistics_repeats)
    print_provenance()


if __name__ == "__main__":
    main()
