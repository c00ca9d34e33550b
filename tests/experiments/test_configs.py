"""Every shipped YAML file is usable."""

import inspect
import itertools
import random
from pathlib import Path

import pytest
import torch

from sinks.cli import main
from sinks.cli.grid import planned, read_ablation
from sinks.cli.training import TrainingCLI, command_line
from sinks.data.module import TokenData
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.record import RunFolder
from sinks.record.yaml_file import read_yaml
from tests.cli.small import ALIKE, NEEDS_THRESHOLD, in_order

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
SIZES = {"backcopy": ("models/backcopy.yaml", "data/backcopy.yaml"), "text": ("models/text-cpu.yaml", "data/text.yaml")}


# A plan reads no data, but takes the vocabulary and the context from its section.
PLANNED_WITH = {
    "models/backcopy.yaml": "data/backcopy.yaml",
    "models/text-cpu.yaml": "data/text.yaml",
    "models/text-sinks.yaml": "data/text-sinks.yaml",
    "models/table1-backcopy.yaml": "data/backcopy.yaml",
    "models/table1-text.yaml": "data/text-sinks.yaml",
    "models/60m.yaml": "data/text-60m.yaml",
    "models/2b.yaml": "data/qwen-text.yaml",
    "models/smollm2.yaml": "data/smollm2-text.yaml",
    "models/7b-a2b.yaml": "data/qwen-text.yaml",
    "models/24b-a3b.yaml": "data/qwen-text.yaml",
    "models/hybrid-moe-cpu.yaml": "data/backcopy.yaml",
}
ON_GPUS = ("60m", "2b")  # scales whose trainers need one


