"""`sinks evaluate` has the numbers of lm-eval's own class for transformers models, on runs and on pretrained models."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

import datasets
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast, dynamic_module_utils

from sinks.cli import main
from sinks.errors import UserError
from sinks.interop.evaluated import Evaluated, SpecialTokens, load_evaluated
from sinks.interop.lm_eval_model import LogitsModel
from sinks.interop.load import folder_of
from tests.cli.test_mistakes import one_line
from tests.interop.shapes import tiny
from tests.interop.test_commands import SMALL
from tests.interop.tiny import TEXT, tokenizer

CONTEXT, VOCABULARY = 32, 300
CHOICES = [
    {
        "question": f"Row {i} of the text has the",
        "choices": ["number", "row", "n", "x and nothing else"],
        "answer": i % 4,
    }
    for i in range(5)
]
TEXTS = [{"text": TEXT[:40]}, {"text": TEXT[300:700]}]
DATA = {"choices": CHOICES, "texts": TEXTS}
TASKS: dict[str, dict[str, Any]] = {
    "tiny_choices": {
        "dataset": "choices",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_texts": {
        "dataset": "texts",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "tiny_answers": {
        "dataset": "choices",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder: Path) -> Path:
    """Task files, with their data beside them."""
    folder.mkdir()
    for name, rows in DATA.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, options in TASKS.items():
        options = dict(options)
        files = {"test": str(folder / f"{options.pop('dataset')}.jsonl")}
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, "test_split": "test"} | data | options))
    return folder


def save_model(folder: Path, leading: bool = False) -> Path:
    """A Llama whose tokenizer names BOS and EOS, and may put BOS before every text."""
    tiny("llama", vocab_size=VOCABULARY, max_position_embeddings=CONTEXT).save_pretrained(folder)
    own = Tokenizer.from_str(tokenizer().tokenizer.to_str())
    if leading:
        own.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<bos>", eos_token="<bos>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks; a run on text and its export; a model, the run imported from it, and that retrofitted with gates."""
    folder = tmp_path_factory.mktemp("evaluate")
    datasets.disable_progress_bars()
    write_tasks(folder / "tasks")
    (folder / "text").mkdir()
    for i in range(20):
        (folder / "text" / f"{i}.txt").write_text(TEXT[i * 400 : (i + 2) * 400])
    save_model(folder / "model")
    data = [
        *("--data=Text", f"--data.sources=[{folder / 'text'}]", f"--data.folder={folder / 'data'}"),
        *(f"--data.vocab_size={VOCABULARY}", f"--data.context_length={CONTEXT}", "--data.batch_size=4"),
        *("--data.validation_share=0.2", "--trainer.accelerator=cpu", "--trainer.devices=1"),
        "--progress.enabled=false",
    ]
    small = ["--model.architecture.d_model=32", "--model.architecture.n_heads=4", "--model.architecture.ffn_hidden=24"]
    fit = ["fit", *data, "--trainer.max_steps=4", "--trainer.val_check_interval=4", "--model.optimization.lr=0.01"]
    assert main([*fit, "--model=Baseline", *small, "--run.dir", str(folder / "run")]) == 0
    (prepared,) = (folder / "data").glob("*/tokenizer.json")
    assert main(["export", str(folder / "run"), str(folder / "export"), "--tokenizer", str(prepared)]) == 0
    given = [*data, f"--data.tokenizer={folder / 'model/tokenizer.json'}", "--data.bos=none"]
    assert main(["import", str(folder / "model"), *given, "--run.dir", str(folder / "imported")]) == 0
    # At a learning rate far below float32's resolution, training leaves every weight as it was.
    gates = ["--model.attention_gate=IdentityElementwiseGate", f"--model.start_from={folder / 'imported'}"]
    steps = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--model.optimization.lr=1e-30"]
    config = ["fit", "-c", str(folder / "imported/config.yaml"), *gates, *steps]
    assert main([*config, "--run.dir", str(folder / "retrofitted")]) == 0
    return folder


def evaluated(place: Path, name: str, out: Path, *more: str, tasks: Path | None = None) -> dict[str, Any]:
    """The content of results.json; the tasks are in `place` too, or where `tasks` says."""
    names = f"--tasks={','.join(TASKS)}"
    arguments = [str(place / name), names, f"--include={(tasks or place) / 'tasks'}", f"--out={out / name}", *more]
    assert main(["evaluate", *arguments]) == 0
    return json.loads((out / name / "results.json").read_text())


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """Every metric of every task."""
    metrics = ((task, key, value) for task, found in results["results"].items() for key, value in found.items())
    return {f"{task} {key}": value for task, key, value in metrics if isinstance(value, float)}


