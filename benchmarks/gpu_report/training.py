"""Stage e: trains the 60M families on the installed text: do natural sinks emerge, and when?"""

import shutil
import traceback
from collections.abc import Iterator
from typing import Any

import lightning
import torch
import torch._dynamo
from lightning.pytorch.callbacks import Callback

from benchmarks.gpu_report.recipe import layered, over, train_sections
from benchmarks.gpu_report.stage_context import StageContext
from benchmarks.gpu_report.text import InstalledText, prepare
from benchmarks.kernels.measure import reason_of
from benchmarks.tables import number, table
from sinks.callbacks import RunRecorder
from sinks.data.module import TokenData
from sinks.record import RunFolder

# The baseline first: without its sinks the other results are not informative.
FAMILIES = (
    "baseline",
    "gated-both",
    "gated-attention",
    "gated-norm",
    "learnable-sink",
    "sigmoid-attention",
    "pre-affine",
)
LEAST_MINUTES = 3.0  # per family; in fewer no sink can be expected
# Of the time that other families had in an earlier command: with less, a family waits for the next.
LEAST_FRACTION = 0.9
VALIDATE_EVERY = 200
INFORMATIVE = 0.1
SEED = 0
CURVES = {
    "sink_ratio_0.3": "validation/attention/sink_ratio_0.3",
    "first_token_mass_max_head": "validation/attention/first_token_mass_max_head",
    "residual_sink_score": "validation/residual/sink_score",
    "residual_max_over_median": "validation/residual/max_over_median",
    "loss": "validation/loss",
}
DRY = {
    "model": {"init_args": {"architecture": {"d_model": 32, "n_layers": 2, "n_heads": 2, "ffn_hidden": 48}}},
    "data": {"init_args": {"vocab_size": 300, "context_length": 24, "batch_size": 4, "validation_batch_size": 4,
                           "validation_rows": 8, "num_workers": 0}},
    "trainer": {"max_steps": 4, "val_check_interval": 2, "log_every_n_steps": 2, "accelerator": "cpu"},
}  # fmt: skip


