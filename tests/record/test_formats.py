"""Folders of an older format are read under the present names of options; others are rejected in one line."""

import json
from pathlib import Path

import pytest
import yaml

from sinks.cli import main
from sinks.errors import UserError
from sinks.record import RunFolder
from sinks.record.formats import FORMAT, OLD_OPTIONS, upgrade
from sinks.report import write_report
from tests.cli.small import SMALL, fit


@pytest.fixture
def old(tmp_path: Path) -> RunFolder:
    """A finished run as format 1 left it: no mark, old names."""
    run = fit(tmp_path / "baseline" / "seed0")
    provenance = json.loads((run.path / "provenance.json").read_text())
    del provenance["format"]
    (run.path / "provenance.json").write_text(json.dumps(provenance))
    config = yaml.safe_load(run.config_file.read_text())
    for path, name in OLD_OPTIONS.items():
        *sections, key = path.split(".")
        section = config
        for part in sections:
            section = section[part]
        section[key] = section.pop(name) if name else None
    run.config_file.write_text(yaml.safe_dump(config))
    return run


def test_an_old_folder_is_validated_and_reported_but_not_resumed(
    old: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old.format == 1
    assert main(["validate", "-c", str(old.config_file), "--run.dir", str(old.path)]) == 0
    assert write_report(old.path.parents[1])[1].is_file()
    assert main(["fit", *SMALL, "--run.dir", str(old.path)]) == 2
    error = capsys.readouterr().err
    assert "holds a run of format 1, which can be reported and validated but not resumed" in error
    assert error.count("\n") == 1


def test_every_old_option_has_its_new_name(old: RunFolder) -> None:
    config = old.config()
    for path, name in OLD_OPTIONS.items():
        *sections, key = path.split(".")
        section = config
        for part in sections:
            section = section[part]
        assert key not in section
        assert name is None or name in section


def test_an_unknown_format_is_refused_in_a_line(old: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (old.path / "provenance.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match=f"is of format 99, but this version knows 1 and {FORMAT}: use a newer one"):
        old.summary()
    for command in (
        ["report", str(old.path.parents[1])],
        ["validate", "-c", str(old.config_file), "--run.dir", str(old.path)],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "is of format 99" in error
        assert error.count("\n") == 1


def test_options_elsewhere_keep_their_names() -> None:
    assert upgrade({"data": {"init_args": {"baseline_run": 1}}}) == {"data": {"init_args": {"baseline_run": 1}}}
