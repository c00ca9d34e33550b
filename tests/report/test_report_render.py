"""report.md, report.html and the figures: complete, self-contained, reproducible."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sinks.cli import main
from sinks.record import RunFolder
from sinks.report import compare, figures, load_ablation, write_report
from sinks.report.claims import claims
from sinks.report.figures import training
from sinks.report.render import PICTURES, contents
from tests.report.synthetic import BACKCOPY, Levels, write_ablation, write_run

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Tags(HTMLParser):
    """Checks that tags close in order, and keeps what could be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        loads = ("src", "href", "srcset", "xlink:href")
        self.sources += [value or "" for name, value in attributes if name in loads]
        self.ids += [value or "" for name, value in attributes if name == "id"]
        assert tag not in ("link", "iframe", "img")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_ablation(tmp_path_factory.mktemp("backcopy"), BACKCOPY)
    write_report(root)
    return root


def everything(root: Path) -> dict[str, bytes]:
    files = [root / "report.md", root / "report.html", *sorted((root / "figures").iterdir())]
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def test_all_parts_are_present(written: Path) -> None:
    assert {file.name for file in (written / "figures").iterdir()} == {f"{p.name}.png" for p in PICTURES}
    text = (written / "report.md").read_text()
    for words in (
        "# Synthetic runs",
        "30 finished runs of 10 variants, 3 seeds. A paired loss difference varies by 0.00",
        "3 seeds can see a difference of 0.00",
        "no effect",
        "earlier recipe",
        "not a standard error",
        "in part: first-token mass falls a little",
        "Not measured in these runs: run sinks quantize",
        "sinks report",
        "commit: 0123456789ab",
    ):
        assert words in text
    for picture in re.findall(r"\]\((figures/\w+\.png)\)", text):
        assert (written / picture).is_file()


def test_tables_of_the_markdown_are_regular(written: Path) -> None:
    width = 0
    for line in (written / "report.md").read_text().splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert width in (0, cells)
        width = cells


def test_html_is_self_contained_and_well_formed(written: Path) -> None:
    text = (written / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert len(set(tags.ids)) == len(tags.ids)
    assert all(source.removeprefix("#") in tags.ids for source in tags.sources)
    assert text.count('<svg class="drawing"') == len(PICTURES) - 1  # the maps have a slider
    assert "http" not in re.sub(r'"http://www.w3.org/[^"]*"', "", text)
    assert "prefers-color-scheme: dark" in text
    assert "overflow-x: auto" in text


def test_writing_twice_gives_the_same_files(written: Path, tmp_path: Path) -> None:
    before = everything(written)
    write_report(written, tmp_path / "out")
    assert everything(tmp_path / "out") == before


def test_a_label_cannot_break_the_page(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline/seed0", "baseline", 0, Levels(), statistics=False)
    label = "<b>a|b</b>"
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump({"variants": {"baseline": {"label": label}}}))
    write_report(tmp_path)
    assert label not in (tmp_path / "report.html").read_text()
    assert "<b>a\\|b</b>" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("variants", "keywords"),
    [
        ({"baseline": BACKCOPY["baseline"]}, {"seeds": (0,)}),
        ({"gated-norm": BACKCOPY["gated-norm"]}, {"seeds": (0, 1), "described": False}),
        (
            {"baseline": BACKCOPY["baseline"], "dyt": Levels(diverged=True, side="residual")},
            {"statistics": False},
        ),
        ({"baseline": BACKCOPY["baseline"], "preaffine": BACKCOPY["preaffine"]}, {"layers": 10, "heads": 6}),
    ],
    ids=["one-run", "no-baseline", "diverged-without-statistics", "many-heads"],
)
def test_small_and_odd_collections(tmp_path: Path, variants: dict[str, Levels], keywords: dict[str, Any]) -> None:
    _, html = write_report(write_ablation(tmp_path, variants, **keywords))
    missing = 'No figure "Location of the attention sink"' in (tmp_path / "report.md").read_text()
    assert missing == (keywords.get("statistics") is False)
    assert html.is_file()


def test_a_summary_is_sufficient(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "baseline/seed0")
    folder.write_config("{}")
    folder.finish({"variant": "baseline", "seed": 0, "val_loss": 1.5})
    write_report(tmp_path)
    assert not list((tmp_path / "figures").iterdir())
    assert "commit: no commit" in (tmp_path / "report.md").read_text()


