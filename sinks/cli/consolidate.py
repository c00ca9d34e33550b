"""`sinks consolidate`: one file from a checkpoint of shards."""

from pathlib import Path


def consolidate(checkpoint: Path, out: Path | None = None) -> None:
    """Turn a checkpoint of shards into one file: weights, optimizer states and everything else, for any strategy.

    Args:
        checkpoint: a folder of shards, or a run folder, whose last checkpoint is taken.
        out: the file, which is replaced if it exists; by default in the checkpoint's folder, named after it.
    """
    from sinks.errors import UserError
    from sinks.parallel.checkpoint_io import RunCheckpointIO, is_sharded, read_checkpoint
    from sinks.record import RunFolder

    folder = RunFolder(checkpoint)
    last = folder.last_checkpoint if folder.config_file.is_file() else checkpoint
    if last is None:
        raise UserError(f"{checkpoint} has no complete checkpoint: restore it, or give a folder of shards")
    source = last.resolve()
    if not is_sharded(source):
        what = "is one file already" if source.is_file() else "holds no shards"
        raise UserError(f"{source} {what}: give a folder that save_distributed_checkpoint wrote, or a run folder")
    out = out or source.with_name(f"{source.stem}.whole{source.suffix}")
    if out.is_dir():
        raise UserError(f"{out} is a folder: give --out a file")
    RunCheckpointIO().save_checkpoint(read_checkpoint(source), out)
    print(f"{out}  {out.stat().st_size:,} bytes")
