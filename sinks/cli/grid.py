"""`sinks grid`: every run of an ablation, several side by side, as one line of progress."""

import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sinks.cli.axes import with_axes
from sinks.cli.grid_progress import GridProgress, duration
from sinks.cli.same_runs import take_over
from sinks.cli.scales import at_scale
from sinks.cli.schedule import PlannedRun, last_step, run_side_by_side
from sinks.errors import UserError, require
from sinks.record.folder import write_atomically
from sinks.record.yaml_file import read_yaml

REQUIRED = ("name", "configs", "steps", "seeds", "variants")
STEPS = "trainer.max_steps"
CPU_PRECISION = "${cpu_precision:}"
# The grid has a line of its own; a run's would be in its way.
QUIET = ("--progress.enabled=false", "--notes.enabled=false")


def read_ablation(file: Path, scale: str | None = None) -> dict[str, Any]:
    """The content of an ablation file at one of its scales, validated."""
    from sinks.report.ablation import check_factors, read_ablation_file

    if not file.is_file():
        raise UserError(
            f"there is no ablation file {file}: the project's repository, not its package, has experiments/ablations/"
        )
    ablation = read_ablation_file(file)
    if ablation.get("variants"):
        ablation = at_scale(file, with_axes(file, ablation), scale)
        check_factors(file, ablation)
    missing = [name for name in REQUIRED if not ablation.get(name)]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}: an ablation needs {', '.join(REQUIRED)}")
    for name, variant in ablation["variants"].items():
        if not variant or "config" not in variant:
            raise UserError(f"{file}: variant {name} has no config: give its YAML file")
        for key in ("needs", "against"):
            if variant.get(key, name) not in ablation["variants"]:
                known = ", ".join(ablation["variants"])
                raise UserError(f"{file}: variant {name} has {key} {variant[key]!r}: give one of {known}")
        if ("measured" in variant) != ("needs" in variant):
            raise UserError(
                f"{file}: variant {name} must have both or neither of needs (a variant) and measured (options)"
            )
        for option, source in variant.get("measured", {}).items():
            if "key" not in source:
                raise UserError(
                    f"{file}: variant {name} measures {option} as {source!r}, but must name a key of summary.json: "
                    "give e.g. {key: residual_p999, times: 0.5}"
                )
    for config in [*ablation["configs"], *(v["config"] for v in ablation["variants"].values())]:
        if not Path(config).is_file():
            raise UserError(f"{file} names {config}, which does not exist: paths start in the project's root")
    return ablation


def chosen(kind: str, wanted: str | None, offered: list[str]) -> list[str]:
    """The wanted entries of a comma-separated list, in the order offered; all of them if none are named."""
    names = [name.strip() for name in wanted.split(",") if name.strip()] if wanted else offered
    for name in names:
        if name not in offered:
            raise UserError(f"{kind} {name!r} is not in the ablation: choose among {', '.join(offered)}")
    return [name for name in offered if name in names]


def with_needed(ablation: dict[str, Any], names: list[str]) -> list[str]:
    """The variants and those that they need, each after the one it needs.

    Raises:
        UserError: if a variant needs itself, through others or not.
    """
    ordered: dict[str, None] = {}
    for name in names:
        chain = [name]
        while (needs := ablation["variants"][chain[-1]].get("needs")) is not None:
            if needs in chain:
                raise UserError(f"variant {needs} needs itself ({' needs '.join([*chain, needs])}): remove one needs")
            chain.append(needs)
        ordered |= dict.fromkeys(reversed(chain))
    return list(ordered)


