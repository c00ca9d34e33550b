"""Table numbers against hand-computed ones; rejected inputs; remarks."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sinks.errors import UserError
from sinks.record import RunFolder
from sinks.report import compare, load_ablation, reproduction, tables, terminal
from sinks.report.render import contents
from sinks.report.spread import Spread, move
from tests.report.synthetic import BACKCOPY, STEPS, Levels, write_ablation, write_run


def row(root: Path, label: str) -> dict[str, str]:
    """A variant's cells of both tables, by heading."""
    comparison, found = compare(load_ablation(root)), {}
    for table in (tables.results(comparison), tables.further(comparison)):
        if table is not None:
            found |= dict(zip(table.headings, next(r for r in table.rows if r[0] == label), strict=True))
    return found


def two_variants(root: Path) -> Path:
    """Baseline losses 1.50, 1.53, 1.56; gate losses 1.51, 1.52, 1.59: paired differences +.01, -.01, +.03."""
    for seed, (base, gate) in enumerate([(1.50, 1.51), (1.53, 1.52), (1.56, 1.59)]):
        for name, loss, first in (("baseline", base, 0.8 + 0.05 * seed), ("gate", gate, 0.1 * seed)):
            write_run(
                root / name / f"seed{seed}",
                name,
                seed,
                Levels(),
                statistics=False,
                val_loss=loss,
                first_token_mass_max_head=first,
                residual_sink_score=12.0 + seed,
                gate_mean=0.4 if name == "gate" else None,
            )
    return root


def test_means_half_ranges_and_paired_differences_by_hand(tmp_path: Path) -> None:
    gate = row(two_variants(tmp_path), "gate")
    assert gate["seeds"] == "3"
    assert gate["validation loss"] == "1.540 \u00b1 0.040"  # (1.51 + 1.52 + 1.59) / 3; (1.59 - 1.51) / 2
    assert gate["\u0394 loss, paired"] == "+0.0100 [-0.0397, +0.0597]"
    assert gate["first-token mass"] == "0.10 \u00b1 0.10"
    assert gate["R"] == "13.0 \u00b1 1.0"
    assert gate["attention gate, mean"] == "0.40 \u00b1 0.00"
    assert gate["smallest visible \u0394 loss"] == "0.065"  # 3.26 standard deviations of 0.02
    assert gate["remark"] == "loss: cannot tell below 0.065"
    baseline = row(tmp_path, "baseline")
    assert baseline["\u0394 loss, paired"] == "-"
    assert baseline["attention gate, mean"] == "-"
    assert baseline["first-token mass"] == "0.85 \u00b1 0.05"
    assert "learned-sink mass" not in baseline


def test_differences_are_paired_by_seed_data_and_steps(tmp_path: Path) -> None:
    root = two_variants(tmp_path)
    write_run(root / "gate/seed3", "gate", 3, Levels(), statistics=False, val_loss=9.0)  # no such baseline
    write_run(root / "gate/seed2", "gate", 2, Levels(), statistics=False, val_loss=1.59, data_fingerprint="other")
    assert row(root, "gate")["\u0394 loss, paired"] == "+0.0000 [-0.1271, +0.1271]"


def test_a_diverged_run_is_reported_but_not_averaged(tmp_path: Path) -> None:
    root = two_variants(tmp_path)
    write_run(root / "gate/seed3", "gate", 3, Levels(diverged=True), statistics=False, residual_max_abs=1e9)
    gate = row(root, "gate")
    assert gate["seeds"] == "3"
    assert gate["validation loss"] == "1.540 \u00b1 0.040"
    assert gate["remark"].startswith("1 diverged")
    diverged = tables.diverged(compare(load_ablation(root)))
    assert diverged is not None
    assert diverged.rows == [["gate", "3", "300", "1.540", "-", "1000000000.0"]]
    write_run(root / "dyt/seed0", "dyt", 0, Levels(diverged=True), statistics=False)
    assert row(root, "dyt")["remark"] == "diverged"
    assert row(root, "dyt")["validation loss"] == "-"


def test_an_unfinished_run_and_a_missing_seed_are_named(tmp_path: Path) -> None:
    root = two_variants(tmp_path)
    RunFolder(root / "gate/seed3").write_config("{}")
    variants = {"baseline": {}, "gate": {"label": "Gate"}, "dyt": {"label": "DyT"}}
    (root / "ablation.yaml").write_text(yaml.safe_dump({"seeds": [0, 1, 2, 3, 4], "variants": variants}))
    assert row(root, "Gate")["remark"] == "1 unfinished, 1 not run, loss: cannot tell below 0.065"
    ablation = load_ablation(root)
    assert [v.name for v in ablation.variants] == ["baseline", "gate"]
    lines = contents(compare(ablation))["unfinished"]
    assert "not run: DyT" in lines
    assert f"unfinished: {root}/gate/seed3" in lines
    assert "not run: Gate, seed 4" in lines


