"""The run folder gives back what was written, also after a crash and a resume."""

import math
from pathlib import Path

import numpy as np
import pytest

from sinks.errors import UserError
from sinks.record import RunFolder, Statistics, find_runs
from sinks.record.folder import from_json, to_json
from sinks.record.logger import RunFolderLogger

SITES = {"attention": ["blocks.0.attention", "blocks.1.attention"]}


def statistics(steps: list[int], names: tuple[str, ...] = ("attention/first_token_mass",)) -> Statistics:
    """Arrays [S, 2, 3] whose entries are their step."""
    values = np.asarray(steps, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), dtype=np.float32)
    return Statistics(np.asarray(steps), dict.fromkeys(names, values), SITES)


def test_json_keeps_what_is_not_finite() -> None:
    text = to_json({"a": math.nan, "b": [math.inf, -math.inf, 1.5], "c": None, "d": {"e": True}})
    assert "NaN" not in text
    back = from_json(text)
    assert math.isnan(back["a"])
    assert back["b"] == [math.inf, -math.inf, 1.5]
    assert back["c"] is None
    assert back["d"] == {"e": True}


def test_config_provenance_summary(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "variant/seed0")
    assert not folder.finished
    folder.write_config("seed_everything: 3\n")
    folder.write_provenance({"commit": None})
    assert not folder.finished
    folder.finish({"val_loss": math.nan, "steps": 7})
    assert folder.finished
    assert folder.config() == {"seed_everything": 3}
    assert folder.provenance() == {"format": 2, "commit": None}
    assert math.isnan(folder.summary()["val_loss"])
    assert {file.name for file in folder.path.iterdir()} == {"config.yaml", "provenance.json", "summary.json"}


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for read in (folder.config, folder.provenance, folder.summary, folder.metrics, folder.statistics):
        with pytest.raises(UserError, match=str(tmp_path)) as error:
            read()
        assert "\n" not in str(error.value)