def test_a_run_and_its_export_have_the_same_numbers(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    native, exported = (evaluated(place, name, tmp_path) for name in ("run", "export"))
    assert numbers(native) == pytest.approx(numbers(exported), rel=1e-5)
    assert numbers(native)["tiny_texts word_perplexity,none"] > 10
    assert native["model"] | {"run": str(place / "run"), "checkpoint": "step00000004.ckpt"} == native["model"]
    assert native["provenance"].keys() >= {"commit", "command"}
    assert native["provenance"]["versions"]["lm_eval"]
    assert exported["model"]["name"] == str(place / "export")
    printed = capsys.readouterr().out
    assert "word_perplexity" in printed
    assert str(tmp_path / "export/results.json") in printed


def test_an_imported_and_a_retrofitted_model_have_the_numbers_of_the_original(place: Path, tmp_path: Path) -> None:
    original, imported, retrofitted = (
        evaluated(place, name, tmp_path) for name in ("model", "imported", "retrofitted")
    )
    assert numbers(imported) == pytest.approx(numbers(original), rel=1e-5)
    assert numbers(retrofitted) == numbers(imported)


def test_an_export_with_code_of_its_own_has_the_numbers_of_the_run(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run with gates on every sublayer, which are no longer where they started."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    gates = ["--model.attention_gate=IdentityElementwiseGate", "--model.norm=IdentityGatedNorm", "--model.norm.rank=4"]
    fit = ["fit", "-c", str(place / "imported/config.yaml"), *gates, "--trainer.max_steps=2", "--run.dir"]
    assert main([*fit, str(tmp_path / "run"), "--model.optimization.lr=0.1"]) == 0
    out = tmp_path / "export"
    assert main(["export", str(tmp_path / "run"), str(out), "--tokenizer", str(place / "model")]) == 0
    capsys.readouterr()
    refused = ["evaluate", str(out), "--tasks=tiny_texts", f"--include={place / 'tasks'}", f"--out={tmp_path / 'none'}"]
    assert "brings code of its own: read it, then add --trust_remote_code true" in one_line(refused, capsys)
    assert not (tmp_path / "none").exists()
    native = evaluated(tmp_path, "run", tmp_path / "results", tasks=place)
    exported = evaluated(tmp_path, "export", tmp_path / "results", "--trust_remote_code=true", tasks=place)
    assert numbers(native) == pytest.approx(numbers(exported), rel=1e-5)


def hugging_face(folder: Path, **options: Any) -> HFLM:
    return HFLM(str(folder), device="cpu", dtype="float32", batch_size=2, **options)


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


@pytest.fixture(params=[False, True], ids=["no-leading-token", "leading-token"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LogitsModel, HFLM]:
    """The suite's wrapper and lm-eval's own, of one model."""
    folder = save_model(tmp_path / "model", request.param)
    return LogitsModel(load_evaluated(str(folder), torch.device("cpu")), 3), hugging_face(folder)


def test_likelihoods_are_those_of_lm_evals_own_class(pair: tuple[LogitsModel, HFLM]) -> None:
    asked = [
        ("", "Row"), ("", "<bos>Row 1"), ("<bos>Row", " 1 of the text"), ("Row 7 ", "of"),
        *(("Row 7 of the text has the", choice) for choice in (" number", " n", " r", " x")),
        (TEXT[:400], " number"),
    ]  # fmt: skip
    own, theirs = (model.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True) for model in pair)
    assert [value for value, _ in own] == pytest.approx([value for value, _ in theirs], rel=1e-5)
    assert [greedy for _, greedy in own] == [greedy for _, greedy in theirs]
    assert pair[0].truncated == 1


def test_whole_texts_are_those_of_lm_evals_own_class(pair: tuple[LogitsModel, HFLM]) -> None:
    asked = [(TEXT[:5],), (TEXT[:700],), ("<bos>Row",), ("",)]
    own, theirs = (model.loglikelihood_rolling(requests("loglikelihood_rolling", asked)) for model in pair)
    assert own == pytest.approx(theirs, rel=1e-5)


def test_generated_texts_are_those_of_lm_evals_own_class(pair: tuple[LogitsModel, HFLM]) -> None:
    options = [{"max_gen_toks": 6}, {"max_gen_toks": 20, "until": "e"}, {"max_gen_toks": 20, "until": ["\n", "xt"]}]
    asked = [(context, dict(one)) for context in ("Row 1", "of the text", TEXT[:200]) for one in options]
    own, theirs = (model.generate_until(requests("generate_until", asked)) for model in pair)
    assert own == theirs
    assert len(set(own)) > 3


@pytest.mark.models
def test_a_real_model_has_the_numbers_of_lm_evals_own_class() -> None:
    own = LogitsModel(load_evaluated("smollm2", torch.device("cpu")), 2)
    theirs = hugging_face(folder_of("smollm2"))
    pairs = [("The capital of France is", " Paris"), ("", "Paris"), ("<|im_start|>user\nHi<|im_end|>\n", "Hello")]
    kinds = {"loglikelihood": pairs, "loglikelihood_rolling": [(TEXT[:400],)]}
    for kind, asked in kinds.items():
        found, expected = (getattr(model, kind)(requests(kind, asked)) for model in (own, theirs))
        assert torch.tensor(found, dtype=torch.float64).allclose(torch.tensor(expected, dtype=torch.float64), rtol=1e-5)
    asked = [("The capital of France is", {"max_gen_toks": 8})]
    assert own.generate_until(requests("generate_until", asked)) == theirs.generate_until(
        requests("generate_until", asked)
    )
    assert (own.eot_token_id, own.prefix_token_id) == (theirs.eot_token_id, theirs.prefix_token_id)


def of_table(table: torch.Tensor, max_length: int = 8) -> LogitsModel:
    """A model whose logits [V] depend on the last token alone."""
    special = SpecialTokens(leading=None, prefix=0, ends=frozenset({0}))
    own, cpu = tokenizer().tokenizer, torch.device("cpu")
    return LogitsModel(Evaluated(lambda ids: table[ids], len(table), own, special, max_length, cpu, {}), batch_size=2)


def test_likelihoods_known_by_hand() -> None:
    table = torch.randn(VOCABULARY, VOCABULARY)
    scores = table.double().log_softmax(-1)
    ids = tokenizer().encode(TEXT[:60])
    expected = sum(float(scores[before, after]) for before, after in zip([0, *ids], ids, strict=False))
    model = of_table(table)
    (found,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", [(TEXT[:60],)]))
    assert len(ids) > 2 * model.max_length
    assert found == pytest.approx(expected, rel=1e-5)


def test_generation_ends_at_eos_and_at_the_limit() -> None:
    """After A comes B, then EOS, then C; after C comes C."""
    a, b, c = (tokenizer().encode(letter)[0] for letter in "ABC")
    table = torch.zeros(VOCABULARY, VOCABULARY)
    for before, after in ((a, b), (b, 0), (0, c), (c, c)):
        table[before, after] = 1
    asked = [("A", {}), ("C", {"max_gen_toks": 3}), ("C", {"until": "CC"})]
    asked = [(context, {"max_gen_toks": 5} | options) for context, options in asked]
    assert of_table(table).generate_until(requests("generate_until", asked)) == ["B", "CCC", ""]


def test_what_a_model_cannot_do_is_rejected() -> None:
    model = of_table(torch.zeros(VOCABULARY, VOCABULARY))
    for options, words in (
        ({"temperature": 0.7}, "generation is greedy here"),
        ({"do_sample": True}, "generation is greedy here"),
        ({"num_beams": 2}, "generation is greedy here"),
        ({"max_gen_toks": 8}, "asks for 8 generated tokens, but must ask for 1 to 7"),
        ({"max_gen_toks": 0}, "asks for 0 generated tokens"),
    ):
        with pytest.raises(UserError, match=words):
            model.generate_until(requests("generate_until", [("A", options)]))
    for continuation, words in (("", "likelihood of 0 tokens"), ("A" * 9, "likelihood of 9 tokens")):
        with pytest.raises(UserError, match=words):
            model.loglikelihood(requests("loglikelihood", [("B", continuation)]))
    with pytest.raises(UserError, match=r"gives id .*, but the model's ids end at 3"):
        of_table(torch.zeros(4, 4)).tok_encode("A")


def test_few_shots_and_a_limit_are_those_of_the_command(place: Path, tmp_path: Path) -> None:
    more = ["--limit=2", "--num_fewshot=1", "--batch_size=1"]
    found = evaluated(place, "model", tmp_path, *more)
    assert found["n-shot"]["tiny_choices"] == 1
    assert {task: n["effective"] for task, n in found["n-samples"].items()} == dict.fromkeys(TASKS, 2)
    assert found["options"] == {"limit": 2, "batch_size": 1, "max_length": CONTEXT, "prefix_token_id": 0}


def test_a_group_has_the_mean_of_its_tasks(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(place / "tasks" / "manager.py"))
    tasks = write_tasks(tmp_path / "tasks")
    other = yaml.safe_load((tasks / "tiny_choices.yaml").read_text()) | {"task": "other", "doc_to_target": 0}
    group = {"group": "all", "task": ["tiny_choices", "other"], "aggregate_metric_list": [{"metric": "acc"}]}
    for name, content in (("other", other), ("all", group)):
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump(content))
    arguments = [str(place / "run"), "--tasks=all", f"--include={tasks}", f"--out={tmp_path}"]
    assert main(["evaluate", *arguments]) == 0
    found = {
        name: one["acc,none"] for name, one in json.loads((tmp_path / "results.json").read_text())["results"].items()
    }
    assert found["tiny_choices"] != found["other"]
    assert found["all"] == pytest.approx((found["tiny_choices"] + found["other"]) / 2)
    assert "|Groups|" in capsys.readouterr().out.replace(" ", "")


def test_another_prefix_token_gives_other_numbers(place: Path, tmp_path: Path) -> None:
    own, other = (evaluated(place, "run", tmp_path / str(i), f"--prefix_token_id={i}") for i in (0, 7))
    assert [found["options"]["prefix_token_id"] for found in (own, other)] == [0, 7]
    assert numbers(own)["tiny_texts bits_per_byte,none"] != numbers(other)["tiny_texts bits_per_byte,none"]


def test_a_tokenizer_that_names_no_token_needs_one_for_texts_without_context(place: Path) -> None:
    special = SpecialTokens(leading=None, prefix=None, ends=frozenset())
    model = LogitsModel(replace(of_table(torch.zeros(VOCABULARY, VOCABULARY)).evaluated, special=special), 1)
    assert model.loglikelihood(requests("loglikelihood", [("A", "B")]))
    with pytest.raises(UserError, match="names neither: give --prefix_token_id"):
        model.loglikelihood_rolling(requests("loglikelihood_rolling", [("A",)]))


def test_mistakes_are_one_line_and_write_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The folder that holds lm-eval's own thousands of task files, which take seconds to read.
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(place / "tasks" / "manager.py"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tasks = write_tasks(tmp_path / "tasks")
    remote = yaml.safe_load((tasks / "tiny_texts.yaml").read_text())
    for name, data in {"remote": "nobody/nothing", "moved": "json"}.items():
        files = {"data_files": {"test": str(tmp_path / "moved.jsonl")}} if name == "moved" else None
        (tasks / f"{name}.yaml").write_text(
            yaml.safe_dump(remote | {"task": name, "dataset_path": data, "dataset_kwargs": files})
        )
    unsafe = yaml.safe_load((tasks / "tiny_texts.yaml").read_text()) | {"task": "unsafe", "unsafe_code": True}
    (tasks / "unsafe.yaml").write_text(yaml.safe_dump(unsafe))
    tiny("llama", vocab_size=36).save_pretrained(tmp_path / "synthetic-model")
    assert main(["import", str(tmp_path / "synthetic-model"), *SMALL, f"--run.dir={tmp_path / 'synthetic'}"]) == 0
    shutil.copytree(place / "run", tmp_path / "no-checkpoint", ignore=shutil.ignore_patterns("*.ckpt"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there/results.json").write_text("{}")
    run, known = str(place / "run"), "--tasks=tiny_texts"
    for arguments, words in (
        ([run], "the tasks are missing: sinks evaluate MODEL --tasks"),
        ([run, "--tasks=tiny_text"], "'tiny_text' is no task of lm-eval, nor of a readable file in"),
        ([run, "--tasks=tiny_text"], "did you mean tiny_texts"),
        ([run, known, "--include=nowhere"], "there is no folder nowhere of task files"),
        ([run, "--tasks=remote"], "remote could not be loaded (Couldn't reach 'nobody/nothing' on the Hub"),
        ([run, "--tasks=moved"], "moved could not be loaded (Unable to find"),
        ([run, "--tasks=unsafe"], "unsafe runs code that the model writes"),
        ([run, known, "--limit=0"], "limit is 0"),
        ([run, known, "--num_fewshot=-1"], "num_fewshot is -1"),
        ([run, known, "--batch_size=0"], "batch_size is 0"),
        ([run, known, "--prefix_token_id=300"], "prefix_token_id is 300, but must be at least 0 and below 300"),
        ([run, known, "--dtype=bfloat16"], "dtype is bfloat16, but the weights of a run are float32"),
        ([run, known, f"--out={tmp_path / 'there'}"], "there/results.json exists: choose another --out"),
        ([str(tmp_path / "none"), known], "is no model"),
        ([str(tmp_path / "synthetic"), known], "has data Backcopy, which is no text"),
        ([str(tmp_path / "synthetic-model"), known], "has no tokenizer"),
        ([str(tmp_path / "no-checkpoint"), known], "has no complete checkpoint"),
    ):
        defaults = [f"--include={tasks}", f"--out={tmp_path / 'out'}"]
        assert words in one_line(["evaluate", arguments[0], *defaults, *arguments[1:]], capsys)
    assert not (tmp_path / "out").exists()


def test_without_lm_eval_the_command_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    line = one_line(["evaluate", str(place / "run"), "--tasks=tiny_texts"], capsys)
    assert "lm_eval must be installed to run its tasks: run pip install 'sinks[eval]'" in line