def planned(
    ablation: dict[str, Any], root: Path, variants: list[str], seeds: list[int], steps: int
) -> list[PlannedRun]:
    """The runs of some variants and of those that they need, each after the one it needs.

    Raises:
        UserError: if steps are not the ablation's, but a variant is on its curve of tokens.
    """
    runs = []
    for name in with_needed(ablation, variants):
        variant = ablation["variants"][name]
        if name in ablation.get("tokens_curve", ()) and steps != ablation["steps"]:
            raise UserError(
                f"steps is {steps}, but variant {name} of {ablation['name']} is on a curve of tokens, with steps of "
                "its own: leave steps and minutes out, or edit the file"
            )
        configs = [variant["config"], *ablation["configs"]]
        for seed in seeds:
            folder = root / name / f"seed{seed}"
            options: dict[str, Any] = {
                "run.dir": folder,
                "run.variant": name,
                "seed_everything": seed,
                "data.seed": seed,
            }
            options |= {STEPS: steps} | variant.get("arguments", {})
            arguments = [*(part for config in configs for part in ("-c", config))]
            arguments += [f"--{key}={value}" for key, value in options.items()]
            measured = variant.get("measured", {})
            runs.append(
                PlannedRun(
                    name=f"{name} seed {seed}",
                    folder=folder,
                    steps=options[STEPS],
                    arguments=arguments,
                    configs=[Path(config) for config in configs],
                    needs=root / variant["needs"] / f"seed{seed}" if "needs" in variant else None,
                    measured={option: (source["key"], source.get("times", 1.0)) for option, source in measured.items()},
                )
            )
    return runs


def shell_command(run: PlannedRun) -> str:
    """The run as one line for a shell, where a measured option is taken from the run it needs."""
    taken = [
        f'--{option}="$(sinks {shlex.join(["value", str(run.needs), key, f"--times={times}"])})"'
        for option, (key, times) in run.measured.items()
    ]
    return " ".join([shlex.join(["sinks", "fit", *run.arguments]), *taken])


def trainer_of(ablation: dict[str, Any]) -> dict[str, Any]:
    """The trainer's options in the configuration files of an ablation, as they stand there."""
    sections = [read_yaml(Path(file)).get("trainer") or {} for file in ablation["configs"]]
    return {option: value for section in sections for option, value in section.items()}


def precision_of(ablation: dict[str, Any]) -> str:
    """That runs of an ablation have on this machine."""
    from sinks.runs.precision import cpu_precision

    precision = trainer_of(ablation).get("precision", "32-true")
    return cpu_precision() if precision == CPU_PRECISION else precision


def steps_within(ablation: dict[str, Any], minutes: float, runs: int, jobs: int) -> int:
    """Steps of each of a number of runs, the same for all, that take about so many minutes together.

    Raises:
        UserError: if a run of the ablation was not timed in this machine's precision.
    """
    require("minutes", minutes, above=0, remedy="give e.g. 60")
    precision = precision_of(ablation)
    seconds = (ablation.get("run_seconds") or {}).get(precision)
    if seconds is None:
        raise UserError(
            f"minutes is {minutes}, but {ablation['name']} has no run_seconds for {precision}: give steps, or write "
            f"how long a run of {ablation['steps']} steps takes into the ablation's file"
        )
    together = min(jobs, runs)
    return max(1, int(minutes * 60 * together / runs * ablation["steps"] / seconds))


def where(ablation: dict[str, Any], runs: list[PlannedRun], jobs: int) -> str:
    """What the runs run on, in which precision, and about how long."""
    from sinks.record.provenance import processor
    from sinks.runs.precision import has_bfloat16

    trainer, precision = trainer_of(ablation), precision_of(ablation)
    told = f"{trainer.get('accelerator', 'auto')}, {precision}"
    if trainer.get("precision") == CPU_PRECISION:
        told = f"{processor()}, {precision}, as the CPU has {'' if has_bfloat16() else 'no '}bfloat16 instructions"
    seconds = (ablation.get("run_seconds") or {}).get(precision)
    if seconds is None or runs[0].steps != ablation["steps"]:  # shorter runs are mostly their start
        return told
    to_do = sum(run.steps - last_step(run) for run in runs if not run.done)
    return f"{told}; about {duration(seconds * to_do / ablation['steps'] / jobs)} where this was measured"