def test_a_clip_that_clips_nothing_has_no_effect(tmp_path: Path) -> None:
    write_run(tmp_path / "clip/seed0", "clip", 0, Levels(), statistics=False, clipped_share=0.0)
    assert row(tmp_path, "clip")["remark"] == "no effect"
    write_run(tmp_path / "clip/seed0", "clip", 0, Levels(), statistics=False, clipped_share=0.01)
    assert row(tmp_path, "clip")["remark"] == ""
    assert row(tmp_path, "clip")["values clipped, %"] == "1.00"


def test_mixed_runs_of_a_variant_are_rejected(tmp_path: Path) -> None:
    root = two_variants(tmp_path)
    write_run(root / "gate/seed2", "gate", 2, Levels(), statistics=False, variant_fingerprint="another")
    with pytest.raises(UserError, match=r"gate/seed1 and .*gate/seed2 .* differ in variant_fingerprint .*: delete"):
        load_ablation(root)
    write_run(root / "gate/seed2", "gate", 2, Levels(), statistics=False, variant_fingerprint=None, steps=77)
    with pytest.raises(UserError, match=r"differ in steps \(1000 and 77\)") as error:
        load_ablation(root)
    assert "\n" not in str(error.value)


def test_runs_of_a_variant_on_other_text_are_rejected(tmp_path: Path) -> None:
    for seed in (0, 1):
        content = {"content_fingerprint": f"text {seed}"}
        write_run(tmp_path / f"gate/seed{seed}", "gate", seed, Levels(), statistics=False, **content)
    with pytest.raises(UserError, match=r"differ in content_fingerprint \(text 0 and text 1\)"):
        load_ablation(tmp_path)


def test_runs_that_their_own_rule_stopped_may_differ_in_steps(tmp_path: Path) -> None:
    for seed, steps in ((0, 700), (1, 900)):
        more = {"steps": steps, "tokens": steps, "stopped_early": True}
        write_run(tmp_path / f"gate/seed{seed}", "gate", seed, Levels(), statistics=False, **more)
    assert row(tmp_path, "gate")["seeds"] == "2"


@pytest.mark.parametrize(("own", "mentioned"), [(None, "baseline, gate"), (STEPS[-1], "baseline")])
def test_runs_of_other_steps_than_requested_are_named(own: int | None, mentioned: str, tmp_path: Path) -> None:
    root = write_ablation(tmp_path, {"baseline": Levels(), "gate": Levels()}, statistics=False)
    file = root / "ablation.yaml"
    content = yaml.safe_load(file.read_text())
    assert not any("requests" in line for line in reproduction.lines(load_ablation(root)))
    content["steps"] += 1
    if own is not None:
        content["variants"]["gate"]["arguments"] = {"trainer.max_steps": int(own)}
    file.write_text(yaml.safe_dump(content))
    (line,) = (line for line in reproduction.lines(load_ablation(root)) if "requests" in line)
    assert f"requests: {mentioned}:" in line


@pytest.mark.parametrize("stated", [None, False])
def test_a_run_without_a_seed_is_not_seed_0(stated: object, tmp_path: Path) -> None:
    root = two_variants(tmp_path)
    paired = row(root, "gate")["\u0394 loss, paired"]
    for name in ("seed0", "again"):
        run = write_run(root / f"more/gate/{name}", "gate", 0, Levels(), statistics=False, val_loss=9.0)
        run.finish(run.summary() | {"seed": stated})
    ablation = load_ablation(root)
    (gate,) = (variant for variant in ablation.variants if variant.name == "gate")
    assert [run.seed for run in gate.runs] == [0, 1, 2, None, None]
    assert row(root, "gate")["\u0394 loss, paired"] == paired
    assert "seeds: 0, 1, 2, unseeded" in reproduction.lines(ablation)
    assert "--seeds=0,1,2 " in " ".join(reproduction.again(replace(ablation, file="ablation.yaml"))) + " "


