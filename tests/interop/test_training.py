"""Statistics of a transformers model in its own training: at each sampled step, the numbers of a Reader by hand."""

import ast
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

import sinks
from sinks.callbacks import SinkStatistics
from sinks.errors import UserError
from sinks.interop.find import find_sites
from sinks.interop.sites import huggingface_sites
from sinks.interop.trainer_callback import TrainerStatistics
from sinks.observe import Reader, sites_of
from tests.families.variants import build as build_own
from tests.interop.families import build, tokens

ROWS = tokens(8, 12)  # 4 steps of 2
Log = dict[int, dict[str, float]]


class Wrapped(lightning.LightningModule):
    """A user's own module, which knows nothing of the suite."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.weights: list[dict[str, Tensor]] = []

    def training_step(self, rows: Tensor) -> Tensor:
        self.weights.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return self.model(rows, labels=rows, use_cache=False).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Kept(Logger):
    """Keeps what is logged, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: Log = {}

    name = property(lambda self: "kept")  # type: ignore[assignment]
    version = property(lambda self: 0)  # type: ignore[assignment]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        found = {key: value for key, value in metrics.items() if key.startswith("train/")}
        if found:
            self.logged[step or 0] = found

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def by_hand(weights: list[dict[str, Tensor]], batches: list[Tensor], steps: tuple[int, ...]) -> Log:
    model = build("Llama").train()
    reader, found = Reader(huggingface_sites(model)), {}
    for step in steps:
        model.load_state_dict(weights[step - 1])
        with reader.reading(), torch.no_grad():
            model(batches[step - 1], use_cache=False)
        scalars, _ = reader.summarize(step)
        found[step] = {f"train/{name}": value for name, value in scalars.items()}
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_lightning_module_that_holds_a_model(checkpointing: bool) -> None:
    module, logger = Wrapped(build("Llama").train()), Kept()
    if checkpointing:
        module.model.gradient_checkpointing_enable()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=4, logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[SinkStatistics(interval=2)],
    )  # fmt: skip
    trainer.fit(module, DataLoader(ROWS, batch_size=2))  # type: ignore[arg-type]
    expected = by_hand(module.weights, list(ROWS.split(2)), (1, 2, 4))
    assert list(logger.logged) == [1, 2, 4]
    assert module.model.config._attn_implementation == "eager"
    for step, values in expected.items():
        assert logger.logged[step] == pytest.approx(values, rel=1e-5, nan_ok=True)
    assert "train/attention/first_token_mass" in expected[1]
    assert "train/residual/rescale" in expected[2]


def test_transformers_own_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    weights: list[dict[str, Tensor]] = []

    class Weights(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            weights.append({name: value.clone() for name, value in kwargs["model"].state_dict().items()})

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=1, gradient_accumulation_steps=2,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, learning_rate=0.01,
        train_sampling_strategy="sequential", logging_strategy="no",
    )  # fmt: skip
    model = build("Llama")
    rows = [{"input_ids": row, "labels": row} for row in ROWS]
    trainer = Trainer(model, arguments, train_dataset=rows)  # type: ignore[arg-type]
    trainer.add_callback(TrainerStatistics(trainer, interval=2))
    trainer.add_callback(Weights())
    trainer.train()
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "train/residual/max_abs" in entry}
    expected = by_hand(weights, list(ROWS.split(2)), (1, 2, 4))
    assert list(logged) == [1, 2, 4]
    for step, values in expected.items():
        assert {key: logged[step][key] for key in values} == pytest.approx(values, rel=1e-5, nan_ok=True)
    assert model.config._attn_implementation == "eager"


def test_the_suites_own_parts_come_first() -> None:
    own = build_own("baseline")
    assert [site.name for site in find_sites(own)] == [site.name for site in sites_of(own)]


def test_two_models_are_ambiguous() -> None:
    module = nn.ModuleDict({"student": build("Llama"), "teacher": build("GPT-2")})
    with pytest.raises(UserError, match=r"2 transformers models \(student, teacher\), but one"):
        find_sites(module)


def test_nothing_outside_imports_transformers_or_this_package_at_once() -> None:
    root = Path(sinks.__file__).parent
    # Of rooms for both kinds of models: what is for transformers models, itself imported when it is needed.
    later = [root / "quantize" / "pretrained.py", root / "probes" / "hooked_places.py"]
    assert all(file.is_file() for file in later)
    names_of_later = tuple("sinks." + ".".join(f.relative_to(root).with_suffix("").parts) for f in later)
    outside = [f for f in root.rglob("*.py") if f.relative_to(root).parts[0] != "interop" and f not in later]
    for file in [*outside, root / "interop" / "find.py"]:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                # A command's module is imported when it is called.
                forbidden = ("transformers",) if "cli" in file.parts else ("transformers", "sinks.interop")
                forbidden += names_of_later
                assert not [name for name in names if name.startswith(forbidden)], file
