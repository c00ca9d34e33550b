"""Runs the stages within the budget and updates the report after each."""

import contextlib
import hashlib
import importlib.metadata
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_report.page import page
from benchmarks.gpu_report.results import Results
from benchmarks.gpu_report.stage_context import ROOT
from benchmarks.gpu_report.stages import STAGES, Stage, shares
from sinks.errors import UserError
from sinks.record.atomic import PARTIAL, remove_leftovers, replace_atomically, with_filename
from sinks.record.folder import to_json, write_atomically
from sinks.record.lock import run_lock
from sinks.record.provenance import PACKAGES

# Time that a stage may exceed its limit before it is killed: the longest single compilation.
GRACE_S = 60.0
# Reserved from a machine's limit for ending the last stage and writing the report.
CLOSING_S = 10.0
# Large, or readable only with the model.
NOT_ARCHIVED = (".bin", ".safetensors")


@dataclass(frozen=True)
class Report:
    """A report's folder and run options.

    Args:
        folder: of the report.
        budget: minutes for everything.
        dry: tiny sizes, also without a GPU.
        archive: .tar.gz of the folder, updated after every stage; None for none.
        limit: minutes from `started` after which the machine ends the command; None where it does not.
        started: `time.monotonic()` of the command.

    Raises:
        UserError: if there is neither a GPU nor `dry`, or the budget is not above zero and within the limit.
    """

    folder: Path
    budget: float
    dry: bool
    archive: Path | None = None
    limit: float | None = None
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if not self.budget > 0:
            raise UserError(f"--budget is {self.budget:g} minutes, but must be above 0: give e.g. 8")
        if self.limit is not None and self.budget > self.limit:
            raise UserError(
                f"--budget is {self.budget:g} minutes, but --limit ends the command after {self.limit:g}: "
                f"give a budget of at most {self.limit:g}"
            )
        if not self.dry and not torch.cuda.is_available():
            raise UserError(
                "no GPU is available, and CPU timings would be misleading: try the report with --dry (GPU_REPORT_DRY=1)"
            )

    @cached_property
    def _machine(self) -> str:
        """What a result depends on besides the stage: devices, versions, and the code, committed or not."""
        versions = {}
        for package in PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[package] = importlib.metadata.version(package)
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        code = hashlib.sha256()
        for path in sources():
            code.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
        return to_json([devices, versions, code.hexdigest()])

    def fingerprint(self, stage: Stage, minutes: float) -> str:
        """Sixteen hex digits: a result with the same fingerprint is not measured again.

        Minutes count only where they affect the result: training runs until its time is up.
        """
        part = [stage.module, self.dry, self._machine, minutes if stage.letter == "e" else None]
        return hashlib.sha256(to_json(part).encode()).hexdigest()[:16]

    def run(self, stages: list[Stage]) -> int:
        """Run unfinished stages; exit code 1 if a stage failed.

        Raises:
            UserError: if another command is writing to the folder, or it cannot be written.
        """
        with run_lock(self.folder, "--output"):
            remove_leftovers(self.folder)
            self._end_interrupted()
            # An interrupted command did not write what it had measured.
            self.write({})
            return self._run_all(stages)

    def _end_interrupted(self) -> None:
        """Mark the stages that ended with their command: nothing runs now."""
        for stage in STAGES:
            record = Results(self.folder, stage.file).read()
            if record is not None and record["state"] == "running":
                self._end(record, "its command was interrupted")

    def _run_all(self, stages: list[Stage]) -> int:
        end = time.monotonic()
        failed = False
        not_run: dict[str, str] = {}
        planned = shares(stages, self.budget)
        last = math.inf if self.limit is None else self.started + 60 * self.limit - GRACE_S - CLOSING_S
        for stage in stages:
            minutes = planned[stage.letter]
            # Time that earlier stages did not use is added to this one's.
            end += 60 * minutes
            left = min(end, last) - time.monotonic()
            fingerprint = self.fingerprint(stage, minutes)
            before = Results(self.folder, stage.file).read()
            if before is not None and before["fingerprint"] == fingerprint and before["state"] == "done":
                state = "done before"
            elif left < 30 * stage.least:
                state = f"not run: {max(0.0, left / 60):.1f} minutes are left for it, it needs {stage.least:g}"
                not_run[stage.file] = state
            else:
                state = self._run(stage, minutes, left, fingerprint, before)
                failed = failed or state in ("failed", "killed")
            print(f"{stage.file}: {state}", flush=True)
            self.write(not_run)
        return 1 if failed else 0

    def _run(self, stage: Stage, minutes: float, left: float, fingerprint: str, before: dict[str, Any] | None) -> str:
        """Run one stage and return how it ended; `before`: its record until now."""
        results = Results(self.folder, stage.file)
        log = self.folder / "work" / stage.file / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.gpu_report.run_stage", stage.module, stage.file]
        command += ["--output", str(self.folder.resolve()), "--minutes", str(minutes), "--limit", str(left)]
        command += ["--fingerprint", fingerprint] + (["--dry"] if self.dry else [])
        started = time.monotonic()
        with log.open("w", encoding="utf-8") as stream:
            code = in_a_group(command, left + GRACE_S, stream.fileno(), self._environment())
        seconds = time.monotonic() - started
        tail = "".join(f"    {line}\n" for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        record = results.read()
        # Unchanged if the process ended before it wrote anything.
        if record is not None and record != before and record["state"] != "running":
            if record["state"] == "failed":
                print(f"{stage.file} failed after {seconds:.0f} s; the end of {log}:\n{tail}", file=sys.stderr)
            return str(record["state"])
        reason = f"over its time, after {seconds:.0f} s" if code is None else f"exit code {code} after {seconds:.0f} s"
        if record is None or record["fingerprint"] != fingerprint:
            named = {"stage": stage.file, "fingerprint": fingerprint, "dry": self.dry, "minutes": minutes}
            record = named | {"commands": [], "result": {}}
        self._end(record, reason)
        print(f"{stage.file} was ended: {reason}; the end of {log}:\n{tail}", file=sys.stderr)
        return "killed"

    def _end(self, record: dict[str, Any], reason: str) -> None:
        """Keep what a stage measured before something ended it."""
        results = Results(self.folder, record["stage"])
        text = results.markdown.read_text(encoding="utf-8") if record["result"] else f"# {record['stage']}\n"
        results.write(record | {"state": "killed", "error": reason}, f"{text}\nEnded early: {reason}.")

    def _environment(self) -> dict[str, str]:
        path = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
        if torch.cuda.is_available():
            environment.pop("TRITON_INTERPRET", None)
        else:
            environment["TRITON_INTERPRET"] = "1"  # read when Triton is imported
        return environment

    def write(self, not_run: dict[str, str]) -> None:
        """report.md and the archive, from the available results."""
        records = {stage.file: Results(self.folder, stage.file).read() for stage in STAGES}
        texts = {
            name: Results(self.folder, name).markdown.read_text(encoding="utf-8")
            for name, record in records.items()
            if record is not None
        }
        known = {name: record for name, record in records.items() if record is not None}
        write_atomically(self.folder / "report.md", page(known, texts, not_run))
        if self.archive is not None:
            pack(self.folder, self.archive)


def sources() -> Iterator[Path]:
    """Every file whose change may change a result, in a fixed order."""
    for pattern in ("sinks/**/*.py", "kernels/**/*.py", "benchmarks/**/*.py", "experiments/*/*.yaml"):
        yield from sorted(ROOT.glob(pattern))


def in_a_group(command: list[str], seconds: float, output: int, environment: dict[str, str]) -> int | None:
    """Run a command in its own process group; its exit code, None if killed after `seconds`.

    Its standard input, and that of everything it starts, is a pipe that closes when this process ends, however it ends.

    Args:
        command: and its arguments.
        seconds: until the group is killed.
        output: file descriptor of both streams.
        environment: variables.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
    )
    assert process.stdin is not None
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # Ranks, which torchrun starts in process groups of their own, read the pipe.
        process.stdin.close()
        # Loader workers may outlive their parent.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def pack(folder: Path, archive: Path) -> None:
    """Archive the folder without token data, arrays and hidden files, replacing an older archive."""

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        hidden = Path(entry.name).name.startswith(".")
        return None if hidden or entry.name.endswith(NOT_ARCHIVED) else entry

    archive.parent.mkdir(parents=True, exist_ok=True)
    # The same in every process: what a killed one leaves is overwritten.
    temporary = archive.with_name(f".{archive.name}{PARTIAL}")
    with with_filename(archive), tarfile.open(temporary, "w:gz") as stream:
        stream.add(folder, arcname="gpu-report", filter=wanted)
    replace_atomically(temporary, archive)
