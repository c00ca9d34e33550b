"""A user's own class, named in one YAML: it trains, is validated, and is reported, with numbers that are right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sinks.cli import main
from sinks.models.attention import Attention
from sinks.observe import Reader, sites_of
from sinks.record import RunFolder
from sinks.report import write_report
from sinks.runs import load_run
from tests.cli.small import fit

PARTS: dict[str, dict[str, Any]] = {
    "rectified": {"normalizer": "Rectified"},
    "tempered": {"norm": "TemperedNorm", "head_norm": "TemperedNorm"},
    "squashed": {"norm": "SquashedNorm", "head_norm": "SquashedNorm"},
    "silent": {"mixer": "RunningMean"},
}


@pytest.fixture(scope="module", params=PARTS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunFolder]:
    """A finished run of each."""
    folder = tmp_path_factory.mktemp(request.param)
    file = folder / "variant.yaml"
    parts = {axis: {"class_path": f"tests.checks.user_parts.{name}"} for axis, name in PARTS[request.param].items()}
    file.write_text(yaml.safe_dump({"model": {"class_path": "CausalLM", "init_args": parts}}))
    return request.param, fit(folder / request.param / "seed0", "-c", str(file))


def rows_of(data: Any) -> torch.Tensor:
    """All validation rows [N, T + 1]."""
    rows = data.validation_set()
    return torch.stack([rows[i] for i in range(len(rows))])


def test_it_is_validated_as_it_is_computed(run: tuple[str, RunFolder]) -> None:
    """The loss of the last validation, with statistics on, is that of the loaded model, unread."""
    _, folder = run
    loaded = load_run(folder.path)
    rows = rows_of(loaded.data)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        loss = float(loaded.model.loss(rows))
    assert loss == pytest.approx(folder.summary()["val_loss"], rel=2e-3)
    assert main(["validate", "-c", str(folder.config_file), "--run.dir", str(folder.path)]) == 0
    (result,) = (json.loads(file.read_text()) for file in (folder.path / "validation").iterdir())
    assert result["validation/loss"] == pytest.approx(folder.summary()["val_loss"], rel=1e-6)


def test_its_statistics_are_those_of_what_it_computes(run: tuple[str, RunFolder]) -> None:
    name, folder = run
    loaded = load_run(folder.path)
    tokens = rows_of(loaded.data)[:, :-1]
    reader = Reader(sites_of(loaded.model))
    for _ in range(2):
        with reader.reading(), torch.no_grad():
            loaded.model(tokens)
        scalars, found = reader.summarize()
    summary = folder.summary()
    if name == "silent":
        assert not [key for key in scalars if key.startswith("attention/")]
        assert summary["first_token_mass"] is None
        return
    maps = torch.stack([loaded.model.attention_maps(row[None]) for row in tokens])  # [B, layers, heads, T, T]
    shares = maps / maps.sum(-1, keepdim=True).clamp_min(1e-30)
    mass = torch.from_numpy(found.arrays["attention/first_token_mass"][0])
    torch.testing.assert_close(mass, shares[..., 1:, 0].mean((0, 3)), rtol=1e-4, atol=1e-5)
    seen = torch.arange(shares.shape[-1], 0, -1)
    alpha = torch.from_numpy(found.arrays["attention/alpha"][0])
    torch.testing.assert_close(alpha, (shares.sum(-2) / seen).mean(0)[..., :4], rtol=1e-4, atol=1e-5)
    # The theorem bounds what an RMSNorm makes of what it divides: in the squashed norm that is the squashed input.
    assert scalars["norm/bound"] <= 1 + 1e-5
    assert scalars["norm/bound"] > 0.9
    assert isinstance(loaded.model.decoder.blocks[0].attention, Attention)  # type: ignore[union-attr]


def test_a_number_of_no_dimension_is_trained(run: tuple[str, RunFolder]) -> None:
    name, folder = run
    if name == "tempered":
        weights = torch.load(folder.last_checkpoint, weights_only=True)["state_dict"]
        assert weights["decoder.blocks.0.attention_norm.norm.temperature"] != 1


def test_it_is_reported(run: tuple[str, RunFolder]) -> None:
    name, folder = run
    _, html = write_report(folder.path.parents[1])
    text = (html.parent / "report.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} | 1 |")]
    assert ("| - |" in row) == (name == "silent" or "None" in row or row.count("| - |") > 0)


@pytest.mark.parametrize(
    "statistics",
    [
        ["--statistics.leave_out", "[mass]"],
        ["--statistics.leave_out", "[residual]"],
        ["--statistics.sites", '["*.norm"]'],
        ["--statistics.sites", '["*.attention"]'],
        ["--statistics.leave_out", "[mass,rows,keys,values,contribution,attention_gate,gain]"],
    ],
)
def test_omitted_statistics_are_absent_and_nothing_breaks(statistics: list[str], tmp_path: Path) -> None:
    run = fit(tmp_path / "baseline" / "seed0", *statistics, "--progress.enabled", "true", "--trainer.logger", "true")
    summary = run.summary()
    assert (summary["first_token_mass"] is None) == ("mass" in statistics[1] or "*.norm" in statistics[1])
    assert (summary["residual_sink_score"] is None) == (
        "residual" in statistics[1] or "attention" in statistics[1][:15]
    )
    write_report(tmp_path)
