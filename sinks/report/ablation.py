"""Run folders sorted into variants and seeds: the input of reports, figures and notebooks."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast, get_args

from sinks.errors import UserError
from sinks.record import RunFolder, find_runs
from sinks.record.folder import NotRecorded
from sinks.record.yaml_file import read_yaml
from sinks.report.measured import PROBES, QUANTIZATION, results

Side = Literal["none", "attention", "residual", "both", "unknown"]
Mechanism = Literal["none", "unnormalized", "clipped", "absorbed", "gated", "projected", "unknown"]
# Not the paper's: it expects nothing of a variant with one of these (exclusive self-attention), and claims nothing.
NOT_THE_PAPERS: frozenset[Mechanism] = frozenset({"projected"})

OLD_SPELLINGS = {"unnormalised": "unnormalized"}
# Summary keys that reveal a run's mechanism when no ablation file states it.
MECHANISM_BY_KEY: dict[str, Mechanism] = {
    "clipped_share": "clipped",
    "gate_mean": "gated",
    "norm_gate_mean": "gated",
    "learned_sink_mass": "absorbed",
}

# Kinds of the entries of an ablation file that are no single text, and of the values in them.
SHAPES: dict[str, tuple[type, type | tuple[type, ...]]] = {
    "name": (str, object),
    "question": (str, object),
    "configs": (list, str),
    "steps": (int, object),
    "seeds": (list, int),
    "variants": (dict, (dict, type(None))),
    "commands": (list, str),
    "run_seconds": (dict, (int, float)),
    "scales": (dict, dict),
    "axes": (dict, dict),
    "factors": (dict, str),
    "tokens_curve": (list, str),
    "equal_parameters": (bool, object),
}
VARIANT_SHAPES: dict[str, tuple[type, type | tuple[type, ...]]] = {
    "config": (str, object),
    "needs": (str, object),
    "against": (str, object),
    "arguments": (dict, object),
    "measured": (dict, dict),
    "paper_row": (dict, (int, float, str)),
    "public": (str, object),
    "recipe": (dict, (int, float, type(None))),
    "scaled": (dict, (int, float)),
    "published": (dict, object),
    "without": (list, str),
    "has": (list, str),
    "of": (str, object),
    "at": (dict, str),
}


@dataclass(frozen=True)
class Run:
    """One finished run.

    Args:
        folder: its folder.
        seed: its seed; None if the run was not seeded.
        summary: summary.json.
    """

    folder: RunFolder
    seed: int | None
    summary: Mapping[str, Any]

    def value(self, key: str) -> float | None:
        """A finite number of the summary, or None."""
        value = self.summary.get(key)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    @property
    def diverged(self) -> bool:
        """A run without validation has no loss, or null; an older one states a loss that is not finite."""
        loss = self.summary.get("val_loss")
        return bool(self.summary.get("diverged")) or (loss is not None and not math.isfinite(loss))

    @property
    def seed_name(self) -> str:
        return "unseeded" if self.seed is None else str(self.seed)

    @cached_property
    def precision(self) -> str | None:
        """The trainer's; None where the configuration states none."""
        trainer = self.folder.config().get("trainer")
        precision = trainer.get("precision") if isinstance(trainer, Mapping) else None
        return None if precision is None else str(precision)

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        try:
            return self.folder.provenance()
        except NotRecorded:
            return {}


@dataclass(frozen=True)
class PaperRow:
    """What the paper reports of a variant, a single run.

    Args:
        outliers: the largest |h| at the end.
        loss: at the end, in nats per token.
        reference: the variant that the paper compares it with.
        diverges: whether the run diverged.
    """

    outliers: float | None = None
    loss: float | None = None
    reference: str | None = None
    diverges: bool = False

    @property
    def words(self) -> str:
        if self.diverges:
            return "Diverges."
        known = {"outliers": self.outliers, "loss": self.loss}
        return f"{', '.join(f'{name} {value:g}' for name, value in known.items() if value is not None)}.".capitalize()


