"""`sinks grid`: an ablation as a Make fragment, one target per run: its summary.json. Make is the scheduler."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from sinks.errors import UserError
from sinks.record.folder import write_atomically

REQUIRED = ("name", "configs", "steps", "seeds", "variants")


def read_ablation(file: Path) -> dict[str, Any]:
    """The content of an ablation file, validated."""
    from sinks.report.ablation import stated

    if not file.is_file():
        raise UserError(f"there is no ablation file {file}: choose one of experiments/ablations/")
    ablation = yaml.safe_load(file.read_text(encoding="utf-8"))
    missing = [name for name in REQUIRED if name not in ablation]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}: an ablation needs {', '.join(REQUIRED)}")
    for config in [*ablation["configs"], *(v["config"] for v in ablation["variants"].values())]:
        if not Path(config).is_file():
            raise UserError(f"{file} names {config}, which does not exist: paths are relative to the project's root")
    for name, variant in ablation["variants"].items():
        stated(file, name, variant)
        if ("measured" in variant) != ("needs" in variant):
            raise UserError(
                f"{file}: variant {name} must have both or neither of needs (a variant) and measured (options)"
            )
        for option, source in variant.get("measured", {}).items():
            if not isinstance(source, dict) or "key" not in source:
                raise UserError(
                    f"{file}: variant {name} measures {option} as {source!r}, but must name a key of summary.json: "
                    "give e.g. {key: residual_p999, times: 0.5}"
                )
    return ablation


def chosen(kind: str, wanted: str | None, offered: list[str]) -> list[str]:
    """The wanted entries of a comma-separated list, in the order offered; all of them if none are named."""
    names = [name.strip() for name in wanted.split(",") if name.strip()] if wanted else offered
    for name in names:
        if name not in offered:
            raise UserError(f"{kind} {name!r} is not in the ablation: choose among {', '.join(offered)}")
    return [name for name in offered if name in names]


def fragment(ablation: dict[str, Any], root: Path, variants: list[str], seeds: list[int], steps: int) -> str:
    """The Make fragment: a phony target `grid`, and a rule per run."""
    rules, targets = [], []
    for name in variants:
        variant = ablation["variants"][name]
        configs = [variant["config"], *ablation["configs"]]
        for seed in seeds:
            folder = root / name / f"seed{seed}"
            needs = root / variant["needs"] / f"seed{seed}" if "needs" in variant else None
            arguments = {"run.dir": folder, "run.variant": name, "seed_everything": seed, "data.seed": seed}
            arguments |= {"trainer.max_steps": steps} | variant.get("arguments", {})
            options = [f"--{key}={value}" for key, value in arguments.items()]
            command = shlex.join(["fit", *(part for config in configs for part in ("-c", config)), *options])
            # Known only once the run it is taken from has finished, so Make evaluates it then.
            for option, source in variant.get("measured", {}).items():
                taken = shlex.join(["value", str(needs), source["key"], f"--times={source.get('times', 1.0)}"])
                command += f' --{option}="$$($(SINKS) {taken})"'
            prerequisites = [*configs, *([f"{needs}/summary.json"] if needs else [])]
            targets.append(f"{folder}/summary.json")
            rules.append(f"{targets[-1]}: {' '.join(prerequisites)}\n\t@$(LAUNCH) $(SINKS) {command} && touch $@")
    head = "SINKS ?= sinks\nLAUNCH ?=\n.PHONY: grid\n.DEFAULT_GOAL := grid"
    return "\n\n".join([head, "grid: " + " ".join(targets), *rules]) + "\n"


def grid(
    ablation: Path,
    seeds: str | None = None,
    variants: str | None = None,
    steps: int | None = None,
    runs: Path = Path("runs"),
    out: Path | None = None,
) -> None:
    """Print an ablation as a Make fragment, one target per run.

    Args:
        ablation: a file of experiments/ablations/.
        seeds: comma-separated seeds, if not all of the file's.
        variants: comma-separated variants, if not all of the file's; the variants they need are added.
        steps: optimizer steps, if not the file's; such runs get a folder of their own.
        runs: parent folder of the runs.
        out: file to write the fragment to, and ablation.yaml for the report with the runs; printed if not given.
    """
    content = read_ablation(ablation)
    names = chosen("variant", variants, list(content["variants"]))
    needed = {content["variants"][name].get("needs") for name in names} - {None}
    names = [name for name in content["variants"] if name in {*names, *needed}]
    try:
        chosen_seeds = [int(seed) for seed in seeds.split(",")] if seeds else list(content["seeds"])
    except ValueError:
        raise UserError(f"seeds are {seeds!r}, but must be whole numbers with commas between: give e.g. 0,1") from None
    if steps is not None and steps < 1:
        raise UserError(f"steps is {steps}, but must be at least 1: leave it out for the file's {content['steps']}")
    name = content["name"] if steps in (None, content["steps"]) else f"{content['name']}-{steps}steps"
    text = fragment(content, runs / name, names, chosen_seeds, steps or content["steps"])
    if out is None:
        print(text, end="")
        return
    write_atomically(out, text)
    shown = content | {"seeds": chosen_seeds, "steps": steps or content["steps"], "file": str(ablation)}
    write_atomically(runs / name / "ablation.yaml", yaml.safe_dump(shown, sort_keys=False))
    print(runs / name)