def test_a_run_without_validation_has_no_loss_and_has_not_diverged(tmp_path: Path) -> None:
    root = two_variants(tmp_path)
    for seed in (0, 1):
        write_run(root / f"fast/seed{seed}", "fast", seed, Levels(), statistics=False, val_loss=None)
    fast = row(root, "fast")
    assert (fast["seeds"], fast["validation loss"], fast["\u0394 loss, paired"]) == ("2", "-", "-")
    assert fast["remark"] == "no validation"
    assert "fast" in tables.terminal(compare(load_ablation(root)))
    write_run(root / "fast/seed0", "fast", 0, Levels(), statistics=False, val_loss=float("nan"))
    assert row(root, "fast")["remark"].startswith("1 diverged")


def test_a_variant_that_needs_another_run_has_a_fingerprint_per_seed(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"clip/seed{seed}", "clip", seed, Levels(), statistics=False, variant_fingerprint=seed)
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump({"variants": {"clip": {"needs": "baseline"}}}))
    assert len(load_ablation(tmp_path).variants[0].runs) == 2


def test_two_ablations_at_once_are_rejected(tmp_path: Path) -> None:
    for ablation in ("first", "second"):
        write_run(tmp_path / ablation / "baseline/seed0", "baseline", 0, Levels(), statistics=False)
    with pytest.raises(UserError, match="report one ablation at a time"):
        load_ablation(tmp_path)


def test_a_folder_without_runs_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder: give one"):
        load_ablation(tmp_path / "nowhere")
    with pytest.raises(UserError, match="contains no run: train one"):
        load_ablation(tmp_path)
    RunFolder(tmp_path / "baseline/seed0").write_config("{}")
    with pytest.raises(UserError, match="none is finished"):
        load_ablation(tmp_path)


def test_order_and_baseline_without_an_ablation_file(tmp_path: Path) -> None:
    write_ablation(tmp_path, dict(reversed(BACKCOPY.items())), seeds=(0,), described=False, statistics=False)
    ablation = load_ablation(tmp_path)
    assert [v.name for v in ablation.variants] == ["baseline", *sorted(set(BACKCOPY) - {"baseline"})]
    assert ablation.baseline is ablation.variants[0]


def test_the_file_gives_order_and_a_run_outside_it_comes_last(tmp_path: Path) -> None:
    write_run(tmp_path / "aaa/seed0", "aaa", 0, Levels(), statistics=False)
    write_ablation(tmp_path, dict(reversed(BACKCOPY.items())), seeds=(0,), statistics=False)
    assert [v.name for v in load_ablation(tmp_path).variants] == [*reversed(BACKCOPY), "aaa"]


@pytest.mark.parametrize("content", ["[1, 2]", "variants: 3", "variants: {baseline: {side: left}}"])
def test_a_wrong_ablation_file_is_a_user_error(tmp_path: Path, content: str) -> None:
    write_run(tmp_path / "baseline/seed0", "baseline", 0, Levels(), statistics=False)
    (tmp_path / "ablation.yaml").write_text(content)
    with pytest.raises(UserError, match="ablation"):
        load_ablation(tmp_path)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_the_terminal_table_is_ascii_aligned_and_fits(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    long = {"a-variant-with-a-name-that-is-much-too-long": Levels(score=123456.7, side="both")}
    text = terminal(compare(load_ablation(write_ablation(tmp_path, BACKCOPY | long, seeds=seeds, statistics=False))))
    lines = text.splitlines()
    assert text.isascii()
    assert max(map(len, lines)) <= 120
    assert len(lines) == 2 + len(BACKCOPY) + 1
    end_of_loss = lines[0].index("val loss") + len("val loss")
    assert all(line[end_of_loss - 1] != " " and line[end_of_loss] == " " for line in lines[2:])


BASE = Spread(0.8, 0.75, 0.85, 3)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (Spread(0.1, 0.0, 0.2, 3), "falls"),  # -0.7: beyond a third (0.27) and beyond 0.05 + 0.10
        (Spread(0.6, 0.5, 0.7, 3), "falls a little"),  # -0.2: within a third, but beyond 0.05 + 0.10
        (Spread(0.6, 0.4, 0.8, 3), "stays"),  # -0.2: within a third and within 0.05 + 0.20
        (Spread(0.5, 0.1, 0.9, 3), "unclear"),  # -0.3: beyond a third, but within 0.05 + 0.40
        (Spread(1.2, 1.2, 1.2, 3), "rises"),
        (Spread(0.9, 0.9, 0.9, 3), "rises a little"),
    ],
)
def test_move(variant: Spread, expected: str) -> None:
    assert move(BASE, variant) == expected


def test_spread_of_no_values_and_of_nonfinite_values() -> None:
    assert Spread.of([]) is None
    assert Spread.of([float("nan"), float("inf")]) is None
    assert Spread.of([float("nan"), 2.0]) == Spread(2.0, 2.0, 2.0, 1)