class Clock(Callback):
    """Ends training when its time is up, including validation and compilation.

    Args:
        seconds: from the start of training.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._recorder: RunRecorder | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._recorder = next(c for c in trainer.callbacks if isinstance(c, RunRecorder))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._recorder is not None
        if self._recorder.wall_s > self.seconds:
            trainer.should_stop = True


def configuration(dry: bool) -> dict[str, Any]:
    """Sections of the recipe: experiments/models/60m.yaml, data/text-60m.yaml and trainers/gpu.yaml."""
    sections = layered("models/60m.yaml", "data/text-60m.yaml", "trainers/gpu.yaml")
    sections["trainer"] |= {"max_steps": -1, "val_check_interval": VALIDATE_EVERY}
    return over(sections, DRY) if dry else sections


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    """Prepare the text, then train each family for the same time.

    A family whose training was interrupted starts again, in a later command with as much time as the others had.
    """
    sections = configuration(context.dry)
    options = sections["data"]["init_args"]
    text = prepare(context.folder, options["vocab_size"], most_bytes=300_000 if context.dry else None)
    given = {name: value for name, value in options.items() if name not in ("vocab_size", "bos")}
    data = InstalledText(text, seed=SEED, **given)
    families = list(FAMILIES[:2] if context.dry else FAMILIES[: max(1, int(context.minutes / LEAST_MINUTES))])
    result: dict[str, Any] = {"text": vars(data.content), "recipe": sections, "seed": SEED}
    # On another machine there may be other text, on which the losses are not comparable.
    before = context.before if context.before.get("text") == result["text"] else {}
    result |= {"runs": before.get("runs", [])[:], "faults": [], "left_out": []}
    todo = [family for family in families if family not in {run["family"] for run in result["runs"]}]
    left = context.seconds_left
    result["seconds_each"] = each = before["seconds_each"] if result["runs"] else left / len(families)
    count = affordable(len(todo), left, each)
    result["left_out"] += todo[count:]
    yield result
    for position, family in enumerate(todo[:count]):
        seconds = min(each, context.seconds_left / (count - position))
        if seconds <= 0:
            result["left_out"].append(family)
            continue
        section = over(layered(f"variants/{family}.yaml")["model"], sections["model"])
        folder = RunFolder(context.folder / family)
        shutil.rmtree(folder.path, ignore_errors=True)
        torch._dynamo.reset()  # the recompile limit applies to all families together
        try:
            # Compilation would dominate a dry run.
            recipe, clock = sections | {"model": section}, Clock(seconds)
            summary = train_sections(folder.path, recipe, data, compile=not context.dry, callbacks=[clock])
        # A family that fails is reported, and the others continue.
        except Exception as failure:
            traceback.print_exc()
            result["faults"].append(f"{family}: {reason_of(failure)}")
        else:
            result["runs"].append({"family": family, "summary": summary, "curves": curves(folder, data)})
        yield result
    yield result


def affordable(count: int, left: float, each: float) -> int:
    """How many of `count` families can train for about `each` of `left` seconds."""
    return min(count, int(left / (LEAST_FRACTION * each))) if left > 0 else 0


def curves(folder: RunFolder, data: TokenData) -> dict[str, list[float]]:
    """Validation metrics over training tokens."""
    per_step = data.batch_size * data.context_length
    steps, _ = folder.series(CURVES["loss"])
    found: dict[str, list[float]] = {"tokens": [int(step) * per_step for step in steps]}
    for name, key in CURVES.items():
        known = dict(zip(*(array.tolist() for array in folder.series(key)), strict=True))
        found[name] = [known.get(int(step), float("nan")) for step in steps]
    return found


def markdown(result: dict[str, Any]) -> str:
    """Final numbers and curves of every family."""
    text = result["text"]
    optimization = result["recipe"]["model"]["init_args"]["optimization"]
    lines = [
        "# e. Natural sinks at 60M",
        "",
        f"{text['train_tokens'] / 1e6:.1f} M training tokens from {text['files']} files ({text['bytes'] / 1e6:.0f} MB) "
        f"of this machine's Python (fingerprint {text['fingerprint']}), {text['vocab_size']} token ids, no `<bos>`; "
        f"learning rate {optimization['lr']}, weight decay {optimization['weight_decay']}, one seed. "
        "Families train for equal times, so compare them at equal tokens. If the baseline's Sink^0.3 is below "
        f"{INFORMATIVE}, the sinks of the others are not informative.",
    ]
    lines += table(
        f"family | tokens | epochs | loss | Sink^0.3 | M tokens until {INFORMATIVE} | first-token mass, strongest head "
        "| residual-sink score | max over median | tokens/s | MFU | waiting for data",
        (_cells(run, text["train_tokens"]) for run in result["runs"]),
    )
    for run in result["runs"]:
        found = run["curves"]
        lines += ["", f"## {run['family']} over tokens"]
        lines += table(
            " | ".join(["M tokens", *CURVES]),
            (
                [f"{found['tokens'][i] / 1e6:.1f}", *(number(found[name][i], ".3f") for name in CURVES)]
                for i in thinned(len(found["tokens"]))
            ),
        )
    return "\n".join(lines) + "\n"


def _cells(run: dict[str, Any], train_tokens: int) -> list[str]:
    found = run["summary"]
    cells = [run["family"] + (" (diverged)" if found["diverged"] else ""), f"{found['tokens'] / 1e6:.1f} M"]
    cells += [f"{found['tokens'] / train_tokens:.2f}", number(found["val_loss"], ".3f")]
    cells += [number(found["sink_ratio_0.3"], ".3f"), emergence(run["curves"])]
    forms = {"first_token_mass_max_head": ".3f", "residual_sink_score": ".1f", "residual_max_over_median": ".1f"}
    cells += [number(found[name], form) for name, form in (forms | {"tokens_per_second": ",.0f"}).items()]
    return [*cells, number(found.get("mfu"), ".3f"), f"{100 * found.get('data_wait_share', float('nan')):.2f} %"]


def emergence(curves: dict[str, list[float]]) -> str:
    """Million tokens at the first validation with enough sinks, "-" if there was none."""
    pairs = zip(curves["tokens"], curves["sink_ratio_0.3"], strict=True)
    return next((f"{tokens / 1e6:.0f}" for tokens, ratio in pairs if ratio >= INFORMATIVE), "-")


def thinned(count: int, most: int = 20) -> list[int]:
    """Indices of at most `most` of `count` points, evenly spaced, the last among them."""
    wanted = min(count, most)
    return [count - 1 - (wanted - 1 - i) * (count - 1) // max(1, wanted - 1) for i in range(wanted)]