def names(folder: str) -> list[str]:
    return sorted(str(p.relative_to(EXPERIMENTS)) for p in (EXPERIMENTS / folder).rglob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_the_projects_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def parsed(*arguments: str) -> TrainingCLI:
    return command_line(["--run.dir=runs/test", *arguments, "--trainer.max_steps=1"], run=False)


def built(*arguments: str) -> tuple[CausalLM, TokenData]:
    cli = parsed(*arguments)
    return cli.model, cli.datamodule


def built_slowly(variant: str, size: str) -> bool:
    return size != "backcopy" and Path(variant).stem in ALIKE


@pytest.mark.parametrize(
    ("variant", "size"),
    [
        pytest.param(variant, size, marks=[pytest.mark.slow] if built_slowly(variant, size) else [])
        for variant, size in itertools.product(names("variants"), SIZES)
        if "table1/" not in variant  # those, by their ablation
    ],
)
def test_every_variant_is_built_at_every_cpu_size(variant: str, size: str) -> None:
    files = [*in_order(variant, *SIZES[size]), "trainers/cpu.yaml"]
    arguments = [f"--config={EXPERIMENTS / file}" for file in files]
    if Path(variant).stem in NEEDS_THRESHOLD:
        arguments.append("--model.residual_threshold=10")
    model, data = built(*arguments)
    model.configure_model()
    assert model.vocab_size == data.vocab_size
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    assert model(tokens).shape == (1, 3, data.vocab_size)


def test_every_file_is_reached_by_a_test() -> None:
    reached = {*names("variants"), *names("ablations"), *itertools.chain(*SIZES.values()), *names("trainers")}
    reached |= {*PLANNED_WITH.keys(), *PLANNED_WITH.values(), *names("recipes")}
    assert set(names(".")) - set(names("results")) == reached


@pytest.mark.parametrize("file", names("models"))
def test_every_model_is_planned(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = [file, PLANNED_WITH[file], "trainers/fsdp2.yaml", "variants/baseline.yaml"]
    short = "--data.context_length=256"  # a plan runs every chunk of Gated DeltaNet
    assert main(["plan", *(f"--config={EXPERIMENTS / f}" for f in files), "--devices=8", short]) == 0
    assert "GiB per device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "layers", "billions"),
    [("7b-a2b", 48, (16.0, 2.20)), ("7b-a2b", 20, (7.04, 1.28)), ("24b-a3b", 24, (20.8, 2.09)),
     ("24b-a3b", 28, (24.2, 2.33))],
)  # fmt: skip
def test_the_hybrid_mixtures_have_the_sizes_that_their_files_state(
    file: str, layers: int, billions: tuple[float, float]
) -> None:
    files = ("variants/gated-attention.yaml", f"models/{file}.yaml", "data/qwen-text.yaml", "trainers/cpu.yaml")
    model, _ = built(*(f"--config={EXPERIMENTS / f}" for f in files), f"--model.architecture.n_layers={layers}")
    decoder = model.meta_decoder()
    total = sum(parameter.numel() for parameter in decoder.parameters())
    assert [f"{size / 1e9:.3g}" for size in (total, total - decoder.idle_parameters())] == [
        f"{n:.3g}" for n in billions
    ]


def test_the_small_hybrid_mixture_trains(tmp_path: Path) -> None:
    files = ("variants/gated-attention.yaml", "models/hybrid-moe-cpu.yaml", "data/backcopy.yaml", "trainers/cpu.yaml")
    sizes = ("--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1")
    rows = ("--data.batch_size=4", "--data.context_length=24", "--data.validation_rows=8")
    options = (*sizes, *rows, "--statistics.interval=2", "--progress.enabled=false", f"--run.dir={tmp_path / 'run'}")
    assert main(["fit", *(f"--config={EXPERIMENTS / f}" for f in files), *options]) == 0
    run = RunFolder(tmp_path / "run")
    assert run.statistics("validation").sites["attention"] == ["blocks.3.attention"]
    assert run.series("validation/router/load_max")[1].min() >= 1
    assert run.series("validation/attention/gate_mean")[1].shape == (2,)


@pytest.mark.parametrize("file", names("trainers"))
def test_every_trainer_is_planned(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["variants/gated-both.yaml", *SIZES["text"], file]
    assert main(["plan", *(f"--config={EXPERIMENTS / f}" for f in files), "--devices=16"]) == 0
    assert "tokens per step" in capsys.readouterr().out


def scales(file: str) -> list[str | None]:
    return list(read_yaml(EXPERIMENTS / file).get("scales", [None]))


def names_of_parts(variant: Path) -> dict[str, str]:
    """The parts that a variant's file names, which the files of sizes after it may not replace."""
    options = read_yaml(variant)["model"].get("init_args", {})
    named = {key: value.get("class_path") if isinstance(value, dict) else value for key, value in options.items()}
    parts = inspect.signature(CausalLM).parameters
    return {key: name for key, name in named.items() if key in parts and isinstance(name, str)}


def names_of_parts_built(cli: TrainingCLI) -> dict[str, str]:
    options = vars(cli.config["model"]["init_args"]).items()  # its own items() are those of all levels
    return {key: str(getattr(value, "class_path", value)).split(".")[-1] for key, value in options}


@pytest.mark.parametrize(("file", "scale"), [(file, scale) for file in names("ablations") for scale in scales(file)])
def test_every_run_of_every_ablation_is_built(file: str, scale: str | None) -> None:
    ablation = read_ablation(EXPERIMENTS / file, scale)
    if scale in ON_GPUS:
        ablation["configs"][-1] = "experiments/trainers/cpu.yaml"
    runs = planned(ablation, Path("runs/test"), list(ablation["variants"]), [0], ablation["steps"])
    assert len(runs) == len(ablation["variants"])
    whole = scale not in ON_GPUS and "axes" not in read_yaml(EXPERIMENTS / file)
    for run in runs if whole else random.Random(0).sample(runs, 6):  # scaled numbers differ, not what is built
        cli = parsed(*run.arguments, *(f"--{option}=10" for option in run.measured))
        assert names_of_parts(run.configs[0]).items() <= names_of_parts_built(cli).items(), run.name


@pytest.mark.parametrize("file", names("trainers"))
def test_every_trainer_is_built_or_reports_what_it_lacks(file: str) -> None:
    arguments = [f"--config={EXPERIMENTS / f}" for f in ("variants/baseline.yaml", *SIZES["backcopy"], file)]
    if file in ("trainers/cpu.yaml", "trainers/cpu-long.yaml", "trainers/retrofit.yaml") or torch.cuda.is_available():
        built(*arguments)
    else:
        with pytest.raises(UserError, match="gpu"):
            built(*arguments)


RECIPES = {
    "recipes/backcopy-baseline.yaml": ("variants/baseline.yaml", "models/backcopy.yaml", "data/backcopy.yaml"),
    "recipes/backcopy-gated.yaml": ("variants/gated-both.yaml", "models/backcopy.yaml", "data/backcopy.yaml"),
    "recipes/text-gated.yaml": ("variants/gated-both.yaml", "models/text-cpu.yaml", "data/text.yaml"),
}


@pytest.mark.parametrize("file", names("recipes"))
def test_a_recipe_in_one_file_is_its_layers(file: str) -> None:
    def resolved(*files: str) -> str:
        configs = [f"--config={EXPERIMENTS / f}" for f in files]
        cli = command_line([*configs, "--run.dir=runs/test"], run=False)
        return cli.parser.dump(cli.config, skip_unset=False).split("config:")[0]

    assert resolved(file) == resolved(*RECIPES[file], "trainers/cpu.yaml")