@dataclass
class Variant:
    """The runs of one variant over its seeds.

    Args:
        name: the folder's name.
        label: its name in tables.
        short: its name in figures.
        side: which sink it acts on.
        runs: finished runs that did not diverge, sorted by seed.
        diverged: finished runs that diverged: results, but never averaged with the others.
        unfinished: folders without summary.json.
        missing: seeds in the ablation file that were never started.
        paper: what the paper reports or expects, in words.
        paper_row: what the paper reports of it; None if the ablation file states nothing.
        public: what others have published of it, in a sentence with its source.
        recipe: numbers from earlier scratch runs.
        mechanisms: how it handles sinks.
        steps: optimizer steps that its own arguments request; None where they are the ablation's.
        has: the ablation's factors that it combines; None if the ablation file does not say.
        against: name of the variant that it is compared with, if not the ablation's baseline; its own for none.
        of: label of the variant whose point it is, in an ablation with axes.
        at: axis -> its value at that point.
    """

    name: str
    label: str
    short: str
    side: Side = "unknown"
    runs: list[Run] = field(default_factory=list)
    diverged: list[Run] = field(default_factory=list)
    unfinished: list[RunFolder] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    paper: str = ""
    paper_row: PaperRow | None = None
    public: str = ""
    recipe: Mapping[str, float] = field(default_factory=dict)
    mechanisms: frozenset[Mechanism] = frozenset({"unknown"})
    steps: int | None = None
    has: frozenset[str] | None = None
    against: str | None = None
    of: str = ""
    at: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> list[Run]:
        """The runs that represent the variant in a figure; diverged ones only if there are no others."""
        return self.runs or self.diverged


@dataclass
class Ablation:
    """Everything below one folder.

    Args:
        root: the folder.
        name: short name.
        title: heading of the report.
        variants: those with a run, finished or not, in row order.
        not_run: labels of variants that exist only in the ablation file.
        baseline: what the others are compared with; None without a run of it that did not diverge.
        steps: optimizer steps requested by the ablation file.
        recipe_source: where the `recipe` numbers come from.
        file: the ablation file that `sinks grid` read.
        commands: how to repeat the ablation, if the ablation file states it.
        factors: names of what its variants combine, if the ablation file states them.
        tokens_curve: names of the baseline's variants on more and more tokens, if the ablation file states them.
        question: what it asks, in a sentence; empty if its file does not say.
        broken: a line for each run folder that cannot be read, which is left out.
    """

    root: Path
    name: str
    title: str
    variants: list[Variant]
    not_run: list[str] = field(default_factory=list)
    baseline: Variant | None = None
    steps: int | None = None
    recipe_source: str | None = None
    file: str | None = None
    commands: list[str] = field(default_factory=list)
    factors: Mapping[str, str] = field(default_factory=dict)
    tokens_curve: list[str] = field(default_factory=list)
    question: str = ""
    broken: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        """Every finished run, including diverged ones."""
        return [run for variant in self.variants for run in variant.runs + variant.diverged]


def _name_and_seed(folder: RunFolder) -> tuple[str, int | None]:
    """From `.../<variant>/seed<k>`; from the summary if the folder has another layout, or the run no seed."""
    path = folder.path.resolve()
    summary = folder.summary() if folder.finished else {}
    match = re.fullmatch(r"seed(\d+)", path.name)
    name = path.parent.name if match else str(summary.get("variant") or path.name)
    stated = summary.get("seed", 0)
    if stated is None or stated is False:
        return name, None
    return name, int(match[1] if match else stated)


def by_seed(seed: int | None) -> tuple[bool, int]:
    """Sort key: runs without a seed come last."""
    return (True, 0) if seed is None else (False, seed)


def _validate_same_runs(name: str, runs: list[Run], needs: bool) -> None:
    """Runs of one variant must share everything but the seed.

    A variant that takes a value from another run of the same seed (`needs`, e.g. a clipping threshold) has a
    fingerprint per seed, so only its steps and tokens are compared.
    """
    for key in ("content_fingerprint", *(() if needs else ("variant_fingerprint",)), "steps", "tokens"):
        whole = [run for run in runs if not (run.diverged or run.summary.get("stopped_early"))]
        counted = whole if key in ("steps", "tokens") else runs
        known = [run for run in counted if run.summary.get(key) is not None]
        for first, second in pairwise(known):
            if first.summary[key] != second.summary[key]:
                raise UserError(
                    f"{first.folder.path} and {second.folder.path} are both variant {name}, but differ in {key} "
                    f"({first.summary[key]} and {second.summary[key]}): delete the stale one and run it again, "
                    "or report one ablation at a time"
                )
    for first, second in pairwise(sorted((run for run in runs if run.seed is not None), key=lambda run: run.seed or 0)):
        if first.seed == second.seed:
            raise UserError(
                f"{first.folder.path} and {second.folder.path} are both variant {name} seed {first.seed}: "
                "report one ablation at a time"
            )


