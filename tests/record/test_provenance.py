"""Fingerprints distinguish runs by what they compute differently, and nothing else; provenance is complete anywhere."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sinks.described import section_of
from sinks.families import CausalLM, Optimization
from sinks.families.averaging import NoAveraging
from sinks.families.objectives import NextToken
from sinks.models.attention_gates import HeadwiseGate
from sinks.models.exclusion import NoExclusion
from sinks.models.key_gates import NoKeyGate
from sinks.models.normalizers import LearnableSink
from sinks.models.norms import IdentityNorm
from sinks.record import versions
from sinks.record.fingerprint import (
    ADDED_TO_ARCHITECTURE,
    ADDED_TO_GATE,
    ADDED_TO_MODEL,
    ADDED_TO_NORMALIZER,
    ADDED_TO_OPTIMIZATION,
    DataIdentity,
    config_fingerprint,
    identity,
)
from sinks.record.provenance import provenance
from tests.families.variants import SMALL

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"max_steps": 100, "logger": None},
    "model": {"class_path": "Baseline"},
    "run": {"dir": "runs/a"},
}


def changed(section: str, key: str, value: Any) -> dict[str, Any]:
    return CONFIG | {section: CONFIG[section] | {key: value}}


@pytest.mark.parametrize(
    "config", [changed("run", "dir", "runs/b"), changed("trainer", "logger", False), CONFIG | {"verbose": True}]
)
def test_where_a_run_is_stored_and_observed_does_not_count(config: dict[str, Any]) -> None:
    assert config_fingerprint(config, "data") == config_fingerprint(CONFIG, "data")


@pytest.mark.parametrize(
    "config",
    [changed("trainer", "max_steps", 101), changed("model", "class_path", "Gated"), CONFIG | {"seed_everything": 1}],
)
def test_what_is_computed_counts(config: dict[str, Any]) -> None:
    assert config_fingerprint(config, "data") != config_fingerprint(CONFIG, "data")


def test_the_data_count_and_the_order_of_keys_does_not() -> None:
    assert config_fingerprint(CONFIG, "data") != config_fingerprint(CONFIG, "other data")
    backwards = dict(reversed(CONFIG.items()))
    assert config_fingerprint(backwards, "data") == config_fingerprint(CONFIG, "data")
    assert len(config_fingerprint(CONFIG, "data")) == 16


def test_how_long_a_sitting_lasts_does_not_count() -> None:
    for option in ("max_time", "max_epochs", "min_epochs", "min_steps"):
        for value in (None, "00:01:00:00"):
            config = changed("trainer", option, value)
            assert config_fingerprint(config, "data") == config_fingerprint(CONFIG, "data"), option


def identity_of(sources: str, content: str = "text", seed: Any = 0, **more: Any) -> dict[str, Any]:
    """Of a run on data in a place; the data seed is that of the run."""
    data = {"class_path": "Text", "init_args": {"sources": sources, "seed": seed}}
    model = {"class_path": "Baseline", "init_args": {}}
    found = DataIdentity(f"{content} {seed}", content, {"sources": None})
    return identity(CONFIG | {"model": model, "data": data, "seed_everything": seed}, "mine", found, 4, **more)


def test_where_the_data_is_stored_does_not_count_but_what_it_is() -> None:
    here, there = identity_of("text"), identity_of("/home/me/text")
    assert here == there
    seed_1 = identity_of("/home/me/text", seed=1)
    differ = {key for key in here if here[key] != seed_1[key]}
    assert differ == {"seed", "config_fingerprint", "data_fingerprint"}
    other = identity_of("text", content="other")
    assert {key for key in here if here[key] != other[key]} == {
        "config_fingerprint", "data_fingerprint", "content_fingerprint"
    }  # fmt: skip


def test_without_a_seed_there_is_none() -> None:
    assert identity_of("text", seed=False)["seed"] is None
    assert identity_of("text", seed=0)["seed"] == 0


def test_the_rule_that_ends_a_run_counts() -> None:
    rules: list[list[dict[str, Any]]] = [[], [{"patience": 1}], [{"patience": 2}]]
    assert len({identity_of("text", stopping=rule)["config_fingerprint"] for rule in rules}) == 3


def test_provenance_is_complete() -> None:
    found = provenance()
    assert found["versions"]["torch"]
    assert found["device"]
    assert found["command"]
    assert found["commit"] is None or len(found["commit"]) == 40


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no git
    found = provenance()
    assert found["commit"] is None
    assert found["dirty"] is None
    assert versions.version_of("no-such-package") is None
    assert versions.version_line("1.2").startswith("sinks 1.2, torch ")


def test_git_is_asked_without_writing_to_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a run killed while it asks would leave a lock in the user's repository."""

    def git(*arguments: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "file").write_text("content")
    git("init")
    git("add", "file")
    git("commit", "-m", "message")
    os.utime(tmp_path / "file", (0, 0))  # `git status` would read the file again, and note that in the index
    before = (tmp_path / ".git/index").read_bytes()
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "versions.py"))
    assert provenance()["dirty"] is False
    assert (tmp_path / ".git/index").read_bytes() == before