NOT_REPORTED = dict.fromkeys(
    ("first_token_mass", "first_token_mass_max_head", "value_norm_ratio_max_head", "sink_ratio_0.3")
)


def without_attention(folder: RunFolder, absent: bool) -> None:
    """Leave a run as an attention that reports nothing would write it: null, or not at all."""
    summary = {key: value for key, value in folder.summary().items() if key not in NOT_REPORTED}
    folder.finish(summary if absent else summary | NOT_REPORTED)
    statistics = {stage: folder.statistics(stage) for stage in ("train", "validation")}
    lines = [{k: math.nan if "/attention/" in k else v for k, v in line.items()} for line in folder.metrics()]
    if absent:
        lines = [{k: v for k, v in line.items() if "/attention/" not in k} for line in lines]
    (folder.path / "metrics.jsonl").unlink()
    folder.append_metrics(lines)
    for file in (folder.path / "statistics").iterdir():
        file.unlink()
    for stage, found in statistics.items():
        arrays = {name: array for name, array in found.arrays.items() if not name.startswith("attention/")}
        if not absent:  # a joined flush without the array
            arrays["attention/first_token_mass"] = np.full_like(found.arrays["attention/first_token_mass"], np.nan)
        folder.append_statistics(stage, replace(found, arrays=arrays))


@pytest.mark.parametrize("absent", [False, True], ids=["null", "absent"])
def test_a_variant_whose_attention_reports_nothing(tmp_path: Path, absent: bool) -> None:
    names = ("baseline", "gated-attention", "gated-norm", "dyt")
    root = write_ablation(tmp_path, {name: BACKCOPY[name] for name in names})
    for name in ("gated-attention", "gated-norm", "dyt"):
        for seed in range(3):
            without_attention(RunFolder(root / f"{name}/seed{seed}"), absent)
    comparison, _ = write_report(root)
    outcomes = {result.variant.name: (result.outcome, result.reason) for result in comparison.results}
    assert outcomes["gated-attention"] == ("not shown", "first-token mass not measured")
    assert outcomes["gated-norm"] == ("not shown", "first-token mass not measured")
    assert outcomes["dyt"] == ("in part", "R falls a little, loss higher")  # asks nothing of the attention
    text = (root / "report.md").read_text()
    assert re.search(r"\| Output gate \| 3 \| [^|]+\| [^|]+\| [^|]+\| - \| - \| 11\.9", text)
    assert "No figure" not in text  # the baseline has the numbers


def test_a_baseline_without_attention_statistics(tmp_path: Path) -> None:
    root = write_ablation(tmp_path, {name: BACKCOPY[name] for name in ("baseline", "gated-attention", "gated-norm")})
    for seed in range(3):
        without_attention(RunFolder(root / f"baseline/seed{seed}"), absent=True)
    comparison, _ = write_report(root)
    assert {r.outcome for r in comparison.results[1:]} == {"not shown"}
    text = (root / "report.md").read_text()
    assert re.search(r"\| Baseline \| 3 \| [^|]+\| - \| - \| - \| - \| 12\.1", text)
    assert "first-token mass not measured" in text
    assert "attention sink (first-token mass" not in text  # no alert that none formed


def test_without_attention_its_figures_are_omitted(tmp_path: Path) -> None:
    root = write_ablation(tmp_path, {"baseline": BACKCOPY["baseline"], "gated-norm": BACKCOPY["gated-norm"]})
    for path in root.glob("*/seed*"):
        without_attention(RunFolder(path), absent=False)
    write_report(root)
    text = (root / "report.md").read_text()
    absent = {
        "The two sinks, distinguished", "The attention sink over training", "Location of the attention sink",
        "How much attention is used, and where the rest goes",
    }  # fmt: skip
    assert set(re.findall(r'No figure "([^"]+)": no run has the required numbers', text)) == absent
    assert {file.stem for file in (root / "figures").iterdir()} == {"sink_score", "sorted_dimensions"}


