"""`sinks power` prints what sinks.stats.paired computes, from a given or a measured standard deviation."""

from pathlib import Path

import pytest

from sinks.cli import main
from tests.report.synthetic import Levels, write_ablation
from tests.report.test_report_tables import two_variants


def test_a_given_standard_deviation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "--sd=0.0056", "--effect=0.005", "--seeds=3"]) == 0
    assert capsys.readouterr().out.split("\n") == [
        "standard deviation of a paired difference: 0.0056 (given)", "",
        "effect  seeds", "-------------", " 0.005     12", "",
        "seeds  smallest visible effect", "------------------------------", "    3                    0.018", "",
    ]  # fmt: skip
    assert main(["power", "--sd=0.0056", "--effect=0.005", "--power=0.95", "--alpha=0.01"]) == 0
    assert "0.005     26" in capsys.readouterr().out


def test_a_measured_one_is_pooled_over_an_ablations_variants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_variants(tmp_path)  # paired differences +.01, -.01, +.03
    assert main(["power", "--directory", str(tmp_path), "--effect=0.05"]) == 0
    assert "0.02 (measured: 1 variants, 2 degrees of freedom)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "neither a standard deviation nor a folder of runs is given: give --sd or --directory"),
        (["--sd=0"], "sd is 0"),
        (["--sd=1", "--effect=-1"], "effect is -1"),
        (["--sd=1", "--seeds=1"], "seeds is 1"),
        (["--sd=1", "--power=1"], "power is 1"),
        (["--sd=1", "--power=0.05"], "power is 0.05"),
    ],
)
def test_what_has_no_answer_is_a_one_line_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["power", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_runs_that_measure_no_noise_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ablation(tmp_path, {"baseline": Levels()}, statistics=False)
    assert main(["power", "--directory", str(tmp_path)]) == 2
    assert f"{tmp_path} has no variant with two seeds in common with a baseline" in capsys.readouterr().err
