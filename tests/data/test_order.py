"""The order of data: one process, many, and a resumed run read the same samples."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from sinks.data.backcopy import Backcopy
from sinks.data.order import ShardBatchSampler, StreamBatchSampler, WindowedShuffle, identity_order

CHUNKS = [7, 5, 0, 11, 3, 8, 6, 9]
TOTAL = sum(CHUNKS)


def read(order, batch_size, rank, world_size, batches, start=0):
    return list(islice(iter(StreamBatchSampler(order, batch_size, rank, world_size, start)), batches))


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_is_a_permutation(epoch):
    order = WindowedShuffle(CHUNKS, seed=3, window=2)
    epoch_samples = [order(epoch * TOTAL + i) for i in range(TOTAL)]
    assert sorted(epoch_samples) == list(range(TOTAL))


def test_order_depends_on_seed_and_epoch_alone():
    first, again = WindowedShuffle(CHUNKS, 1), WindowedShuffle(CHUNKS, 1)
    assert [first(i) for i in range(2 * TOTAL)] == [again(i) for i in range(2 * TOTAL)]
    # Called backwards: only the position counts.
    assert [first(i) for i in reversed(range(TOTAL))] == [again(i) for i in reversed(range(TOTAL))]
    assert [first(i) for i in range(TOTAL)] != [first(TOTAL + i) for i in range(TOTAL)]
    assert not np.array_equal(first.epoch_order(0), WindowedShuffle(CHUNKS, 2).epoch_order(0))


@pytest.mark.parametrize("window", [1, 3])
def test_a_window_reads_its_chunks_and_no_others(window):
    chunks = [10] * 12
    order = WindowedShuffle(chunks, seed=0, window=window)
    chunk_of = order.epoch_order(0) // 10
    in_turn = [set(chunk_of[i : i + 10 * window].tolist()) for i in range(0, 120, 10 * window)]
    assert all(len(members) == window for members in in_turn)
    assert len(set.union(*in_turn)) == 12
    within = order.epoch_order(0)[: 10 * window]
    assert not np.array_equal(within, np.sort(within))
    assert [c for members in in_turn for c in sorted(members)] != list(range(12))


@pytest.mark.parametrize("order", [identity_order, WindowedShuffle(CHUNKS, seed=4, window=2)])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_read_what_one_process_reads(order, world_size):
    alone = read(order, 8, 0, 1, batches=15)
    ranks = [read(order, 8 // world_size, rank, world_size, batches=15) for rank in range(world_size)]
    for step in range(15):
        together = [sample for parts in zip(*(rank[step] for rank in ranks), strict=True) for sample in parts]
        assert together == alone[step]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_stream_continues_at_its_position(world_size):
    order = WindowedShuffle(CHUNKS, seed=0)
    whole = read(order, 4, 0, 1, batches=20)
    ranks = [read(order, 4 // world_size, rank, world_size, 8, start=12 * 4) for rank in range(world_size)]
    together = [[s for parts in zip(*step, strict=True) for s in parts] for step in zip(*ranks, strict=True)]
    assert together == whole[12:]


def test_position_counts_rows_over_resumes_at_other_world_sizes():
    data = Backcopy(batch_size=4)

    def run(world_size, until_step):
        spread = {"rank": 0, "num_replicas": world_size}
        data.trainer = SimpleNamespace(
            distributed_sampler_kwargs=spread, accumulate_grad_batches=2, global_step=until_step
        )
        state = data.state_dict()
        data.load_state_dict(state)
        return state["stream_position"]

    assert run(1, 10) == 10 * 4 * 2
    assert run(2, 15) == 80 + 5 * 4 * 2 * 2
    assert run(1, 16) == 160 + 4 * 2
    data.trainer.accumulate_grad_batches, data.trainer.global_step = 1, 18
    assert data.state_dict()["stream_position"] == 168 + 2 * 4
    data.trainer = None
    assert data.state_dict()["stream_position"] == 168


@pytest.mark.parametrize(
    ("length", "batch_size", "world_size"), [(10, 4, 1), (33, 4, 2), (9, 2, 4), (3, 8, 4), (5, 1, 2)]
)
def test_a_finite_set_is_read_once_by_all_ranks_together(length, batch_size, world_size):
    samplers = [ShardBatchSampler(length, batch_size, rank, world_size) for rank in range(world_size)]
    batches = [list(sampler) for sampler in samplers]
    assert [len(b) for b in batches] == [len(sampler) for sampler in samplers]
    assert sorted(i for rank in batches for batch in rank for i in batch) == list(range(length))
    assert all(1 <= len(batch) <= batch_size for rank in batches for batch in rank)


def test_ranks_run_equally_often_where_each_has_a_sample():
    for length in range(8, 60):
        for world_size in (2, 3, 4):
            counts = {len(ShardBatchSampler(length, 2, rank, world_size)) for rank in range(world_size)}
            assert len(counts) == 1, (length, world_size)
