"""`sinks grid`: an ablation as a Make fragment, one target per run: its summary.json. Make is the scheduler."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from sinks.errors import UserError, require
from sinks.record.folder import write_atomically

REQUIRED = ("name", "configs", "steps", "seeds", "variants")
# What Make takes as one target: no space, and nothing that it expands.
TARGET = re.compile(r"[\w./+@,~-]+")


def read_ablation(file: Path) -> dict[str, Any]:
    """The content of an ablation file, validated."""
    from sinks.report.ablation import read_ablation_file

    if not file.is_file():
        raise UserError(
            f"there is no ablation file {file}: the project's repository, not its package, has experiments/ablations/"
        )
    ablation = read_ablation_file(file)
    missing = [name for name in REQUIRED if not ablation.get(name)]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}: an ablation needs {', '.join(REQUIRED)}")
    for name, variant in ablation["variants"].items():
        if not variant or "config" not in variant:
            raise UserError(f"{file}: variant {name} has no config: give its YAML file")
        if variant.get("needs", name) not in ablation["variants"]:
            known = ", ".join(ablation["variants"])
            raise UserError(f"{file}: variant {name} needs {variant['needs']!r}: give one of {known}")
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


def words(arguments: list[str]) -> str:
    """Arguments as words of a recipe, which Make and then the shell leave as they are."""
    return shlex.join(arguments).replace("$", "$$")


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
            command = words(["fit", *(part for config in configs for part in ("-c", config)), *options])
            before = ""
            # Known only once the run it is taken from has finished, so Make evaluates it then.
            for i, (option, source) in enumerate(variant.get("measured", {}).items()):
                taken = words(["value", str(needs), source["key"], f"--times={source.get('times', 1.0)}"])
                before += f"measured{i}=$$($(SINKS) {taken}) && "
                command += f' --{option}="$$measured{i}"'
            prerequisites = [*configs, *([f"{needs}/summary.json"] if needs else [])]
            targets.append(f"{folder}/summary.json")
            for path in (targets[-1], *prerequisites):
                if not TARGET.fullmatch(path):
                    raise UserError(f"{path!r} cannot be a target of Make: use letters, digits and ./+@,~- in paths")
            recipe = f"@{before}$(LAUNCH) $(SINKS) {command} && touch $@"
            rules.append(f"{targets[-1]}: {' '.join(prerequisites)}\n\t{recipe}")
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
        chosen_seeds = [int(seed) for seed in seeds.split(",")] if seeds else content["seeds"]
    except ValueError:
        raise UserError(f"seeds are {seeds!r}, but must be whole numbers with commas between: give e.g. 0,1") from None
    chosen_seeds = [require("a seed", seed, at_least=0, remedy="give e.g. 0,1") for seed in dict.fromkeys(chosen_seeds)]
    wanted = content["steps"] if steps is None else steps
    require("steps", wanted, at_least=1, remedy="give a positive number")
    name = content["name"] if wanted == content["steps"] else f"{content['name']}-{wanted}steps"
    text = fragment(content, runs / name, names, chosen_seeds, wanted)
    if out is not None and out.is_dir():
        raise UserError(f"{out} is a folder: give --out a file")
    if out is None:
        print(text, end="")
        return
    write_atomically(out, text)
    shown = content | {"seeds": chosen_seeds, "steps": wanted, "file": str(ablation)}
    write_atomically(runs / name / "ablation.yaml", yaml.safe_dump(shown, sort_keys=False))
    print(runs / name)
