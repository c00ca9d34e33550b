"""Stage d: a training step under torch.compile at two widths: every variant, statistics, and baseline models."""

import gc
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_report.baselines import BASELINE_MODELS, Step, sampled, stepper
from benchmarks.gpu_report.goals import LARGE
from benchmarks.gpu_report.recipe import architecture, build, layered, over
from benchmarks.gpu_report.stage_context import StageContext
from benchmarks.kernels.measure import Bench, compile_alike, reason_of, roofs
from benchmarks.tables import number, table
from sinks.families import CausalLM
from sinks.models.decoder import Architecture
from sinks.models.execution import Execution
from sinks.plan.peak import dense_peak

BASELINE = "baseline"
# In order of interest; those covered by the fused ops must meet the goal.
COVERED = (
    "gated-both", "gated-norm", "gated-attention", "learnable-sink", "sigmoid-attention", "gated-attention-headwise",
    "off-by-one",
)  # fmt: skip
OTHERS = ("pre-affine", "dyt", "key-value-bias", "clip-norm-input")
# (name, whether a baseline model is compiled)
CONTESTANTS = (
    *((name, False) for name in COVERED[:1]),
    *((name, compiled) for name in BASELINE_MODELS for compiled in (False, True)),
    *((name, False) for name in (*COVERED[1:], *OTHERS)),
)
INTERVAL = 50
# A variant's reduced feed-forward width is rounded to full tensor-core tiles, or the comparison would be one of
# alignments; parameters then differ by up to 1 %.
FFN_MULTIPLE = 64
# A slice of the 2B: fewer layers and a smaller vocabulary, so that the head is the same fraction of the work. Without
# query and key norms, which the paper does not state and a Llama does not have.
SLICE_LAYERS = 8
SLICE = {"n_layers": SLICE_LAYERS, "qk_norm": False}


@dataclass(frozen=True)
class Width:
    """One shape at which everything is measured.

    Args:
        name: in tables.
        section: `model` section of a recipe, without a family.
        vocab_size: number of token ids.
        context_length: tokens T.
        batch_size: rows B.
    """

    name: str
    section: dict[str, Any]
    vocab_size: int
    context_length: int
    batch_size: int

    @property
    def shape(self) -> Architecture:
        """The baseline's."""
        return architecture(self.section)

    @property
    def tokens(self) -> int:
        return self.batch_size * self.context_length

    def variant(self, name: str, ffn_hidden: int | None = None) -> CausalLM:
        """A variant of this shape, compiled, parameters not yet created."""
        changes = {} if ffn_hidden is None else {"ffn_hidden": ffn_hidden}
        section = over(layered(f"variants/{name}.yaml")["model"], with_architecture(self.section, changes))
        return build(section, self.vocab_size, self.context_length, execution=Execution(compile=True))

    def matched(self, name: str) -> CausalLM:
        """A variant with its feed-forward narrowed to match the baseline's number of parameters."""
        counts = [parameters(self.variant(BASELINE, n * FFN_MULTIPLE)) for n in (1, 2)]
        a_hidden_channel = (counts[1] - counts[0]) / FFN_MULTIPLE
        surplus = parameters(self.variant(name)) - parameters(self.variant(BASELINE))
        hidden = self.shape.ffn_hidden - surplus / a_hidden_channel
        return self.variant(name, FFN_MULTIPLE * max(1, round(hidden / FFN_MULTIPLE)))


def parameters(model: CausalLM) -> int:
    """Number of parameters, without creating them."""
    return sum(p.numel() for p in model.meta_decoder().parameters())


