"""The live line of long jobs: on a terminal, and nowhere else."""

import sys

import pytest

from sinks.progress import live, so_far


def test_a_terminal_sees_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with live("reading", 4, "row", done=1) as advance:
        advance(2)
        print("a line meanwhile")
    shown = capsys.readouterr().err
    assert "reading" in shown
    assert "3/4" in shown
    assert "rows" in shown


def test_a_job_that_does_more_has_its_total_raised(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with live("reading", 4) as advance:
        advance(6)
    assert "6/6" in capsys.readouterr().err


def test_counts_so_far_are_turned_into_steps() -> None:
    steps: list[int] = []
    reach = so_far(steps.append)
    for count in (2, 2, 5):
        reach(count)
    assert steps == [2, 0, 3]


@pytest.mark.parametrize("shown", [True, False])
def test_elsewhere_it_is_silent(
    shown: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shown:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with live("reading", 4, shown=shown) as advance:
        advance(4)
    assert capsys.readouterr().err == ""