def grid(
    ablation: Path,
    seeds: str | None = None,
    variants: str | None = None,
    steps: int | None = None,
    runs: Path = Path("runs"),
    jobs: int | None = None,
    launch: str = "",
    commands: bool = False,
    minutes: float | None = None,
    scale: str | None = None,
    recorded: Path | None = None,
) -> None:
    """Train every run of an ablation that is not finished, several at a time, and print their folder.

    A run that another ablation below `runs` has finished, with the same fingerprint, is copied and not trained.

    Args:
        ablation: a file of experiments/ablations/.
        seeds: comma-separated seeds, if not all of the file's.
        variants: comma-separated variants, if not all of the file's; the variants they need are added.
        steps: optimizer steps, if not the file's; such runs get a folder of their own.
        runs: parent folder of the runs.
        jobs: runs at a time, one thread each; one per core by default.
        launch: command in front of each run's, e.g. "srun --gpus=1".
        commands: print the commands instead, in an order in which they can run.
        minutes: that all runs may take together, in place of steps; as many steps for each as were timed to fit.
        scale: one of those that the file offers, if it does; by default its first.
        recorded: folder of results of `sinks record`, whose runs count as finished too; they have no checkpoints.
    """
    content = read_ablation(ablation, scale)
    names = with_needed(content, chosen("variant", variants, list(content["variants"])))
    try:
        chosen_seeds = [int(seed) for seed in seeds.split(",")] if seeds else content["seeds"]
    except ValueError:
        raise UserError(f"seeds are {seeds!r}, but must be whole numbers with commas between: give e.g. 0,1") from None
    chosen_seeds = [require("a seed", seed, at_least=0, remedy="give e.g. 0,1") for seed in dict.fromkeys(chosen_seeds)]
    at_once: int = cores() if jobs is None else jobs
    require("jobs", at_once, at_least=1, remedy="leave it out for one per core")
    if steps is not None and minutes is not None:
        raise UserError(f"steps is {steps} and minutes is {minutes}, but both give the length of a run: give one")
    if minutes is not None:
        steps = steps_within(content, minutes, len(names) * len(chosen_seeds), at_once)
    length: int = content["steps"] if steps is None else steps
    require("steps", length, at_least=1, remedy="give a positive number")
    root = runs / (content["name"] if length == content["steps"] else f"{content['name']}-{length}steps")
    if content.get("equal_parameters"):
        from sinks.cli.equal_parameters import with_equal_parameters

        content = with_equal_parameters(content, names)
    plan = planned(content, root, names, chosen_seeds, length)
    if commands:
        print("\n".join(map(shell_command, plan)))
        return
    for line in take_over(plan, [runs, *([recorded] if recorded else [])]):
        print(line, file=sys.stderr)
    done = sum(run.done for run in plan)
    state = f", {done} of them finished" if done else ""
    shortest, longest = min(run.steps for run in plan), max(run.steps for run in plan)
    steps_of = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    print(
        f"{len(plan)} runs of {steps_of} steps ({len(names)} variants x {len(chosen_seeds)} seeds) in {root}{state}; "
        f"{at_once} at a time",
        file=sys.stderr,
    )
    all_seeds = sorted({*chosen_seeds, *_seeds_in(root, content["variants"])})
    shown = content | {"seeds": all_seeds, "steps": length, "file": str(ablation)}
    write_atomically(root / "ablation.yaml", yaml.safe_dump(shown, sort_keys=False))
    failed = []
    if done < len(plan):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core per run
        print(where(content, plan, at_once), file=sys.stderr)
        quiet = [replace(run, arguments=[*run.arguments, *QUIET]) for run in plan]
        progress = GridProgress(quiet)
        try:
            failed = run_side_by_side(quiet, at_once, launch, progress)
        finally:
            progress.close()
    print(root)
    if failed:
        raise SystemExit(1)


def _seeds_in(root: Path, variants: Iterable[str]) -> set[int]:
    """Those of runs that earlier grids left in the folder."""
    names = (folder.name.removeprefix("seed") for variant in variants for folder in (root / variant).glob("seed*"))
    return {int(name) for name in names if name.isdecimal()}


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