def with_architecture(section: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A `model` section with other widths."""
    return over(section, {"init_args": {"architecture": changes}})


def widths(dry: bool) -> list[Width]:
    """The 2B's width first: the goals are set there."""
    large, small = layered("models/2b.yaml")["model"], layered("models/60m.yaml")["model"]
    large_data, small_data = (layered(f"data/{name}.yaml")["data"]["init_args"] for name in ("qwen-text", "text-60m"))
    if dry:
        tiny = with_architecture(large, SLICE | {"d_model": 32, "n_layers": 1, "head_dim": 16, "ffn_hidden": 256})
        return [Width(LARGE, tiny, 64, 16, 2)]
    vocab_size = round(large_data["vocab_size"] * SLICE_LAYERS / architecture(large).n_layers / 128) * 128
    return [
        Width(LARGE, with_architecture(large, SLICE), vocab_size, large_data["context_length"], 4),
        Width("60m", small, small_data["vocab_size"], small_data["context_length"], 16),
    ]


class Runner:
    """Builds steps and times them in turns, so that noise affects all alike.

    Args:
        context: the stage's.
        width: shape.
        measured_flops: rate of a large matrix product on this machine.
    """

    def __init__(self, context: StageContext, width: Width, measured_flops: float) -> None:
        self.device, self.dry, self.width, self.measured_flops = context.device, context.dry, width, measured_flops
        generator = torch.Generator().manual_seed(0)
        size = (width.batch_size, width.context_length + 1)
        self.rows = torch.randint(0, width.vocab_size, size, generator=generator).to(self.device)
        self.turns, self.seconds_a_turn = (2, 0.0) if context.dry else (8, 0.4)

    def ours(self, model: CausalLM) -> Step:
        """A step of one of our models; its parameters are created on the device."""
        with self.device:
            model.configure_model()
        return stepper(model.to(self.device), model.loss, self.device)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, steps: list[Step]) -> float:
        """Total wall time of consecutive steps."""
        self.synchronize()
        start = time.perf_counter()
        for step in steps:
            step(self.rows)
        self.synchronize()
        return time.perf_counter() - start

    def warm_up(self, step: Step) -> float | None:
        """Compile and warm up; peak memory in MiB, None without a GPU."""
        for _ in range(1 if self.dry else 3):
            step(self.rows)
        self.synchronize()
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        step(self.rows)
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) / 2**20

    def in_turns(self, *steps: Step) -> list[list[float]]:
        """Seconds per step: one list per contestant, one number per turn."""
        count = max(1, round(self.seconds_a_turn / max(self.seconds([steps[0]]), 1e-6)))
        found: list[list[float]] = [[] for _ in steps]
        for _ in range(self.turns):
            for step, own in zip(steps, found, strict=True):
                own.append(self.seconds([step] * count) / count)
        return found

    def statistics_overhead(self, plain: Step, model: CausalLM) -> float:
        """Fraction of extra time with statistics every `INTERVAL` steps; sampled steps are uncompiled.

        Args:
            plain: a step of the model.
            model: whose taps are read.
        """
        with_statistics = uncompiled(sampled(plain, model))
        with_statistics(self.rows)
        count = 2 if self.dry else 5
        turns = [
            (self.seconds([with_statistics] + [plain] * (count - 1)), self.seconds([plain] * count))
            for _ in range(self.turns)
        ]
        return statistics.median((longer - usual) / (usual / count) for longer, usual in turns) / INTERVAL


def uncompiled(step: Step) -> Step:
    """The same step, run eagerly."""

    def run(rows: torch.Tensor) -> None:
        with torch.compiler.set_stance("force_eager"):
            step(rows)

    return run


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    """At each width the baseline, then everything else in turns with it.

    What an earlier command measured was in turns with the baseline's steps then; only its ratios are compared.
    """
    if context.dry:
        torch.compiler.set_stance("force_eager")  # compilation would dominate a dry run
    matmul = roofs(Bench(context.device, context.dry))["matmul_tflops"] * 1e12
    result: dict[str, Any] = {
        "peak_flops": dense_peak(context.device),
        "rows": [row for row in context.before.get("rows", ()) if "refused" not in row],
        "missing": unavailable(),
        "faults": [],
        "left_out": [],
    }
    for width in widths(context.dry):
        yield from _at(context, width, matmul, result)
    yield result


def unavailable() -> dict[str, str]:
    """Why baseline models are missing, by name."""
    missing = {}
    tiny = widths(dry=True)[0]
    for name, build_model in BASELINE_MODELS.items():
        try:
            build_model(tiny.shape, tiny.vocab_size, tiny.context_length)
        except ImportError as reason:
            missing[name] = str(reason)
    return missing


