"""Rows of several documents in a transformers model: packed by positions, or with an id that begins each document."""

import contextlib
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithFlattening, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from sinks.callbacks import SinkStatistics
from sinks.errors import UserError
from sinks.interop.sites import huggingface_sites
from sinks.interop.trainer_callback import TrainerStatistics
from sinks.observe import Reader
from tests.interop.families import build, tokens
from tests.interop.test_seam import FalconAdapter
from tests.interop.test_training import Kept, Wrapped

# Two rows of 12 tokens: a document of one token, two lengths in a row, and one length in both rows.
LENGTHS = ((5, 1, 6), (7, 5))
POSITIONS = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
STARTS = POSITIONS == 0
ROWS = tokens()
BOS = 1
MARKED = ROWS.where(ROWS != BOS, 5).masked_fill(STARTS, BOS)
PACKED = {"input_ids": ROWS, "position_ids": POSITIONS, "use_cache": False}
# With its linear layers, Qwen3-Next passes a state on from document to document.
PACKABLE: dict[str, dict[str, Any]] = {
    "Llama": {}, "Mistral": {}, "Gemma 2": {}, "GPT-2": {}, "DeepSeek-V3": {}, "OLMo 2": {},
    "Qwen3-Next": {"layer_types": ["full_attention"] * 4},
}  # fmt: skip


def documents(rows: Tensor) -> list[Tensor]:
    return [part[None] for row, lengths in zip(rows, LENGTHS, strict=True) for part in row.split(lengths)]


def read(model: PreTrainedModel, calls: list[dict[str, Any]], start: int | None = None) -> tuple[dict[str, float], Any]:
    """Scalars and arrays of some calls, with sink dimensions that were fixed before."""
    reader = Reader(huggingface_sites(model, document_start=start))
    reader.dimensions = {site: torch.tensor([7]) for site in reader.names["norm"]}
    with reader.reading(), torch.no_grad():
        for arguments in calls:
            model(**arguments)
    scalars, statistics = reader.summarize()
    return scalars, {name: torch.from_numpy(array[0]) for name, array in statistics.arrays.items()}


def assert_same(found: tuple[dict[str, float], Any], expected: tuple[dict[str, float], Any]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-4, abs=1e-6, nan_ok=True)
    assert found[1].keys() == expected[1].keys()
    for key, array in expected[1].items():
        torch.testing.assert_close(
            found[1][key], array, rtol=1e-4, atol=1e-6, equal_nan=True, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("name", PACKABLE)
def test_packed_rows_equal_separate_rows(name: str) -> None:
    model = build(name, **PACKABLE[name])
    separate = read(model, [{"input_ids": document, "use_cache": False} for document in documents(ROWS)])
    assert_same(read(model, [PACKED]), separate)
    assert {"attention/first_token_mass", "attention/contribution_share", "residual/rescale"} <= separate[1].keys()
    assert ("attention/gate_mean" in separate[1]) == (name == "Qwen3-Next")


def test_lengths_beside_positions_are_read_and_others_are_rejected() -> None:
    model = build("Llama")
    row = {"input_ids": ROWS[:1], "position_ids": POSITIONS[:1], "use_cache": False}
    lengths = torch.tensor([0, 5, 6, 12])
    assert_same(read(model, [row | {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths}]), read(model, [row]))
    with pytest.raises(UserError, match="start again where cu_seq_lens_q does not begin a document"):
        read(model, [row | {"cu_seq_lens_q": torch.tensor([0, 5, 12])}])


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_gradients_of_packed_rows_equal_those_of_eager(use_reentrant: bool | None) -> None:
    """Also where checkpointed blocks are computed again, after another row has been read."""
    model = build("Llama").train()
    if use_reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    reader = Reader(huggingface_sites(model))
    grads = []
    for reading in (False, True):
        model.zero_grad()
        if reading:
            reader.start()
        loss = model(**PACKED, labels=ROWS).loss
        other = model(ROWS[:, :7], labels=ROWS[:, :7], use_cache=False).loss
        reader.stop()
        (loss + other).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    largest = max(float(g.abs().max()) for g in grads[0])
    for own, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5 * largest)
    assert model.config._attn_implementation == "eager"


REJECTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a mask beside positions": (
        "Llama",
        {"attention_mask": torch.ones_like(ROWS)},
        "LlamaAttention 0 lets documents see",
    ),
    "a cache": (
        "Llama",
        {"use_cache": True},
        "LlamaAttention 0 lets documents see one another: give no attention_mask",
    ),
    "masks without positions, gpt-oss": ("gpt-oss", {}, "GptOssAttention 0 lets documents see one another"),
    "masks without positions, OPT": ("OPT", {}, "OPTAttention 0 lets documents see one another"),
    "attention without positions": ("Llama 4", {}, "Llama4TextAttention 0 does not get them"),
    "a gap": ("Llama", {"position_ids": POSITIONS + 1}, "position_ids are not 0, 1, 2, ... in every document"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_packed_rows_whose_documents_are_not_kept_apart_are_rejected(case: str) -> None:
    name, arguments, message = REJECTED[case]
    model = build(name)
    with pytest.raises(UserError, match=message) as found:
        read(model, [PACKED | arguments])
    assert "\n" not in str(found.value)
    assert model.config._attn_implementation == "eager"
    read(model, [{"input_ids": ROWS, "use_cache": False}])


@pytest.mark.parametrize(("name", "arguments"), [("gpt-oss", {}), ("OPT", {}), ("Llama", {"use_cache": True})])
def test_what_is_rejected_does_let_documents_see_one_another(name: str, arguments: dict[str, Any]) -> None:
    model = build(name)
    with torch.no_grad():
        packed = documents(model(**PACKED | arguments).logits)
        alone = [model(document, use_cache=False).logits for document in documents(ROWS)]
    assert all(torch.allclose(packed[i], alone[i], rtol=1e-4, atol=1e-4) for i in (0, 3))  # the first of each row
    assert not any(torch.allclose(packed[i], alone[i], rtol=1e-2, atol=1e-2) for i in (1, 2, 4))


def test_packed_rows_of_attention_that_an_adapter_describes_are_rejected() -> None:
    model = build("Falcon")
    reader = Reader(huggingface_sites(model, FalconAdapter()))
    with pytest.raises(UserError, match="an Adapter's `call` reads whole rows"), reader.reading():
        model(**PACKED)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma 2", "gpt-oss"])
def test_an_id_that_begins_documents(name: str) -> None:
    """Attention runs over whole rows; masses are those of eager's weights at each query's own start."""
    model = build(name)
    with torch.no_grad():
        output = model(MARKED, output_attentions=True, output_hidden_states=True, use_cache=False)
    maps = torch.stack(output.attentions)  # [layers, B, H, T, T]
    places = torch.arange(12).where(STARTS, 0).cummax(-1).values  # of each query's start
    own = maps.gather(-1, places[None, :, None, :, None].expand(*maps.shape[:-1], 1))[..., 0]
    scalars, arrays = read(model, [{"input_ids": MARKED, "use_cache": False}], start=BOS)
    expected = own.movedim(1, 2)[:, :, ~STARTS].mean(-1)
    torch.testing.assert_close(arrays["attention/first_token_mass"], expected, rtol=1e-4, atol=1e-6)
    stream = output.hidden_states[0]
    first, rest = stream[STARTS].abs().max(), stream[~STARTS].abs().max()
    torch.testing.assert_close(arrays["residual/max_abs"][0], torch.stack([first, rest]))
    assert 0 < scalars["attention/contribution_share"] < 1


def test_without_the_id_a_row_is_one_sequence() -> None:
    model = build("Llama")
    with torch.no_grad():
        maps = torch.stack(model(MARKED, output_attentions=True, use_cache=False).attentions)
    _, arrays = read(model, [{"input_ids": MARKED, "use_cache": False}])
    torch.testing.assert_close(arrays["attention/first_token_mass"], maps[..., 1:, 0].mean((1, 3)))


def test_an_id_is_rejected_where_it_cannot_be_used() -> None:
    model = build("Llama")
    with pytest.raises(UserError, match="document_start is 1, but position_ids show where documents start"):
        read(model, [PACKED], start=BOS)
    with pytest.raises(UserError, match="document_start is 1, but the model gets no input_ids"):
        read(model, [{"inputs_embeds": model.get_input_embeddings()(ROWS)}], start=BOS)
    with pytest.raises(UserError, match="document_start is -1, but must be at least 0"):
        huggingface_sites(model, document_start=-1)


def short(folder: Path, rows: int, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=rows, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, learning_rate=0.01, train_sampling_strategy="sequential",
        logging_strategy="no",
    )  # fmt: skip


def test_the_id_in_training(tmp_path: Path) -> None:
    """In Lightning and in transformers' own Trainer, at the first step."""
    pytest.importorskip("accelerate")
    scalars, _ = read(build("Llama").train(), [{"input_ids": MARKED, "use_cache": False}], start=BOS)
    expected = {f"train/{key}": scalars[key] for key in ("attention/first_token_mass", "residual/max_abs_first_token")}

    module, logger = Wrapped(build("Llama").train()), Kept()
    lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=1, logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[SinkStatistics(document_start=BOS)],
    ).fit(module, DataLoader(MARKED, batch_size=2))  # type: ignore[arg-type]  # fmt: skip
    assert {key: logger.logged[1][key] for key in expected} == pytest.approx(expected, rel=1e-5)

    examples = [{"input_ids": ids, "labels": ids} for ids in MARKED]
    trainer = Trainer(build("Llama"), short(tmp_path, 2, 1), train_dataset=examples)  # type: ignore[arg-type]
    trainer.add_callback(TrainerStatistics(trainer, document_start=BOS))
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "train/residual/max_abs" in entry)
    assert {key: logged[key] for key in expected} == pytest.approx(expected, rel=1e-5)


