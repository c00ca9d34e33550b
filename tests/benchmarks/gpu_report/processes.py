"""Which processes are alive."""

import time
from collections.abc import Callable
from pathlib import Path


def alive(process: int) -> bool:
    """Whether a process exists and has not ended; a child that nobody has waited for is a zombie, and has."""
    try:
        return _stat(process)[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def in_session(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        process = int(path.name)
        if alive(process):
            try:
                if int(_stat(process)[3]) == session:
                    found.append(process)
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def with_variable(name: str, value: str) -> list[str]:
    """The commands of the processes alive that were started with an environment variable."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{name}={value}".encode() in (path / "environ").read_bytes().split(b"\0") and alive(int(path.name)):
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (OSError, ProcessLookupError):
            continue
    return found


def _stat(process: int) -> list[str]:
    """State, parent, group, session."""
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[:4]


def eventually(holds: Callable[[], object], seconds: float = 60.0) -> bool:
    """Whether something holds within some seconds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