def _at(context: StageContext, width: Width, measured_flops: float, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    known = {(row["contestant"], row["compiled"]): row for row in result["rows"] if row["width"] == width.name}
    todo = [(name, c) for name, c in CONTESTANTS if (name, c) not in known and name not in result["missing"]]
    first = known.get((BASELINE, False))
    if first is not None and "statistics_overhead" in first and not todo:
        return
    if context.late:
        result["left_out"].append(f"everything else at {width.name}" if known else f"everything at {width.name}")
        return
    compile_alike()
    gc.collect()
    runner = Runner(context, width, measured_flops)
    before = _allocated(context.device)
    model = width.variant(BASELINE)
    flops = model.flops_per_token().per_token
    baseline = runner.ours(model)
    if first is None:
        first = _row(runner, result, BASELINE, model, (baseline,), flops, before)
        first |= {"contestant": BASELINE, "compiled": False}
        result["rows"].append(first)
        yield result
    else:
        runner.warm_up(baseline)
    if "statistics_overhead" not in first:
        try:
            first["statistics_overhead"] = runner.statistics_overhead(baseline, model)
        except Exception as failure:
            result["faults"].append(f"statistics at {width.name}: {reason_of(failure)}")
        yield result
    for name, compiled in todo:
        label = name + (", compiled" if compiled else "")
        if context.late:
            result["left_out"].append(f"{label} at {width.name}")
            continue
        gc.collect()
        before = _allocated(context.device)
        try:
            if name in BASELINE_MODELS:
                row = _baseline_model(runner, result, name, compiled, baseline, flops, before)
            else:
                row = _variant(runner, result, name, baseline, before)
        # A failure, e.g. out of memory, is a row of the table, and the others continue.
        except Exception as failure:
            row = {"width": width.name, "name": label, "covered": name in COVERED, "refused": reason_of(failure)}
        result["rows"].append(row | {"contestant": name, "compiled": compiled})
        yield result


def _allocated(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


def _variant(runner: Runner, result: dict[str, Any], name: str, baseline: Step, before: float) -> dict[str, Any]:
    width = runner.width
    model = width.matched(name)
    step, flops = runner.ours(model), model.flops_per_token().per_token
    row = _row(runner, result, name, model, (baseline, step), flops, before)
    return row | {"ffn_hidden": model.architecture.ffn_hidden, "covered": name in COVERED}


def _baseline_model(
    runner: Runner, result: dict[str, Any], name: str, compiled: bool, baseline: Step, flops: float, before: float
) -> dict[str, Any]:
    width = runner.width
    with runner.device:
        other = BASELINE_MODELS[name](width.shape, width.vocab_size, width.context_length)
    model = other.model
    label = name + (f", {other.compile()}" if compiled else "")
    step = stepper(model, other.loss, runner.device)
    row = _row(runner, result, label, model, (baseline, step), flops, before)
    return row | {"baseline_model": True}


def _row(
    runner: Runner, result: dict[str, Any], name: str, model: torch.nn.Module, steps: tuple[Step, ...], flops: float,
    before: float,
) -> dict[str, Any]:  # fmt: skip
    """The last of `steps` timed in turns with the first, which is the baseline's; `before`: MiB allocated earlier."""
    width, peak = runner.width, runner.warm_up(steps[-1])
    turns = runner.in_turns(*steps)
    of_baseline, own = turns[0], turns[-1]
    tokens_per_second = width.tokens / statistics.median(own)
    count = sum(p.numel() for p in model.parameters())
    first = next((row["parameters"] for row in result["rows"] if row["width"] == width.name), count)
    rate = tokens_per_second * flops
    return {
        "width": width.name,
        "name": name,
        "parameters": count,
        "parameters_to_baseline": count / first,
        "tokens_per_second": tokens_per_second,
        "baseline_tokens_per_second": width.tokens / statistics.median(of_baseline),
        "to_baseline": statistics.median(a / b for a, b in zip(of_baseline, own, strict=True)),
        "spread": max(own) / min(own) - 1,
        "mfu": None if result["peak_flops"] is None else rate / result["peak_flops"],
        "measured_flops": runner.measured_flops,
        "of_measured_rate": rate / runner.measured_flops,
        "peak_mib": None if peak is None else peak - before,
    }


def markdown(result: dict[str, Any]) -> str:
    """One table per width."""
    known = result["peak_flops"]
    rates = dict.fromkeys(f"{row['measured_flops'] / 1e12:.2f}" for row in result["rows"] if "refused" not in row)
    lines = [
        "# d. A training step",
        "",
        "bfloat16 autocast, AdamW, clipping; blocks compiled by torch.compile. Contestants take turns with the "
        "baseline; medians. Variants have the baseline's number of parameters within 1 %: their feed-forward is "
        "narrowed. MFU: FLOPs of the model (causal attention counted half) over the data sheet's dense rate, "
        f"here {f'{known / 1e12:.0f} TFLOP/s' if known else 'unknown'}; of measured: over a large matrix product in "
        f"the same command, {'; '.join(rates)} TFLOP/s. Statistics: extra time of training with statistics every "
        f"{INTERVAL} steps. Of Hugging Face's Llama the layers are compiled, like our blocks: compiled as a whole "
        "before torch 2.14, it builds a T x T mask, so SDPA cannot use its fused causal kernels. Our loss is computed "
        "a chunk of logits at a time, that of baseline models by torch of whole logits, at a cost of time and memory.",
    ]
    for name in dict.fromkeys(row["width"] for row in result["rows"]):
        lines += ["", f"## {name}"]
        lines += table(
            " | parameters | feed-forward | tokens/s | to baseline | MFU | of measured | peak MiB | statistics",
            (_cells(row) for row in result["rows"] if row["width"] == name),
        )
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[Any]:
    if "refused" in row:
        return [row["name"], row["refused"]]
    cells = [row["name"], f"{row['parameters'] / 1e6:.1f} M", row.get("ffn_hidden", "")]
    cells += [f"{row['tokens_per_second']:,.0f}", f"{row['to_baseline']:.3f}", number(row["mfu"], ".1%")]
    cells += [number(row["of_measured_rate"], ".1%"), number(row["peak_mib"], ".0f")]
    return [*cells, number(row.get("statistics_overhead"), ".2%")]