def read_ablation_file(file: Path) -> dict[str, Any]:
    """An ablation file, in which every entry has the shape that its readers take.

    Raises:
        UserError: naming the file and the entry that has another.
    """
    content = read_yaml(file)
    _check_shapes(str(file), content, SHAPES)
    for name, description in (content.get("variants") or {}).items():
        _check_shapes(f"{file}: variant {name}", {} if description is None else description, VARIANT_SHAPES)
        _check_paper_row(f"{file}: variant {name}", (description or {}).get("paper_row") or {}, content["variants"])
        stated(file, name, description or {})
    check_factors(file, content)
    return content


def _check_paper_row(where: str, row: Mapping[str, Any], variants: Mapping[str, Any]) -> None:
    known = PaperRow.__dataclass_fields__
    if unknown := set(row) - set(known):
        raise UserError(f"{where} has {min(unknown)!r} in paper_row: give {', '.join(known)}")
    if row.get("reference", next(iter(variants))) not in variants:
        raise UserError(f"{where} has paper_row.reference {row['reference']!r}, which is no variant: name one of them")


def check_factors(file: Path, content: Mapping[str, Any]) -> None:
    """Validate that variants combine factors that the ablation names, each combination once.

    Raises:
        UserError: naming the file and the variant that does not.
    """
    found: dict[frozenset[str], str] = {}
    for name, description in (content.get("variants") or {}).items():
        if "has" not in (description or {}):
            continue
        has = frozenset(description["has"])
        if unknown := has - set(content.get("factors") or {}):
            raise UserError(f"{file}: variant {name} has {min(unknown)!r}, which is none of its factors: name it there")
        if found.setdefault(has, name) != name:
            raise UserError(
                f"{file}: variants {found[has]} and {name} have the same factors, of which only one would count: leave "
                "`has` out of one of them"
            )


def _check_shapes(where: str, content: Any, shapes: Mapping[str, tuple[type, type | tuple[type, ...]]]) -> None:
    """Validate the kinds of the entries that are there, and of the values in them."""
    if not isinstance(content, dict):
        raise UserError(f"{where} is {type(content).__name__}, but must be a mapping: see experiments/ablations/")
    for key, (kind, of) in shapes.items():
        value = content.get(key)
        values = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        if value is not None and not (isinstance(value, kind) and all(isinstance(item, of) for item in values)):
            raise UserError(f"{where} has {key} {value!r}, but must have a {kind.__name__}: see experiments/ablations/")


