"""Bigram-Backcopy: rows are a function of (seed, index), and the task is in them."""

import pickle

import numpy as np
import pytest
import torch

from sinks.data.backcopy import BLOCK, BOS, CHARACTERS, TRIGGERS, Backcopy, BackcopySequences, bigram_table
from sinks.errors import UserError

TABLE = bigram_table("the cat sat on the mat. then the rat ate the bat, and that was that. " * 20)
TRIGGER_IDS = [CHARACTERS.index(c) + 1 for c in TRIGGERS]


def test_rows_of_the_table_are_distributions_that_never_give_bos():
    assert np.allclose(TABLE.sum(1), 1)
    assert (TABLE[:, BOS] == 0).all()
    t, h = CHARACTERS.index("t") + 1, CHARACTERS.index("h") + 1
    assert TABLE[t, h] == pytest.approx(TABLE[t].max())


def test_a_row_is_a_function_of_seed_and_index():
    rows = BackcopySequences(TABLE, 20, seed=1, size=3 * BLOCK)
    there = [rows[i] for i in (0, BLOCK - 1, BLOCK, 2 * BLOCK + 5)]
    again = BackcopySequences(TABLE, 20, seed=1, size=3 * BLOCK)
    back = [again[i] for i in (2 * BLOCK + 5, BLOCK, BLOCK - 1, 0)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(there, back, strict=True))
    assert not torch.equal(there[0], there[2])
    assert not torch.equal(there[0], BackcopySequences(TABLE, 20, seed=2, size=1)[0])
    assert torch.equal(pickle.loads(pickle.dumps(rows))[7], rows[7])


def test_rows_begin_with_bos_and_copy_after_a_trigger():
    sequences = BackcopySequences(TABLE, 40, seed=0, size=64)
    rows = torch.stack([sequences[i] for i in range(64)])
    assert rows.dtype == torch.int64
    assert (rows[:, 0] == BOS).all()
    assert (rows[:, 1:] != BOS).all()
    previous, copied, here = rows[:, 1:-1], rows[:, :-2], rows[:, 2:]
    must_copy = torch.isin(previous, torch.tensor(TRIGGER_IDS)) & (copied != BOS)
    assert must_copy.sum() > 100
    assert (here[must_copy] == copied[must_copy]).all()
    assert (here[~must_copy] != copied[~must_copy]).any()


def test_validation_rows_do_not_depend_on_the_data_seed_and_are_no_training_rows():
    first, second = Backcopy(seed=0, validation_rows=8), Backcopy(seed=1, validation_rows=8)
    rows, other_rows, train_rows = first.validation_set(), second.validation_set(), first.train_set()
    validation = torch.stack([rows[i] for i in range(8)])
    assert torch.equal(validation, torch.stack([other_rows[i] for i in range(8)]))
    training = torch.stack([train_rows[i] for i in range(BLOCK)])
    assert not (training[:, None] == validation[None]).all(-1).any()
    assert first.fingerprint() != second.fingerprint()
    assert first.fingerprint() == Backcopy(seed=0, validation_rows=8).fingerprint()


def test_two_workers_give_the_same_batches():
    def batches(num_workers):
        loader = iter(Backcopy(context_length=16, batch_size=4, num_workers=num_workers).train_dataloader())
        return torch.stack([next(loader) for _ in range(4)])

    assert batches(0).shape == (4, 4, 17)
    assert torch.equal(batches(0), batches(2))


@pytest.mark.parametrize("name", ["context_length", "batch_size"])
def test_sizes_below_one_are_rejected(name):
    with pytest.raises(UserError, match=f"data.{name} is 0, but must be at least 1"):
        Backcopy(**{name: 0})
