"""`make bench`: a training step at the text-cpu size, in one process.

Beside Hugging Face's Llama of the same shape, and with statistics beside without. The rivals take turns, step by step,
so that a noisy machine is noisy for all; what counts is the median of the ratios of a turn.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import nn

from sinks.callbacks import SinkStatistics
from sinks.callbacks.groups import GROUPS
from sinks.families import Baseline, CausalLM
from sinks.models.decoder import Architecture
from sinks.record.provenance import provenance

ROOT = Path(__file__).parents[2]
VOCAB_SIZE, CONTEXT_LENGTH, BATCH_SIZE = 4096, 256, 8


def architecture() -> Architecture:
    """The one of experiments/models/text-cpu.yaml."""
    content = yaml.safe_load((ROOT / "experiments/models/text-cpu.yaml").read_text())
    return Architecture(**content["model"]["init_args"]["architecture"])


def ours() -> CausalLM:
    model = Baseline(VOCAB_SIZE, CONTEXT_LENGTH, architecture=architecture())
    model.configure_model()
    return model


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = architecture()
    heads = shape.n_heads
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=shape.d_model,
            intermediate_size=shape.ffn_hidden,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=heads,
            num_key_value_heads=shape.n_kv_heads or heads,
            head_dim=shape.head_dim or shape.d_model // heads,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=shape.tied_embeddings,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )


def stepper(model: nn.Module, logits: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], None]:
    """One optimiser step on rows [B, T + 1], with what training does around it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(rows: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(logits(rows[:, :-1]).flatten(0, 1).float(), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def sampled(
    step: Callable[[torch.Tensor], None], model: CausalLM, leave_out: list[str]
) -> Callable[[torch.Tensor], None]:
    """A step on which statistics are taken: taps on for the forward, totals moved to the host."""
    callback = SinkStatistics(leave_out=leave_out)  # type: ignore[arg-type]
    callback._attach(model)

    def run(rows: torch.Tensor) -> None:
        callback._attach(model)
        callback._moments = {}
        callback._switch(True)
        hook = model.register_forward_hook(lambda *_: callback._switch(False))
        step(rows)
        hook.remove()
        callback._choose_dimensions(callback._totals(), torch.device("cpu"))

    return run


def statistics_cost(repeats: int) -> None:
    """Print what a sampled step costs over one without statistics, for all groups and for each."""
    model = ours()
    step = stepper(model, model)
    everything = list(GROUPS)
    kinds: dict[str, list[str]] = {"all groups": []}
    kinds |= {"residual": [g for g in everything if g != "residual"]}
    kinds |= {name: [g for g in everything if g not in ("residual", name)] for name in everything if name != "residual"}
    seconds = interleaved({"none": step} | {n: sampled(step, model, out) for n, out in kinds.items()}, repeats)
    extra = {
        name: statistics.median(a / b - 1 for a, b in zip(seconds[name], seconds["none"], strict=True))
        for name in kinds
    }
    print("extra time of a sampled step, in steps; residual comes along with every group:")
    for name, value in extra.items():
        print(
            f"  {name:<16} {value:+.3f}"
            + ("" if name in ("all groups", "residual") else f"  alone {value - extra['residual']:+.3f}")
        )
    print(f"overhead of training with statistics at interval 50: {100 * extra['all groups'] / 50:.2f} %")


def interleaved(steps: dict[str, Callable[[torch.Tensor], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, taken in turns."""
    rows = torch.randint(0, VOCAB_SIZE, (BATCH_SIZE, CONTEXT_LENGTH + 1))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step(rows)
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--statistics-repeats", type=int, default=6)
    options = parser.parse_args()
    repeats = options.repeats
    torch.manual_seed(0)
    own, other = ours(), llama()
    parameters = {name: sum(p.numel() for p in m.parameters()) for name, m in (("sinks", own), ("llama", other))}
    seconds = interleaved({"sinks": stepper(own, own), "llama": stepper(other, lambda x: other(x).logits)}, repeats)
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
    print(
        json.dumps({k: v for k, v in provenance().items() if k in ("commit", "dirty", "versions", "device", "threads")})
    )


if __name__ == "__main__":
    main()