def load_ablation(root: str | Path) -> Ablation:
    """Every run below `root`, with their descriptions in `root/ablation.yaml`.

    Raises:
        UserError: no such folder, no run in it, or runs of one variant that differ in more than the seed.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give one that contains runs, such as runs/backcopy")
    every = [folder for folder in find_runs(root) if not folder.analyzed]
    if not every:
        raise UserError(f"{root} contains no run: train one with `sinks fit --run.dir {root}/baseline/seed0`")
    problems = {folder.path: problem for folder in every if (problem := _problem(folder))}
    broken = list(problems.values())
    folders = [folder for folder in every if folder.path not in problems]
    if not folders:
        raise UserError(broken[0])
    if not any(folder.finished for folder in folders):
        raise UserError(f"{root} has {len(folders)} runs, but none is finished: run the same command again to resume")
    file = root / "ablation.yaml"
    content = read_ablation_file(file) if file.is_file() else {}
    described: dict[str, dict[str, Any]] = {str(k): v or {} for k, v in (content.get("variants") or {}).items()}
    grouped: dict[str, list[tuple[int | None, RunFolder]]] = {}
    for folder in folders:
        name, seed = _name_and_seed(folder)
        grouped.setdefault(name, []).append((seed, folder))
    names = [name for name in described if name in grouped] + sorted(set(grouped) - set(described))
    variants = [_variant(name, grouped[name], described.get(name, {}), content.get("seeds") or []) for name in names]
    if not described:
        variants.sort(key=lambda variant: (variant.name != "baseline", variant.name))
    baseline_name = str(content.get("baseline") or "baseline")
    baseline = next((variant for variant in variants if variant.name == baseline_name and variant.runs), None)
    if baseline is not None and not described:
        baseline.side = "none"
    name = str(content.get("name") or root.resolve().name)
    return Ablation(
        root=root,
        name=name,
        title=str(content.get("title") or name),
        variants=variants,
        not_run=[str(about.get("label") or name) for name, about in described.items() if name not in grouped],
        baseline=baseline,
        steps=content.get("steps"),
        recipe_source=content.get("recipe_source"),
        file=content.get("file"),
        commands=[str(command) for command in content.get("commands") or []],
        factors=content.get("factors") or {},
        tokens_curve=content.get("tokens_curve") or [],
        question=str(content.get("question") or ""),
        broken=broken,
    )


def _problem(folder: RunFolder) -> str | None:
    """Why a run folder cannot be read, in a line; None if all that is recorded can."""
    reads: list[Callable[[], Any]] = [folder.config, folder.provenance, folder.metrics]
    reads += [partial(folder.statistics, stage) for stage in ("train", "validation")]
    reads += [partial(results, folder.path, kind) for kind in (PROBES, QUANTIZATION)]
    if folder.finished:
        reads.append(folder.summary)
    for read in reads:
        try:
            read()
        except NotRecorded:
            continue
        except UserError as error:
            return str(error)
    return None


def _variant(
    name: str, folders: list[tuple[int | None, RunFolder]], description: Mapping[str, Any], seeds: list[int]
) -> Variant:
    side, mechanisms = stated("ablation.yaml", name, description)
    row = PaperRow(**description["paper_row"]) if description.get("paper_row") else None
    finished = [
        Run(folder, seed, folder.summary())
        for seed, folder in sorted(folders, key=lambda pair: (by_seed(pair[0]), str(pair[1].path)))
        if folder.finished
    ]
    _validate_same_runs(name, finished, needs="needs" in description)
    label = str(description.get("label") or name)
    return Variant(
        name=name,
        label=label,
        short=str(description.get("short") or label.split(" (")[0]),
        side=side,
        runs=[run for run in finished if not run.diverged],
        diverged=[run for run in finished if run.diverged],
        unfinished=[folder for _, folder in folders if not folder.finished],
        missing=sorted(set(seeds) - {seed for seed, _ in folders}) if description else [],
        paper=" ".join(filter(None, [row.words if row else "", str(description.get("paper") or "")])),
        paper_row=row,
        public=str(description.get("public") or ""),
        recipe=description.get("recipe") or {},
        mechanisms=mechanisms or _revealed(finished),
        steps=(description.get("arguments") or {}).get("trainer.max_steps"),
        has=frozenset(description["has"]) if "has" in description else None,
        against=description.get("against"),
        of=str(description.get("of") or ""),
        at=description.get("at") or {},
    )


def stated(file: str | Path, name: str, description: Mapping[str, Any]) -> tuple[Side, frozenset[Mechanism] | None]:
    """The side and mechanisms that an ablation file states for a variant; None if it states no mechanism.

    Raises:
        UserError: either is unknown.
    """
    side = description.get("side", "unknown")
    if side not in get_args(Side):
        raise UserError(f"{file}: variant {name} has side {side!r}: give one of {', '.join(get_args(Side))}")
    if "mechanism" not in description:
        return side, None
    given = description["mechanism"]
    words = [OLD_SPELLINGS.get(str(word), str(word)) for word in (given if isinstance(given, list) else [given])]
    if not words or not set(words) <= set(get_args(Mechanism)):
        known = ", ".join(get_args(Mechanism))
        raise UserError(f"{file}: variant {name} has mechanism {given!r}: give one or a list of {known}")
    return side, frozenset(cast(list[Mechanism], words))


def _revealed(runs: list[Run]) -> frozenset[Mechanism]:
    found = {kind for key, kind in MECHANISM_BY_KEY.items() if any(run.summary.get(key) is not None for run in runs)}
    return frozenset(found or {"unknown"})
