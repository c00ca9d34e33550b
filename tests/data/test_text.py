"""The data module: rows are the text, in the order of data, whoever reads them."""

import json
import os
import pickle
import shutil
from itertools import islice, pairwise
from pathlib import Path

import lightning
import litdata
import numpy as np
import pytest
import torch

from sinks.data.backcopy import Backcopy
from sinks.data.index import ID_BYTES
from sinks.data.manifest import Manifest
from sinks.data.text import Text
from sinks.data.tokenizer import BOS_ID, TextTokenizer
from sinks.errors import UserError


def text(source: Path | str, **options) -> Text:
    return Text([str(source)], **{"vocab_size": 300, "context_length": 16, "batch_size": 4, **options})


def batches(data: Text, count: int) -> torch.Tensor:
    return torch.stack(list(islice(iter(data.train_dataloader()), count)))


def stored_tokens(folder: Path, split: str) -> list[np.ndarray]:
    """Token ids of each chunk, read without litdata: 12 bytes of header, then uint16."""
    index = json.loads((folder / split / "index.json").read_text(encoding="utf-8"))
    return [np.fromfile(folder / split / c["filename"], dtype=np.uint16, offset=12) for c in index["chunks"]]


def documents_of(folder: Path) -> dict[str, list[str]]:
    """Texts between the `<bos>` of each split."""
    tokenizer, found = TextTokenizer.load(folder), {}
    for split in ("train", "val"):
        ids = np.concatenate(stored_tokens(folder, split))
        starts = [*np.flatnonzero(ids == BOS_ID), len(ids)]
        assert starts[0] == 0
        found[split] = [tokenizer.decode(ids[a:b]) for a, b in pairwise(starts)]
    return found


def test_every_document_is_on_one_side_and_unchanged(prepared, corpus):
    found = documents_of(prepared)
    assert len(found["val"]) == Manifest.read(prepared).splits["val"].documents
    originals = [file.read_bytes().decode() for file in sorted(corpus.rglob("*.txt"))]
    assert sorted(found["train"] + found["val"]) == sorted(originals)
    assert not set(found["train"]) & set(found["val"])
    # Within a split the corpus's order is kept.
    assert found["train"] == [original for original in originals if original in set(found["train"])]