def test_runs_without_any_statistics(tmp_path: Path) -> None:
    variants = {name: BACKCOPY[name] for name in ("baseline", "gated-attention", "gated-norm", "gate-and-gated-norm")}
    root = write_ablation(tmp_path, variants, statistics=False)
    for path in root.glob("*/seed*"):
        folder = RunFolder(path)
        folder.finish({key: folder.summary()[key] for key in ("variant", "seed", "steps", "val_loss")})
        (path / "metrics.jsonl").unlink()
        (path / "provenance.json").unlink()
    comparison, _ = write_report(root)
    assert {r.outcome for r in comparison.results[1:]} == {"not shown"}
    assert not list((root / "figures").iterdir())
    text = (root / "report.md").read_text()
    assert text.count("No figure") == len(PICTURES)
    assert re.search(r"\| Baseline \| 3 \| 1\.5[^|]+\| - \| - \| - \| - \| - \| - \|  \|", text)
    assert {claim.verdict for claim in claims(comparison)} == {"cannot tell"}


def test_runs_of_two_commits_are_reported_to_differ(tmp_path: Path) -> None:
    write_ablation(tmp_path, {"baseline": BACKCOPY["baseline"]}, statistics=False)
    folder = RunFolder(tmp_path / "baseline/seed1")
    folder.write_provenance(folder.provenance() | {"commit": "f" * 40, "dirty": True})
    lines = contents(compare(load_ablation(tmp_path)))["provenance"]
    expected = "commit: the runs DIFFER: 0123456789ab (2 runs); ffffffffffff with uncommitted changes (1 runs)"
    assert expected in lines
    assert "steps: 1000" in lines
    assert "wall time: 30 s per run (median), 90 s in total" in lines


def test_reproduction_names_the_grid(tmp_path: Path) -> None:
    write_ablation(tmp_path / "backcopy", {"baseline": BACKCOPY["baseline"]}, statistics=False)
    file = tmp_path / "backcopy/ablation.yaml"
    file.write_text(file.read_text() + "file: experiments/ablations/backcopy.yaml\n")
    again = contents(compare(load_ablation(tmp_path / "backcopy")))["again"]
    assert again[0].startswith("git checkout 0123")
    assert f"--seeds=0,1,2 --steps=1000 --runs={tmp_path}" in again[1]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_ablation(tmp_path / "runs", {"baseline": BACKCOPY["baseline"]}, seeds=(0,), statistics=False)
    assert main(["report", str(root), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("variant")
    assert str(tmp_path / "out/report.html") in printed
    assert not (root / "report.md").exists()
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is not a folder" in error


def test_figures_do_not_change_matplotlibs_settings(written: Path) -> None:
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    assert figures.double_dissociation(compare(load_ablation(written))) is not None
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_curves_are_means_and_ranges_over_common_steps(tmp_path: Path) -> None:
    key = training.SINK_SCORE
    for seed, lines in enumerate(([(0, 1.0), (10, 5.0), (20, 9.0)], [(0, 3.0), (10, 7.0), (10, 8.0)])):
        folder = write_run(tmp_path / f"baseline/seed{seed}", "baseline", seed, Levels(), statistics=False)
        (folder.path / "metrics.jsonl").unlink()
        folder.append_metrics([{"step": step, key: value} for step, value in lines])
    steps, values = training._over_seeds(load_ablation(tmp_path).variants[0].runs, key)
    assert steps.tolist() == [0, 10]  # what both logged; the later line of step 10 counts
    assert values.tolist() == [[1.0, 5.0], [3.0, 8.0]]


@pytest.mark.parametrize(
    ("device", "trainer", "expected"),
    [
        ("synthetic machine", {"precision": "32-true"}, []),
        ("synthetic machine", {"precision": "bf16-mixed"}, ["2 precisions (32-true, bf16-mixed)"]),
        ("another", {"precision": "32-true"}, ["2 devices (another, synthetic machine)"]),
        ("another", {"precision": "bf16-mixed"}, ["2 devices", "2 precisions"]),
        ("synthetic machine", [5], []),  # a damaged configuration states none
    ],
)
def test_runs_of_several_devices_or_precisions_are_named_first(
    device: str, trainer: object, expected: list[str], tmp_path: Path
) -> None:
    for name, own in (("baseline", {"precision": "32-true"}), ("other", trainer)):
        folder = write_run(tmp_path / name / "seed0", name, 0, Levels())
        folder.write_config(yaml.safe_dump({"seed_everything": 0, "trainer": own, "model": {"class_path": name}}))
        if name == "other":
            folder.write_provenance(folder.provenance() | {"device": device})
    first = contents(compare(load_ablation(tmp_path)))["answer"][0]
    assert ("by itself changes their numbers" in first) == bool(expected)
    assert all(each in first for each in expected)
