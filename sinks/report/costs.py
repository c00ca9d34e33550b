"""What a variant costs beside what it gains: speed and work relative to the baseline, memory, parameters."""

from collections.abc import Callable, Mapping
from typing import Any

from sinks.record.folder import NotRecorded
from sinks.report.ablation import Run
from sinks.report.outcomes import Comparison, VariantResult
from sinks.report.spread import Spread
from sinks.report.tables import DELTA, MEASURES, NONE, Table, with_half_range, with_interval

PEAK_MEMORY = "train/peak_memory_gb"
NOTE = (
    "Relative to the baseline's run of the same seed; mean and half range over seeds. FLOPs per token are counted from "
    "the modules. Tokens per second are compared on GPUs alone, between runs of the same device, threads, versions, "
    "trainer, data, statistics and execution: several runs may share a CPU, and how many is not recorded. Peak memory "
    "is that of the first GPU."
)
# Of a configuration, what may differ between a variant's run and the baseline's at equal conditions.
OWN = ("model", "run", "progress", "notes", "seed_everything", "ckpt_path", "weights_only")
MACHINE = ("device", "threads", "platform")


def table(comparison: Comparison) -> Table | None:
    """A row per variant with finished runs, the costs that were recorded and what it gains; None without any cost."""
    base = comparison.baseline
    costs: list[tuple[str, Callable[[VariantResult], str]]] = [
        ("parameters", _parameters),
        ("FLOPs per token, relative", lambda result: _relative(result, base, _flops, _same_trainer)),
        ("tokens per second, relative", lambda result: _relative(result, base, _speed, _comparable)),
        ("peak memory, GB", lambda result: with_half_range(Spread.of(map(_memory, result.variant.runs)), 2)),
    ]
    results = [result for result in comparison.results if result.variant.runs]
    columns = [(heading, [cell(result) for result in results]) for heading, cell in costs]
    columns = [(heading, cells) for heading, cells in columns if set(cells) != {NONE}]
    if not columns:
        return None
    gains = [MEASURES[0], MEASURES[2]]
    rows = [
        [
            result.variant.label,
            *(cells[i] for _, cells in columns),
            with_interval(result.loss.difference if result.loss else None, 4),
            *(column.cell(result) for column in gains),
        ]
        for i, result in enumerate(results)
    ]
    headings = [heading for heading, _ in columns]
    return Table(["variant", *headings, f"{DELTA} loss, paired", *(column.heading for column in gains)], rows)


def _parameters(result: VariantResult) -> str:
    found = sorted({int(value) for run in result.variant.runs if (value := run.value("parameters")) is not None})
    return " to ".join(f"{value:,}" for value in dict.fromkeys((found[0], found[-1]))) if found else NONE


def _relative(
    result: VariantResult,
    base: VariantResult | None,
    of: Callable[[Run], float | None],
    comparable: Callable[[Run, Run], bool],
) -> str:
    partners = {run.seed: run for run in base.variant.runs} if base else {}
    ratios = [
        own / other
        for run in result.variant.runs
        if (partner := partners.get(run.seed)) is not None
        and (own := of(run)) is not None
        and (other := of(partner))
        and comparable(run, partner)
    ]
    return with_half_range(Spread.of(ratios), 2)


def _speed(run: Run) -> float | None:
    return run.value("tokens_per_second")


def _flops(run: Run) -> float | None:
    """Per token and process: both rates are over the same time."""
    rate, speed = run.value("tflops_per_second"), _speed(run)
    return rate / speed if rate is not None and speed else None


def _memory(run: Run) -> float | None:
    """The largest of all processes that trained the run."""
    try:
        values = run.folder.series(PEAK_MEMORY)[1]
    except NotRecorded:
        return None
    return float(values.max()) if len(values) else None


def _config(run: Run) -> Mapping[str, Any]:
    try:
        return run.folder.config()
    except NotRecorded:
        return {}


def _same_trainer(run: Run, partner: Run) -> bool:
    """Whether so many processes shared the work."""
    return bool(_config(run).get("trainer") == _config(partner).get("trainer"))


def _comparable(run: Run, partner: Run) -> bool:
    """Whether another speed is the variant's doing; on a CPU, nobody knows what else it computed."""
    if _memory(run) is None or _memory(partner) is None:
        return False
    mine, other = _config(run), _config(partner)
    executions = [(each.get("model") or {}).get("init_args", {}).get("execution") for each in (mine, other)]
    versions = [(each.provenance.get("versions") or {}) for each in (run, partner)]
    return (
        executions[0] == executions[1]
        and all(mine.get(key) == other.get(key) for key in {*mine, *other} - {*OWN})
        and all(run.provenance.get(key) == partner.provenance.get(key) for key in MACHINE)
        and versions[0] == versions[1]
    )