def test_a_collator_that_packs_in_transformers_own_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    weights: list[dict[str, Tensor]] = []

    class Weights(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            weights.append({name: value.clone() for name, value in kwargs["model"].state_dict().items()})

    examples = [ids[: 12 - 2 * (i % 4)] for i, ids in enumerate(tokens(6, 12))]
    trainer = Trainer(
        build("Llama"), short(tmp_path, 3, 2),
        data_collator=DataCollatorWithFlattening(return_flash_attn_kwargs=True),
        train_dataset=[{"input_ids": ids.tolist()} for ids in examples],  # type: ignore[arg-type]
    )  # fmt: skip
    trainer.add_callback(TrainerStatistics(trainer, interval=2, groups=["mass", "residual", "keys"]))
    trainer.add_callback(Weights())
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "train/residual/max_abs" in entry]
    assert [entry["step"] for entry in logged] == [1, 2]
    for step, entry in enumerate(logged):
        model = build("Llama")
        model.load_state_dict(weights[step])
        reader = Reader(huggingface_sites(model), groups=["mass", "residual", "keys"])
        with reader.reading(), torch.no_grad():
            for ids in examples[3 * step : 3 * step + 3]:
                model(ids[None], use_cache=False)
        expected = {f"train/{key}": value for key, value in reader.summarize()[0].items()}
        assert {key: entry[key] for key in expected} == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("hidden", ["mask", "lengths"])
def test_rows_packed_in_training_without_known_starts_have_no_statistics(hidden: str, tmp_path: Path) -> None:
    """The training is the same as without the callback; steps whose documents are known are read."""
    pytest.importorskip("accelerate")
    bounds = torch.tensor([0, 5, 12], dtype=torch.int32)
    blocks = torch.block_diag(*(torch.ones(n, n).tril() for n in bounds.diff().tolist())).bool()
    mask = torch.zeros(1, 1, 12, 12).masked_fill(~blocks, torch.finfo(torch.float32).min)
    packing = {"attention_mask": mask} if hidden == "mask" else {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    batches = [{"input_ids": row[None], "labels": row[None]} for row in tokens(3)]
    batches[1] |= packing
    warning = {
        "mask": r"the model gets a mask \(1, 1, 12, 12\) have no",
        "lengths": "gets cu_seq_lens_q without position_ids have",
    }

    class Module(Wrapped):
        def training_step(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
            return self.model(**batch, use_cache=False).loss

    results = []
    for callbacks in ([], [SinkStatistics(interval=1)]):
        module, logger = Module(build("Llama").train()), Kept()
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, max_steps=3, logger=logger, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        )  # fmt: skip
        loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type, var-annotated]
        with pytest.warns(UserWarning, match=warning[hidden]) if callbacks else contextlib.nullcontext():
            trainer.fit(module, loader)
        results.append((logger.logged, module.model.state_dict()))
    assert list(results[1][0]) == [1, 3]
    assert "train/attention/first_token_mass" in results[1][0][3]
    for name, weight in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], weight, rtol=1e-4, atol=1e-6)
    assert module.model.config._attn_implementation == "eager"

    arguments = short(tmp_path, 1, 3)
    arguments.remove_unused_columns = False  # of which lengths would be one
    trainer = Trainer(build("Llama"), arguments, data_collator=lambda rows: rows[0], train_dataset=batches)  # type: ignore[arg-type]
    trainer.add_callback(TrainerStatistics(trainer, interval=1))
    trainer.train()
    steps = [entry["step"] for entry in trainer.state.log_history if "train/residual/max_abs" in entry]
    assert steps == [1, 3]