def test_rows_joined_are_the_tokens_up_to_each_chunks_remainder(prepared):
    rows = text(prepared).train_set()
    read = [rows[i] for i in range(len(rows))]
    assert all(row.shape == (17,) and row.dtype == torch.int64 for row in read)
    chunks = stored_tokens(prepared, "train")
    kept = np.concatenate([ids[: len(ids) // 17 * 17] for ids in chunks])
    assert np.array_equal(torch.cat(read).numpy(), kept)
    assert sum(map(len, chunks)) - len(kept) < 17 * len(chunks)


@pytest.mark.parametrize("context_length", [8, 33, 100])
def test_one_folder_serves_every_context_length(prepared, context_length):
    rows = text(prepared, context_length=context_length).train_set()
    assert rows[len(rows) - 1].shape == (context_length + 1,)
    assert len(rows) == sum(len(ids) // (context_length + 1) for ids in stored_tokens(prepared, "train"))


def test_bos_none_has_no_bos(prepared_without_bos):
    data = text(prepared_without_bos, bos="none")
    assert data.bos == "none"
    rows = data.train_set()
    assert not any((rows[i] == BOS_ID).any() for i in range(len(rows)))


def test_bos_block_puts_bos_first_and_only_there(prepared_without_bos):
    block, none = (
        text(prepared_without_bos, bos="block").train_set(),
        text(prepared_without_bos, bos="none", context_length=15).train_set(),
    )
    assert len(block) == len(none)
    for i in range(len(block)):
        assert block[i][0] == BOS_ID
        assert torch.equal(block[i][1:], none[i])


def test_bos_document_has_one_for_each_document(prepared):
    ids = np.concatenate(stored_tokens(prepared, "train"))
    assert (ids == BOS_ID).sum() == Manifest.read(prepared).splits["train"].documents


def test_sources_are_prepared_on_first_use(corpus, prepared, output, small_chunks):
    data = text(corpus, folder=str(output), validation_share=0.2)
    assert data.vocab_size == 300
    assert Path(data.location) == prepared
    data.prepare_data()
    assert torch.equal(batches(data, 3), batches(text(prepared), 3))
    assert data.fingerprint() == text(prepared).fingerprint()
    assert data.tokenizer.decode(data.tokenizer.encode("sink")) == "sink"


def test_two_workers_give_the_same_rows(prepared):
    assert torch.equal(batches(text(prepared), 30), batches(text(prepared, num_workers=2), 30))


def test_an_epoch_reads_every_row_once(prepared):
    data = text(prepared, batch_size=1)
    rows = data.train_set()
    epoch = [tuple(row.tolist()) for row in batches(data, len(rows))[:, 0]]
    assert sorted(epoch) == sorted(tuple(rows[i].tolist()) for i in range(len(rows)))
    assert epoch != [tuple(rows[i].tolist()) for i in range(len(rows))]


class Recorder(lightning.LightningModule):
    """Trains nothing and keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class AsRank:
    """What the data module needs of a trainer."""

    def __init__(self, global_rank: int, world_size: int) -> None:
        self.distributed_sampler_kwargs = {"rank": global_rank, "num_replicas": world_size}


def test_two_ranks_read_what_one_process_reads(prepared, monkeypatch):
    alone = batches(text(prepared, batch_size=4), 20)
    # litdata divides its own length and order by these.
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks = []
    for rank in range(2):
        data = text(prepared, batch_size=2)
        data.trainer = AsRank(rank, 2)
        ranks.append(batches(data, 20))
    together = torch.stack(ranks, dim=2).flatten(1, 2)
    assert torch.equal(together, alone)


def test_two_ranks_validate_every_row_once(prepared):
    whole = torch.cat(list(text(prepared).val_dataloader()))
    parts = []
    for rank in range(2):
        data = text(prepared)
        data.trainer = AsRank(rank, 2)
        parts.append(torch.cat(list(data.val_dataloader())))
    assert sorted(map(tuple, torch.cat(parts).tolist())) == sorted(map(tuple, whole.tolist()))


def test_a_resumed_run_continues_where_it_stopped(prepared, tmp_path):
    def trainer(max_steps):
        return lightning.Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
        )

    whole, first, second = Recorder(), Recorder(), Recorder()
    trainer(9).fit(whole, datamodule=text(prepared))
    stopped = trainer(4)
    stopped.fit(first, datamodule=text(prepared))
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    trainer(9).fit(second, datamodule=text(prepared), ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(torch.stack(first.seen + second.seen), torch.stack(whole.seen))


def test_validation_rows_are_spread_evenly(prepared):
    every = text(prepared).validation_set()
    some = text(prepared, validation_rows=5).validation_set()
    assert [some.indices[0], len(some)] == [0, 5]
    assert set(np.diff(some.indices)) <= {len(every) // 5, len(every) // 5 + 1}
    assert len(text(prepared, validation_rows=10**6).validation_set()) == len(every)


def test_rows_can_be_pickled_for_workers(prepared):
    rows = text(prepared).train_set()
    first = rows[0]
    assert torch.equal(pickle.loads(pickle.dumps(rows))[0], first)


def test_fingerprint_is_of_tokens_and_of_how_they_are_read(prepared, prepared_without_bos, tmp_path):
    base = text(prepared).fingerprint()
    shutil.copytree(prepared, tmp_path / "elsewhere")
    assert text(tmp_path / "elsewhere").fingerprint() == base
    assert text(prepared, batch_size=2, num_workers=2).fingerprint() == base
    others = [text(prepared, **{name: 7}) for name in ("context_length", "seed", "window", "validation_rows")]
    others += [text(prepared_without_bos, bos=bos) for bos in ("none", "block")]
    assert len({base, *(other.fingerprint() for other in others)}) == 7


def test_identity_is_that_of_the_text_wherever_it_is_and_whatever_the_seed(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    base = text(prepared).identity()
    assert base == text("elsewhere").identity() == text("elsewhere", folder="other").identity()
    assert base.places == {"sources": None, "folder": "data"}
    seed_1 = text(prepared, seed=1).identity()
    assert seed_1.content == base.content
    assert seed_1.fingerprint != base.fingerprint
    assert text(prepared, window=7).identity().content != base.content


# -- folders that litdata.optimize wrote -----------------------------------------------------------------------


@pytest.fixture
def plain(prepared, tmp_path) -> Path:
    """Chunks as litdata.optimize writes them."""
    folder = tmp_path / "plain"
    shutil.copytree(prepared, folder, ignore=shutil.ignore_patterns("manifest.json", "tokenizer.json"))
    return folder


def test_a_plain_litdata_folder_is_read_as_it_is(plain, prepared):
    data = text(plain)
    data.prepare_data()
    assert data.manifest is None
    assert torch.equal(batches(data, 5), batches(text(prepared), 5))
    assert data.fingerprint() == text(plain).fingerprint() != text(prepared).fingerprint()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        _ = data.tokenizer


def test_chunks_of_many_small_tensors(tmp_path):
    for split in ("train", "val"):
        folder = str(tmp_path / "own" / split)
        writer = litdata.streaming.cache.Cache(folder, chunk_size=100, item_loader=litdata.TokensLoader())
        for i in range(10):
            writer[i] = torch.arange(i, i + 30, dtype=torch.int32)
        writer.done()
        writer.merge()
    rows = text(tmp_path / "own", context_length=9).train_set()
    assert rows[0].tolist() == list(range(10))
    assert rows[0].dtype == torch.int64


@pytest.mark.parametrize("num_workers", [0, 2])
def test_remote_chunks_are_fetched_in_the_same_order(prepared, tmp_path, monkeypatch, num_workers):
    """`local:` is litdata's stand-in for s3:// and gs://: chunks are copied into its cache as if fetched."""
    monkeypatch.setattr("litdata.utilities.dataset_utilities._LITDATA_CACHE_DIR", str(tmp_path / "cache"))
    remote = text(f"local:{prepared}", num_workers=num_workers)
    remote.prepare_data()
    assert remote.manifest is None
    assert torch.equal(batches(remote, 30), batches(text(prepared), 30))
    assert list((tmp_path / "cache").rglob("chunk-*.bin"))


def error_of(data: Text) -> str:
    def use() -> None:
        data.prepare_data()
        data.train_set()
        data.validation_set()

    with pytest.raises(UserError) as caught:
        use()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("given", ["train", "."])
def test_litdata_folder_without_index(plain, given):
    (plain / "train" / "index.json").unlink()
    message = error_of(text(plain if given == "." else plain / "train"))
    assert "train has no index.json: give a folder with train/ and val/" in message


def test_plain_chunk_that_is_missing_or_truncated(plain):
    chunk = plain / "train" / "chunk-0-1.bin"
    size = chunk.stat().st_size
    chunk.write_bytes(chunk.read_bytes()[:50])
    assert error_of(text(plain)) == f"{chunk} has 50 bytes, but must have {size}: prepare the folder again"
    chunk.unlink()
    assert error_of(text(plain)) == f"{chunk} is missing, though index.json lists it: prepare the folder again"


def test_broken_index(plain):
    (plain / "val" / "index.json").write_text("{", encoding="utf-8")
    assert f"{plain}/val/index.json cannot be read (JSONDecodeError" in error_of(text(plain))


def test_chunks_for_another_item_loader(plain):
    file = plain / "train" / "index.json"
    file.write_text(file.read_text(encoding="utf-8").replace("TokensLoader", "PyTreeLoader"), encoding="utf-8")
    assert f"{plain}/train was written for PyTreeLoader, but TokensLoader is needed: give" in error_of(text(plain))


def test_remote_folder_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr("litdata.utilities.dataset_utilities._LITDATA_CACHE_DIR", str(tmp_path / "cache"))
    message = error_of(text(f"local:{tmp_path}/nowhere"))
    assert f"local:{tmp_path}/nowhere/train cannot be opened (" in message
    assert message.endswith("give a folder or URL with train/ and val/ in it")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"chunks": [], "config": {}}', '{"chunks": 3, "config": 1}'])
def test_remote_folder_with_a_damaged_index(plain, tmp_path, monkeypatch, content):
    monkeypatch.setattr("litdata.utilities.dataset_utilities._LITDATA_CACHE_DIR", str(tmp_path / "cache"))
    (plain / "train" / "index.json").write_text(content)
    assert f"local:{plain}/train cannot be opened (" in error_of(text(f"local:{plain}"))


def test_negative_token_ids(plain):
    chunk = plain / "train" / "chunk-0-0.bin"
    index = plain / "train" / "index.json"
    # The same bytes as signed numbers.
    index.write_text(index.read_text().replace("no_header_numpy:5", "no_header_numpy:1"))
    data = bytearray(chunk.read_bytes())
    data[12:14] = b"\xff\xff"
    chunk.write_bytes(data)
    with pytest.raises(UserError, match="train has token id -1, but vocab_size is 300: give other data"):
        text(plain).train_set()[0]


def test_bytes_of_token_ids_are_litdatas():
    from litdata.constants import _NUMPY_DTYPES_MAPPING, _TORCH_DTYPES_MAPPING

    for name, size in ID_BYTES.items():
        kind, _, number = name.partition(":")
        dtype = {"no_header_numpy": _NUMPY_DTYPES_MAPPING, "no_header_tensor": _TORCH_DTYPES_MAPPING}[kind][int(number)]
        assert dtype.itemsize == size
        assert "int" in str(dtype)


@pytest.mark.parametrize("vocab_size", [280, 299])
def test_token_ids_beyond_the_vocabulary(plain, vocab_size):
    rows = text(plain, vocab_size=vocab_size).train_set()
    with pytest.raises(UserError, match=f"train has token id 299, but vocab_size is {vocab_size}: give vocab_size 300"):
        _ = [rows[i] for i in range(len(rows))]


# -- prepared folders ------------------------------------------------------------------------------------------


def test_damage_is_found_before_training(prepared, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    chunk = folder / "val" / "chunk-0-0.bin"
    data = bytearray(chunk.read_bytes())
    data[500:4500] = bytes(4000)[: len(data) - 500]
    chunk.write_bytes(data)
    assert error_of(text(folder)).startswith(f"{chunk} is damaged: its sha256 is ")


def test_prepared_folder_without_manifest(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy", ignore=shutil.ignore_patterns("manifest.json"))
    assert error_of(text(tmp_path / "copy")).startswith(f"{tmp_path}/copy has no manifest.json: delete")


def test_row_longer_than_the_data(prepared):
    longest = max(map(len, stored_tokens(prepared, "train")))
    message = error_of(text(prepared, context_length=longest))
    assert f"context_length is {longest}, but the longest chunk of {prepared}/train has {longest} tokens" in message
    assert f"give at most {longest - 1}, or more text" in message
    assert len(text(prepared, context_length=longest - 1).train_set()) >= 1


def test_row_longer_than_the_data_with_bos_in_front(prepared_without_bos):
    longest = max(map(len, stored_tokens(prepared_without_bos, "train")))
    assert len(text(prepared_without_bos, bos="block", context_length=longest).train_set()) >= 1
    message = error_of(text(prepared_without_bos, bos="block", context_length=longest + 1))
    assert f"give at most {longest}, or more text" in message


def test_prepared_folder_with_another_bos(prepared, prepared_without_bos):
    assert error_of(text(prepared, bos="block")) == (
        f"data.bos is block, but {prepared} was prepared with document: give document, or prepare the text again"
    )
    assert "was prepared with none: give none or block, or" in error_of(text(prepared_without_bos))


def test_prepared_folder_with_more_token_ids(prepared):
    assert error_of(text(prepared, vocab_size=299)) == (
        f"data.vocab_size is 299, but {prepared} has 300 token ids: give 300"
    )
    larger = text(prepared, vocab_size=512)
    assert torch.equal(batches(larger, 2), batches(text(prepared), 2))
    assert larger.vocab_size == 512


def test_chunks_and_text_together(prepared, corpus):
    data = Text([str(corpus), str(prepared)])
    assert error_of(data).startswith(f"data.sources has 2 entries, but {prepared} holds chunks already")


@pytest.mark.parametrize("name", ["window", "validation_rows", "context_length", "batch_size"])
def test_numbers_below_one_are_rejected(name):
    with pytest.raises(UserError, match=f"data.{name} is 0, but must be at least 1"):
        Text(**{name: 0})


@pytest.mark.parametrize("data", [Text, Backcopy])
@pytest.mark.parametrize("name", ["num_workers", "seed"])
def test_numbers_below_zero_are_rejected(data, name):
    with pytest.raises(UserError, match=f"data.{name} is -1, but must be "):
        data(**{name: -1})


def test_seeds_of_which_numpy_would_confuse_several_are_rejected(prepared):
    """numpy makes a floating-point number of a seed from 2^63."""
    with pytest.raises(UserError, match=f"data.seed is {2**63}, but must be between 0 and {2**63 - 1}: give"):
        Backcopy(seed=2**63)
    largest, next_largest = (Backcopy(seed=2**63 - n).train_set()[0] for n in (1, 2))
    assert not torch.equal(largest, next_largest)
    assert not torch.equal(*(batches(text(prepared, seed=2**63 - n), 1) for n in (1, 2)))


def test_nothing_is_read_or_written_at_construction(tmp_path):
    data = Text([str(tmp_path / "nowhere")], folder=str(tmp_path / "data"))
    assert (data.vocab_size, data.context_length, data.bos) == (4096, 256, "document")
    assert os.listdir(tmp_path) == []
