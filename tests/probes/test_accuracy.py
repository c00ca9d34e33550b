"""Small tasks in percent: against plain loops, and models of which the answer is known."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.cli import main
from sinks.errors import UserError
from sinks.probes import accuracy
from sinks.report import accuracy as reported
from sinks.report import compare, load_ablation
from tests.report.synthetic import Levels, write_run

VOCABULARY = 11


def random_rows(count: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


def predicts(next_token: Callable[[Tensor], int]) -> accuracy.Logits:
    """Logits of a model that predicts of every prefix what a function says."""

    def logits(tokens: Tensor) -> Tensor:
        said = [[next_token(row[: t + 1]) for t in range(len(row))] for row in tokens]
        return 5.0 * F.one_hot(torch.tensor(said), VOCABULARY).double()

    return logits


def copies(prefix: Tensor) -> int:
    """What followed the last token when it was there last; 0 if it never was."""
    earlier = (prefix[:-1] == prefix[-1]).nonzero()
    return int(prefix[earlier[-1] + 1]) if len(earlier) else 0


def uniform(tokens: Tensor) -> Tensor:
    return torch.zeros(*tokens.shape, VOCABULARY)


def test_distances_are_those_of_a_loop() -> None:
    rows = random_rows(5, 30)
    expected = torch.zeros(5, 29, dtype=torch.int64)
    for n, row in enumerate(rows.tolist()):
        for t in range(29):
            for s in range(t):  # the last one wins
                if (row[s], row[s + 1]) == (row[t], row[t + 1]):
                    expected[n, t] = t - s
    found = accuracy.repeated_at(rows)
    assert torch.equal(found, expected)
    assert (found > 0).sum() > 10
    masks = accuracy.bins(found)
    assert list(masks) == ["new", "1-8", "9-16", "17-32"]
    assert torch.equal(sum(mask.int() for mask in masks.values()), torch.ones(5, 29, dtype=torch.int32))
    assert bool(((found >= 9) & (found <= 16)).eq(masks["9-16"]).all())


def test_a_continuation_is_right_where_it_is_likelier_than_the_others() -> None:
    rows = random_rows(6, 12)
    own = {tuple(row[: t + 1]): row[t + 1] for row in rows.tolist() for t in range(11)}
    knows = predicts(lambda prefix: own.get(tuple(prefix.tolist()), 0))
    assert accuracy.continuation(knows, rows, 4, 4, 3, seed=0).all()
    assert not accuracy.continuation(uniform, rows, 4, 4, 3, seed=0).any()  # a tie is wrong
    wrong = predicts(lambda prefix: (own.get(tuple(prefix.tolist()), 0) + 1) % VOCABULARY)
    assert not accuracy.continuation(wrong, rows, 4, 4, 3, seed=0).any()
    # Rows that end alike are no wrong choices.
    assert accuracy.continuation(uniform, torch.ones(4, 6, dtype=torch.int64), 4, 3, 2, seed=0).all()


def test_the_score_is_the_sum_of_log_probabilities_of_the_last_tokens() -> None:
    table = torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = random_rows(3, 9)
    log_p = table.log_softmax(-1)
    expected = [sum(float(log_p[a, b]) for a, b in zip(row[-5:-1], row[-4:], strict=True)) for row in rows.tolist()]
    assert accuracy._score(lambda tokens: table[tokens], rows, 2, 4).tolist() == pytest.approx(expected)


def test_copying_solves_the_second_copy_alone() -> None:
    rows = torch.stack([torch.arange(11).roll(n) for n in range(4)])  # no token is there twice
    twice = accuracy.induction_rows(rows, seed=0)
    assert twice.shape == (4, 11)
    assert torch.equal(twice[:, 0], rows[:, 0])
    assert torch.equal(twice[:, 1:6], twice[:, 6:])
    assert torch.equal(twice[:, 1:6].sort(1).values, rows[:, 1:6].sort(1).values)
    assert not torch.equal(twice[:, 1:6], rows[:, 1:6])
    found = accuracy.measure(predicts(copies), rows, 2, 3, 2, seed=0)
    assert found["induction"]["second_copy"] == {"mean": 100.0, "low": 100.0, "high": 100.0, "count": 4 * 4}
    assert found["induction"]["first_copy"]["mean"] < 30
    assert found["induction"]["first_copy"]["count"] == 4 * 4
    assert set(found["recall"]) == {"new"}


def test_recall_counts_what_a_pair_was_followed_by() -> None:
    rows = torch.tensor([[1, 2, 3, 1, 2, 4, 5, 6, 7, 8, 9, 10, 3, 1, 2]] * 3)
    found = accuracy.measure(predicts(copies), rows, 2, 2, 2, seed=0)
    # 1 -> 2 again at distance 3, and last at distance 10, beside 3 -> 1 at distance 10; each copied rightly.
    assert found["recall"]["1-8"] == {"mean": 100.0, "low": 100.0, "high": 100.0, "count": 3}
    assert found["recall"]["9-16"]["count"] == 6
    assert found["recall"]["9-16"]["mean"] == 100
    assert found["recall"]["new"]["mean"] < 20
    assert found["next_token"]["count"] == 3 * 14


def test_the_same_seed_gives_the_same_numbers() -> None:
    rows, table = random_rows(8, 13), torch.randn(VOCABULARY, VOCABULARY)
    first, again, other = (
        accuracy.measure(lambda x: table[x], rows, size, 4, 3, seed) for size, seed in ((3, 0), (8, 0), (3, 1))
    )
    assert first == again
    assert first["induction"] != other["induction"]


@pytest.mark.parametrize(("shape", "error"), [((3, 12), "3 rows, but 4 choices"), ((4, 9), "rows have 9 tokens")])
def test_too_little_text_is_rejected(shape: tuple[int, int], error: str) -> None:
    with pytest.raises(UserError, match=error):
        accuracy.measure(uniform, random_rows(*shape), 4, 4, 8, seed=0)


def test_a_run_is_measured_into_its_folder_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data=Backcopy", "--data.context_length=12", "--data.batch_size=2", "--data.validation_rows=6"]
    trainer = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_steps=1", "--progress.enabled=false"]
    assert main(["fit", "--model=Baseline", *data, *trainer, "--run.dir", str(tmp_path / "run")]) == 0
    command = ["accuracy", str(tmp_path / "run"), "--rows=6", "--continuation_tokens=3", "--device=cpu"]
    assert main(command) == 0
    assert "continuation, 1 of 4" in capsys.readouterr().out
    (file,) = (tmp_path / "run/accuracy").iterdir()
    before = file.read_bytes()
    assert main(command) == 0
    assert f"{file} (unchanged)" in capsys.readouterr().out
    assert file.read_bytes() == before
    file.write_text("{}")
    assert main(command) == 2
    assert f"{file} is damaged: delete it" in capsys.readouterr().err
    assert main([*command, "--choices=1"]) == 2
    assert "choices is 1, but must be at least 2" in capsys.readouterr().err


def written(run: Path, mean: float, **about: object) -> None:
    (run / "accuracy").mkdir(exist_ok=True)
    value = {"mean": mean, "low": mean - 1, "high": mean + 2, "count": 9}
    content = {"choices": 4, "continuation_tokens": 8, "seed": 0, "rows": [96, 65], "rows_sha256": "a"}
    content |= {"next_token": value, "continuation": value, "recall": {"new": value, "1-8": value}}
    content |= {"induction": {"first_copy": value, "second_copy": value}} | about
    (run / f"accuracy/{content['rows']}.json").write_text(json.dumps(content))


def test_the_report_shows_points_and_paired_differences(tmp_path: Path) -> None:
    for name, means in {"baseline": (60.0, 50.0), "gate": (63.0, 55.0)}.items():
        for seed, mean in enumerate(means):
            run = write_run(tmp_path / f"{name}/seed{seed}", name, seed, Levels(), statistics=False)
            written(run.path, mean)
    written(tmp_path / "gate/seed1", 1.0, rows=[8, 65])  # of fewer rows
    table = reported.table(compare(load_ablation(tmp_path)))
    assert table is not None
    assert table.headings[2:] == [
        "next token", "continuation, 1 of 4", "next token, new pair", "recall over 1-8 tokens",
        "induction, second copy", "induction, first copy",
    ]  # fmt: skip
    assert [row[:3] for row in table.rows] == [
        ["baseline", "2", "55.0 \u00b1 5.0"],
        ["gate", "2", "59.0 \u00b1 4.0"],
        ["minus the baseline", "-", "+4.0 [-8.7, +16.7]"],
    ]
    written(tmp_path / "gate/seed1", 55.0, rows_sha256="other")  # not the baseline's rows
    assert reported.table(compare(load_ablation(tmp_path))).rows[2][2] == "+3.0"  # type: ignore[union-attr]


def test_one_seed_has_its_interval_over_rows(tmp_path: Path) -> None:
    run = write_run(tmp_path / "baseline/seed0", "baseline", 0, Levels(), statistics=False)
    assert reported.table(compare(load_ablation(tmp_path))) is None
    written(run.path, 60.0)
    assert reported.table(compare(load_ablation(tmp_path))).rows[0][2] == "60.0 [59.0, 62.0]"  # type: ignore[union-attr]