def test_options_that_were_added_later_do_not_change_a_run_that_leaves_them_out() -> None:
    section = section_of(CausalLM(11, 12, architecture=SMALL), "vocab_size", "context_length")
    architecture = section["init_args"]["architecture"]
    before = {key: value for key, value in architecture.items() if key not in ADDED_TO_ARCHITECTURE}
    assert {key: architecture[key] for key in ADDED_TO_ARCHITECTURE} == ADDED_TO_ARCHITECTURE

    def fingerprint(**options: Any) -> str:
        model = {**section, "init_args": {**section["init_args"], "architecture": before | options}}
        return config_fingerprint(CONFIG | {"model": model}, "data")

    assert fingerprint() == fingerprint(**ADDED_TO_ARCHITECTURE)
    assert fingerprint() != fingerprint(rope_fraction=0.5)


LATER: dict[str, Any] = {
    "start_from": None,
    "objective": NextToken,
    "averaging": NoAveraging,
    "feed_forward_norm": None,
    "output_norm": IdentityNorm,
    "exclusion": NoExclusion,
    "key_gate": NoKeyGate,
    "mixer_pattern": (),
}


def test_options_of_the_model_that_were_added_later_do_not_either() -> None:
    built = CausalLM(
        11,
        12,
        architecture=SMALL,
        optimization=Optimization(),
        normalizer=LearnableSink,
        attention_gate=HeadwiseGate,
        **LATER,
    )
    section = section_of(built, "vocab_size", "context_length")
    assert {key: section["init_args"][key] for key in ADDED_TO_MODEL} == ADDED_TO_MODEL
    optimization = section["init_args"].pop("optimization")
    assert {key: optimization[key] for key in ADDED_TO_OPTIMIZATION} == ADDED_TO_OPTIMIZATION
    first = {key: value for key, value in optimization.items() if key not in ADDED_TO_OPTIMIZATION}
    before = {key: value for key, value in section["init_args"].items() if key not in ADDED_TO_MODEL}
    sink = {"class_path": before["normalizer"]["class_path"]}
    gated = {"class_path": before["attention_gate"]["class_path"]}

    def fingerprint(normalizer: dict[str, float], gate: dict[str, Any] | None = None, **options: Any) -> str:
        arguments = before | {"normalizer": sink | {"init_args": {"sink_scale": 1.0} | normalizer}} | options
        arguments |= {"attention_gate": gated | {"init_args": {"initial_gate": 0.5} | (gate or {})}}
        return config_fingerprint(CONFIG | {"model": {**section, "init_args": arguments}}, "data")

    assert fingerprint({}) == fingerprint(ADDED_TO_NORMALIZER, ADDED_TO_GATE, **ADDED_TO_MODEL)
    assert fingerprint({}) != fingerprint({}, {"dimensions": 4})
    assert fingerprint({}, optimization=first) == fingerprint({}, optimization=optimization)
    assert fingerprint({}, optimization=first) != fingerprint({}, optimization=first | {"decay_fraction": 0.1})
    assert fingerprint({}) != fingerprint({"initial": -5.0})
    assert fingerprint({}) != fingerprint({}, start_from="runs/imported")


def test_where_a_tokenizer_is_stored_does_not_count() -> None:
    """What it is counts in the data's own fingerprint."""
    data = {"class_path": "Text", "init_args": {"sources": None, "seed": 0}}
    config = CONFIG | {"model": {"class_path": "Baseline", "init_args": {}}, "seed_everything": 0}
    found = DataIdentity("0", "text")
    here = {**data, "init_args": data["init_args"] | {"tokenizer": "here.json"}}  # type: ignore[operator]
    assert identity(config | {"data": data}, "mine", found, 4) == identity(config | {"data": here}, "mine", found, 4)
