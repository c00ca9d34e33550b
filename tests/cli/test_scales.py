"""An ablation at a scale: its configurations, what is scaled with them, and equal numbers of parameters."""

import re
from pathlib import Path
from typing import Any

import pytest

from sinks.cli import main
from sinks.cli.axes import with_axes
from sinks.cli.equal_parameters import WIDTH, parameters, width_for
from sinks.cli.grid import read_ablation
from sinks.cli.scales import at_scale
from sinks.errors import UserError
from sinks.families import Baseline, Gated
from sinks.models.decoder import Architecture
from tests.cli.small import ROOT
from tests.cli.test_mistakes import one_line

FILE = "experiments/ablations/table1.yaml"


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_numbers_are_scaled_with_the_configurations() -> None:
    """The paper's 5e-4 of 4.3e-3, and 10 of 6000."""
    small = read_ablation(Path(FILE))
    assert small["name"] == "table1-backcopy"
    assert small["steps"] == 800
    assert small["commands"] == ["make ablation-table1 SCALE=backcopy"]
    rate = small["variants"]["07-dyt-lr-5e-4"]["arguments"]["model.optimization.lr"]
    assert rate == pytest.approx(3e-3 * 5e-4 / 4.3e-3, rel=1e-3)
    clip = small["variants"]["10-clip-10"]
    assert clip["needs"] == "01-full-attention"
    assert clip["measured"]["model.residual_clip.threshold"]["times"] == pytest.approx(10 / 6000, rel=1e-3)
    assert "arguments" not in clip


def test_at_the_published_size_numbers_are_those_published() -> None:
    large = read_ablation(Path(FILE), "2b")
    assert large["commands"] == ["make ablation-table1 SCALE=2b"]
    assert large["variants"]["07-dyt-lr-5e-4"]["arguments"] == {"model.optimization.lr": 5e-4}
    clip = large["variants"]["10-clip-10"]
    assert clip["arguments"] == {"model.residual_clip.threshold": 10}
    assert not {"needs", "measured", "scaled", "published"} & set(clip)


def test_axes_hold_at_the_published_size_too(tmp_path: Path) -> None:
    """A factor is of the published number, another option takes its place, and what is not published is scaled."""
    (tmp_path / "c.yaml").write_text("model: {lr: 3.0, decay: 5.0}")
    axes = {
        "lr": {"x2": {"scaled": {"model.lr": 2, "model.decay": 10}}, "own": {"model.lr": 9.0}},
    }
    variants = {
        "v": {"scaled": {"model.lr": 0.5}, "published": {"model.lr": 7.0}, "measured": {}, "needs": "w"},
        "w": {"scaled": {"model.lr": 0.5}},
    }
    scales = {
        name: {"configs": [str(tmp_path / "c.yaml")], "as_published": name == "large"} for name in ("small", "large")
    }
    content = with_axes(Path("f"), {"name": "n", "scales": scales, "axes": axes, "variants": variants})
    small, large = (at_scale(Path("f"), content, name)["variants"] for name in ("small", "large"))
    assert small["v-lr-x2"]["arguments"] == {"model.lr": 3.0, "model.decay": 50.0}
    assert large["v-lr-x2"]["arguments"] == {"model.lr": 14.0, "model.decay": 50.0}
    assert large["v-lr-own"]["arguments"] == {"model.lr": 9.0}
    assert large["w-lr-x2"]["arguments"] == {"model.lr": 3.0, "model.decay": 50.0}


def test_the_last_configuration_gives_the_number(tmp_path: Path) -> None:
    for name, rate in {"first": 1.0, "last": 4.0}.items():
        (tmp_path / f"{name}.yaml").write_text(f"model: {{init_args: {{optimization: {{lr: {rate}}}}}}}")
    configs = [str(tmp_path / f"{name}.yaml") for name in ("first", "last")]
    variants = {"v": {"scaled": {"model.optimization.lr": 0.5}, "arguments": {"a": 1}}}
    content: dict[str, Any] = {"name": "n", "scales": {"s": {"configs": configs}}, "variants": variants}
    assert at_scale(Path("f"), content, None)["variants"]["v"]["arguments"] == {"a": 1, "model.optimization.lr": 2.0}
    variants["v"]["arguments"] = {"model.optimization.lr": 3.0}
    assert at_scale(Path("f"), content, None)["variants"]["v"]["arguments"] == {"model.optimization.lr": 1.5}
    variants["v"]["scaled"] = {"model.optimization.rate": 0.5}
    with pytest.raises(UserError, match=r"scales model.optimization.rate, which is None in the ablation's configs"):
        at_scale(Path("f"), content, None)


@pytest.mark.parametrize(
    ("file", "scale", "expected"),
    [
        (FILE, "3b", f"scale '3b' is not in {FILE}: choose among backcopy, text, 60m, 2b"),
        ("experiments/ablations/backcopy.yaml", "2b", "has one scale only: leave it out"),
    ],
)
def test_a_scale_that_is_not_offered_is_one_line(
    file: str, scale: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in one_line(["grid", file, f"--scale={scale}"], capsys)


def test_widths_make_parameters_equal() -> None:
    """Within half of what one more channel has."""
    architecture = Architecture(d_model=16, n_layers=2, n_heads=1, ffn_hidden=40)
    gated, plain = (make(11, 12, architecture=architecture) for make in (Gated, Baseline))
    count = parameters(plain, 40)
    width = width_for(gated, count)
    assert width < 40
    assert abs(parameters(gated, width) - count) <= (parameters(gated, 2) - parameters(gated, 1)) / 2
    assert width_for(plain, count) == 40
    with pytest.raises(UserError, match="without feed-forward layers the model has"):
        width_for(gated, 100)


def test_a_grid_prints_and_takes_equal_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    variants = "01-full-attention,02-ga,20-ga-gated-norm"
    assert main(["grid", FILE, f"--variants={variants}", "--seeds=0", "--commands=true"]) == 0
    printed = capsys.readouterr()
    differences = re.findall(r"parameters \(([-+][\d.]+)%\), feed-forward width (\d+)", printed.err)
    assert len(differences) == 2
    assert all(abs(float(difference)) < 0.1 for difference, _ in differences)
    lines = printed.out.splitlines()
    assert [re.findall(rf"--{WIDTH}=(\d+)", line) for line in lines] == [[], *([width] for _, width in differences)]
