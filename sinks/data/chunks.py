"""Token chunks written by `litdata.optimize`, in a process of its own.

In this process it would reseed every random generator, replace the handler of Ctrl-C, set the start method of
multiprocessing for good, and leave folders of fixed names in the system's temporary folder; and a run that prepared
its data would then differ from the same run on prepared data.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sinks.data.manifest import INDEX_FILE
from sinks.errors import UserError
from sinks.parallel.process_exit import end_with_writer
from sinks.record.atomic import FULL

POLL_S = 0.05


def write_chunks(
    tokens: Callable[[Any], np.ndarray],
    inputs: dict[Path, list[Any]],
    processes: int,
    scratch: Path,
    progress: Callable[[int], None],
) -> None:
    """One chunk for every input, in order; which tokens a chunk holds does not depend on the number of processes.

    Args:
        tokens: gives the token ids [N] of an input.
        inputs: folder to write -> inputs.
        processes: processes that call `tokens`.
        scratch: folder for temporary files.
        progress: called with the number of chunks written so far.
    """
    # Imported before the fork: the child need not do it again.
    import litdata  # noqa: F401

    scratch.mkdir(parents=True, exist_ok=True)
    log = scratch / "litdata.log"
    # The child sees the writing end close when this process ends, however it ends.
    parent, held = os.pipe()
    arguments = (tokens, inputs, processes, scratch, log, parent, held)
    child = multiprocessing.get_context("fork").Process(target=_optimize, args=arguments)
    child.start()
    os.close(parent)
    assert child.pid is not None
    try:
        while child.is_alive():
            child.join(POLL_S)
            progress(sum(len(list(folder.glob("chunk-*.bin"))) for folder in inputs))
    finally:
        # The whole process group: a worker of litdata's may outlive the child.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        child.join()
        os.close(held)
    if child.exitcode in FULL:
        raise OSError(child.exitcode, os.strerror(child.exitcode), str(scratch.parent))
    # litdata loses the chunks of a killed worker and reports success.
    short = [folder.name for folder, items in inputs.items() if _chunks_in_index(folder) != len(items)]
    if child.exitcode == -signal.SIGKILL or (child.exitcode == 0 and short):
        raise UserError("a process was killed while it tokenized (out of memory?): give fewer processes")
    if child.exitcode != 0:
        output = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        raise RuntimeError(f"litdata.optimize ended with exit code {child.exitcode}:\n{output}")


def _chunks_in_index(folder: Path) -> int:
    file = folder / INDEX_FILE
    return len(json.loads(file.read_text(encoding="utf-8"))["chunks"]) if file.is_file() else 0


def _optimize(
    tokens: Callable[[Any], np.ndarray],
    inputs: dict[Path, list[Any]],
    processes: int,
    scratch: Path,
    log: Path,
    parent: int,
    held: int,
) -> None:
    os.setpgrp()
    os.close(held)
    # With litdata's workers: without the parent process the chunks would be unused.
    end_with_writer(parent)
    # Advertisement and progress bars; shown only when something fails.
    stream = log.open("w", encoding="utf-8", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Where litdata makes its folders `chunks` and `data`.
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)

    import litdata

    try:
        for folder, items in inputs.items():
            litdata.optimize(
                fn=tokens,
                inputs=items,
                output_dir=str(folder),
                # Every input has more than one token, and so becomes a chunk of its own.
                chunk_size=1,
                item_loader=litdata.TokensLoader(),
                num_workers=min(processes, len(items)),
                start_method="fork",
                reorder_files=False,
                keep_data_ordered=True,
                verbose=False,
            )
    except Exception as error:
        # The error of a worker arrives as text; on a full disk the log is lost.
        full = next((code for code in FULL if os.strerror(code) in str(error)), None)
        if full:
            os._exit(full)
        raise
