"""`make bench-analysis`: what reading SmolLM2 costs beside a plain forward pass and beside other ways to the numbers.

Time and peak memory of a row of 512, 1024 and 2048 tokens in one thread: the model's own forward pass with the loss
(SDPA); the analysis of `sinks analyze`; and for `Numbers`, a few of those that the analysis gives and that all must
agree on, a `Reader` of the groups that hold them, transformers' eager attention with `output_attentions`, and
TransformerLens's `run_with_cache`, if it is installed. Times are CPU seconds, taken in turns; the peak is that of a
process of its own for each.
"""

import argparse
import contextlib
import functools
import importlib
import io
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.turns import in_turns, print_provenance
from sinks.interop.analyze import Measured, measure, row_losses
from sinks.interop.load import Pretrained, load_pretrained
from sinks.interop.rows import read_rows
from sinks.interop.seam import implementation
from sinks.interop.sites import huggingface_sites
from sinks.observe import Reader
from sinks.observe.groups import GROUPS, Group
from sinks.record import Statistics
from sinks.stats.accumulators import Accumulators

LENGTHS = (512, 1024, 2048)
SHORT = 16
PLAIN, OURS, SAME = "plain forward", "sinks analyze", "Reader"
EAGER, LENS = "output_attentions", "TransformerLens"
CONTESTANTS = (PLAIN, OURS, SAME, EAGER, LENS)
SAME_GROUPS = ("residual", "mass", "rows", "keys")  # those that hold `Numbers`


class Numbers(NamedTuple):
    """What every contestant but the plain forward gives.

    Args:
        first_token_mass: [layers, heads] mean over queries but the first.
        entropy: [layers, heads] mean over queries, in nats.
        alpha: [layers, heads, 4] mean mass that each of the first four keys receives.
        max_abs: [layers, 2] largest |h| of a block's input at token 0, and elsewhere.
    """

    first_token_mass: Tensor
    entropy: Tensor
    alpha: Tensor
    max_abs: Tensor


def reduced(weights: Iterable[Tensor], streams: Iterable[Tensor]) -> Numbers:
    """The numbers of the weights [1, H, T, T] and the input [1, T, D] of each block."""
    found: list[list[Tensor]] = [[], [], [], []]
    for a in weights:
        found[0].append(a[0, :, 1:, 0].mean(-1))
        found[1].append(torch.special.entr(a[0]).sum(-1).mean(-1))
        seen = torch.arange(a.shape[-1], a.shape[-1] - 4, -1)
        found[2].append(a[0, ..., :4].sum(1) / seen)
    for h in streams:
        found[3].append(torch.stack([h[0, 0].abs().max(), h[0, 1:].abs().max()]))
    return Numbers(*map(torch.stack, found))


def analyzed(pretrained: Pretrained) -> Callable[[Tensor], Measured]:
    """Rows as `sinks analyze` reads them; the model's sites are found before, once."""
    sites = huggingface_sites(pretrained.model)
    return lambda row: measure(pretrained.model, sites, pretrained, row, batch_size=1, progress=False)


def read(pretrained: Pretrained) -> Callable[[Tensor], Numbers]:
    """Rows as a reader of no more than the groups that hold the numbers reads them."""
    reader = Reader(huggingface_sites(pretrained.model), groups=SAME_GROUPS)

    def run(row: Tensor) -> Numbers:
        with reader.reading():
            row_losses(pretrained.model, row)
        return numbers_of(reader.summarize()[1])

    return run


def numbers_of(found: Statistics) -> Numbers:
    arrays = {name: torch.from_numpy(array[0]) for name, array in found.arrays.items()}
    blocks = ["attention.norm" in site for site in found.sites["norm"]]
    mass, entropy, alpha = (arrays[f"attention/{name}"] for name in ("first_token_mass", "entropy", "alpha"))
    return Numbers(mass, entropy, alpha, arrays["residual/max_abs"][torch.tensor(blocks)])


@torch.no_grad()
def eager(pretrained: Pretrained, row: Tensor) -> Numbers:
    with implementation(pretrained.model, "eager"):
        out = pretrained.model(row, use_cache=False, output_attentions=True, output_hidden_states=True)
    return reduced(out.attentions, out.hidden_states[:-1])


def lens(pretrained: Pretrained) -> Callable[[Tensor], Numbers]:
    """TransformerLens's run with a cache, on weights of its own: it changes the model that it is given.

    Raises:
        ImportError: if it is not installed.
    """
    source = importlib.import_module("transformer_lens.model_bridge.sources.transformers")
    with contextlib.redirect_stdout(io.StringIO()):
        model = source.boot(str(pretrained.folder), device="cpu")
    wanted = re.compile(r"blocks\.\d+\.(attn\.hook_pattern|hook_resid_pre)")

    @torch.no_grad()
    def run(row: Tensor) -> Numbers:
        _, cache = model.run_with_cache(row, names_filter=lambda name: wanted.fullmatch(name) is not None)
        layers = range(model.cfg.n_layers)
        return reduced((cache["pattern", i] for i in layers), (cache["resid_pre", i] for i in layers))

    return run


