"""Fingerprints distinguish runs by what they compute differently, and nothing else; provenance is complete anywhere."""

from typing import Any

import pytest

from sinks.record import provenance as module
from sinks.record.fingerprint import config_fingerprint
from sinks.record.provenance import provenance

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
    assert module._version("no-such-package") is None
