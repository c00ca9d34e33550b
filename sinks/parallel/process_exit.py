"""How one of several processes of a run ends."""

import atexit
import os
import signal
import sys
import threading
from typing import NoReturn


def is_distributed() -> bool:
    """Whether this process is one of several, without importing anything."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def exit_process(code: int) -> NoReturn:
    """End this process as `sys.exit` would, without C++'s destructors.

    After DDP or FSDP2 on gloo they sometimes abort, when everything is written ("terminate called without an
    active exception", torch 2.14), and a launcher considers the run failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_with_writer(pipe: int) -> None:
    """Kill this process and its group once nobody has the writing end of a pipe: it closes however its process ends.

    Args:
        pipe: file descriptor of the reading end, to which nothing is ever written.
    """

    def wait() -> None:
        os.read(pipe, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