def contestant(name: str, pretrained: Pretrained) -> Callable[[Tensor], object]:
    """What is measured under a name, of a row [1, T].

    Raises:
        ImportError: if it is not installed.
    """
    if name == PLAIN:
        return functools.partial(row_losses, pretrained.model)
    if name == EAGER:
        return functools.partial(eager, pretrained)
    return {OURS: analyzed, SAME: read, LENS: lens}[name](pretrained)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def in_plain_forwards(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Time of each in plain forward passes, median of the turns; all have run before."""
    seconds = in_turns({name: functools.partial(cpu_seconds, run) for name, run in runs.items()}, repeats, warm_up=0)
    return {
        name: statistics.median(a / b for a, b in zip(values, seconds[PLAIN], strict=True))
        for name, values in seconds.items()
    }


def require_agreement(runs: dict[str, Callable[[Tensor], object]], row: Tensor) -> None:
    """Run each once, and check that all give the same numbers.

    Raises:
        AssertionError: if they do not.
    """
    runs[PLAIN](row)
    found = [runs[name](row) for name in runs.keys() - {PLAIN}]
    numbers = [numbers_of(x.statistics) if isinstance(x, Measured) else x for x in found]
    for others in numbers[1:]:
        torch.testing.assert_close(others, numbers[0], rtol=1e-3, atol=1e-4)


def peak_mb(name: str, tokens: int) -> tuple[float, float]:
    """Peak memory in MB of one run in a process of its own: above the loaded model, and of the whole process."""
    command = [sys.executable, "-m", "benchmarks.analysis_speed", f"--peak={name}", f"--lengths={tokens}"]
    above, whole = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
    return float(above), float(whole)


def print_peak(name: str, pretrained: Pretrained, row: Tensor) -> None:
    """Print the two numbers of `peak_mb`, of this process."""
    run = contestant(name, pretrained)
    run(row[:, :SHORT])  # the weights are in memory from here on
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = _memory_mb("VmRSS")
    run(row)
    peak = _memory_mb("VmHWM")
    print(peak - before, peak)


def _memory_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) * 1024 / 1e6


def compare(pretrained: Pretrained, rows: dict[int, Tensor], repeats: int) -> None:
    """Print time and peak memory of each contestant for each length."""
    runs: dict[str, Callable[[Tensor], object]] = {}
    for name in CONTESTANTS:
        try:
            runs[name] = contestant(name, pretrained)
        except ImportError as reason:
            print(f"{name} is not compared: {reason}")
    for tokens, row in rows.items():
        require_agreement(runs, row)
        times = in_plain_forwards({name: functools.partial(run, row) for name, run in runs.items()}, repeats)
        peaks = {name: peak_mb(name, tokens) for name in runs}
        for name, time_ratio in times.items():
            (above, whole), (plain_above, plain_whole) = peaks[name], peaks[PLAIN]
            print(
                f"{tokens:5d} tokens  {name:<18} time {time_ratio:6.2f}   memory above the model {above:6,.0f} MB, "
                f"{above / plain_above:5.2f}   of the process {whole:6,.0f} MB, {whole / plain_whole:5.2f}",
                flush=True,
            )


def shares(pretrained: Pretrained, row: Tensor, repeats: int) -> None:
    """Print where the extra time of reading a row goes, in plain forward passes.

    What two groups need, such as a token's median, counts with the first of them.
    """
    model, whole = pretrained.model, analyzed(pretrained)
    reader = Reader(huggingface_sites(model))
    spent = dict.fromkeys(GROUPS, 0.0)
    reader.groups = [replace(group, accumulators=functools.partial(_timed, group, spent)) for group in reader.groups]

    def read_all() -> None:
        with reader.reading():
            row_losses(model, row)

    runs: tuple[Callable[[], object], ...] = (
        functools.partial(row_losses, model, row), read_all, functools.partial(whole, row),
    )  # fmt: skip

    def turn() -> dict[str, float]:
        plain, reading, analysis = (cpu_seconds(run) for run in runs)
        rest = {"sums of weights": reading - plain - sum(spent.values()), "detection, summary": analysis - reading}
        found = {name: seconds / plain for name, seconds in (spent | rest).items()}
        spent.update(dict.fromkeys(spent, 0.0))
        return found

    read_all()
    reader.summarize()  # chooses the sink dimensions
    turns = in_turns({"": turn}, repeats, warm_up=1)[""]
    print(f"extra time of {row.shape[1]} tokens, in plain forward passes:")
    for name in turns[0]:
        print(f"  {name:<18} {statistics.median(found[name] for found in turns):+.3f}", flush=True)


def _timed(group: Group, spent: dict[str, float], record: Any, dimensions: Tensor | None) -> Accumulators | None:
    start = time.process_time()
    accumulators = group.accumulators(record, dimensions)
    spent[group.name] += time.process_time() - start
    return accumulators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a row")
    parser.add_argument("--peak", choices=CONTESTANTS, help="only the peak memory of one, in MB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pretrained = load_pretrained("smollm2")
    rows = {tokens: read_rows(pretrained, None, 1, tokens).tokens for tokens in options.lengths}
    if options.peak:
        print_peak(options.peak, pretrained, rows[options.lengths[0]])
        return
    print(f"SmolLM2-135M, one row, one thread; ratios to a plain forward pass, median of {options.repeats} turns")
    compare(pretrained, rows, options.repeats)
    shares(pretrained, rows[options.lengths[0]], options.repeats)
    print_provenance("transformers", "transformer-lens")


if __name__ == "__main__":
    main()