def test_a_series_is_what_was_logged_under_its_key(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics([{"step": 1, "train/loss": 3.0}, {"step": 2, "validation/loss": 2.0}])
    folder.append_metrics([{"step": 3, "train/loss": math.nan}])
    steps, values = folder.series("train/loss")
    assert steps.tolist() == [1, 3]
    assert values[0] == 3.0
    assert math.isnan(values[1])
    assert len(folder.series("nothing")[0]) == 0


def test_a_line_truncated_by_a_crash_is_dropped_and_removed_on_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics([{"step": 1, "train/loss": 3.0}, {"step": 2, "train/loss": 2.0}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train/lo')
    assert [line["step"] for line in folder.metrics()] == [1, 2]
    folder.truncate_after(2)
    folder.append_metrics([{"step": 3, "train/loss": 1.0}])
    assert folder.series("train/loss")[1].tolist() == [3.0, 2.0, 1.0]


def test_flushes_are_joined_in_order_and_stages_kept_separate(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_statistics("train", statistics([1, 50]))
    folder.append_statistics("validation", statistics([100]))
    folder.append_statistics("train", statistics([100, 150]))
    read = folder.statistics("train")
    assert read.steps.tolist() == [1, 50, 100, 150]
    assert read.arrays["attention/first_token_mass"][:, 1, 2].tolist() == [1, 50, 100, 150]
    assert read.sites == SITES
    assert folder.statistics("validation").steps.tolist() == [100]


@pytest.mark.parametrize("step", [0, 1, 60, 100, 150, 999])
def test_truncating_and_resuming_equals_an_uninterrupted_run(tmp_path: Path, step: int) -> None:
    every = [1, 50, 100, 150]
    folder = RunFolder(tmp_path)
    folder.append_metrics([{"step": s, "train/loss": float(s)} for s in every])
    folder.append_statistics("train", statistics(every[:3]))
    folder.append_statistics("train", statistics(every[3:]))
    folder.append_statistics("validation", statistics([100]))
    folder.truncate_after(step)
    folder.truncate_after(step)
    again = [s for s in every if s > step]
    if again:
        folder.append_statistics("train", statistics(again))
        folder.append_metrics([{"step": s, "train/loss": float(s)} for s in again])
    assert folder.statistics("train").steps.tolist() == every
    assert folder.series("train/loss")[0].tolist() == every
    assert len(list((tmp_path / "statistics").glob("*-validation.safetensors"))) == (step >= 100)


def test_an_array_missing_at_some_steps_is_nan_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    both = ("attention/first_token_mass", "attention/learned_sink_mass")
    logger = RunFolderLogger(str(tmp_path), flush_every=2)
    for part in (statistics([1]), statistics([2], both), statistics([3], both), statistics([4])):
        logger.log_statistics("train", part)
    read = folder.statistics("train")
    assert read.steps.tolist() == [1, 2, 3, 4]
    assert np.isnan(read.arrays["attention/learned_sink_mass"][:, 0, 0]).tolist() == [True, False, False, True]
    assert not np.isnan(read.arrays["attention/first_token_mass"]).any()


def test_the_logger_merges_what_is_logged_at_one_step(tmp_path: Path) -> None:
    logger = RunFolderLogger(str(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.log_metrics({"validation/loss": 2.0, "epoch": 0}, 1)
    logger.log_metrics({"train/loss": 3.0}, 2)
    assert not (tmp_path / "statistics").exists()
    logger.save()
    assert RunFolder(tmp_path).metrics() == [
        {"step": 1, "train/loss": 1.0, "validation/loss": 2.0},
        {"step": 2, "train/loss": 3.0},
    ]


def test_find_runs(tmp_path: Path) -> None:
    for name in ("b/seed0", "a/seed1", "a/seed0"):
        RunFolder(tmp_path / name).write_config("{}")
    RunFolder(tmp_path / "no-config/seed0").finish({})
    assert [str(run.path.relative_to(tmp_path)) for run in find_runs(tmp_path)] == ["a/seed0", "a/seed1", "b/seed0"]
    assert [run.path for run in find_runs(tmp_path / "a/seed0")] == [tmp_path / "a/seed0"]
    assert find_runs(tmp_path / "nowhere") == []


def test_a_validation_is_replaced_by_the_same_result_only(tmp_path: Path) -> None:
    def written(loss: float, started: str) -> Path:
        return RunFolder(tmp_path).write_validation(Path("step6.ckpt"), {"validation/loss": loss}, {"started": started})

    first, again, other = written(1.5, "today"), written(1.5, "tomorrow"), written(1.6, "today")
    assert first == again != other
    expected = {"checkpoint": "step6.ckpt", "validation/loss": 1.5, "started": "tomorrow"}
    assert from_json(first.read_text()) == expected
    assert sorted((tmp_path / "validation").iterdir()) == sorted([first, other])


def test_a_damaged_line_is_named_not_skipped_with_those_after_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    for read in (folder.metrics, lambda: folder.truncate_after(1)):
        with pytest.raises(UserError, match=r"metrics.jsonl is damaged \(line 2 is no JSON object with a step\)"):
            read()
    assert '"step": 3' in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
@pytest.mark.parametrize("name", ["summary", "provenance"])
def test_a_damaged_file_is_named_in_one_line(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"{name}.json is damaged") as error:
        getattr(RunFolder(tmp_path), name)()
    assert "\n" not in str(error.value)


def test_arrays_by_layer_have_no_number_where_a_layer_has_no_attention() -> None:
    sites = {"norm": ["blocks.0.attention.norm", "blocks.3.feed_forward.norm", "head.norm"]}
    sites |= {"attention": ["blocks.1.attention", "blocks.3.attention"]}
    values = np.arange(8.0, dtype=np.float32).reshape(2, 2, 2)
    found = Statistics(np.arange(2), {"attention/entropy": values}, sites).by_layer("attention/entropy")
    assert found.shape == (2, 4, 2)
    assert np.array_equal(found[:, [1, 3]], values)
    assert np.isnan(found[:, [0, 2]]).all()
