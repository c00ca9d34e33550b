"""Stages in forked processes."""

import os
import sys

import pytest

from benchmarks.gpu_report import run as running
from benchmarks.gpu_report import run_stage
from sinks.parallel.process_exit import end_with_writer


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork workers from this process, which has imported torch, instead of starting interpreters."""

    def in_a_fork(command: list[str], seconds: float, output: int, environment: dict[str, str]) -> int | None:
        pipe, held = os.pipe()
        process = os.fork()
        if process == 0:
            os.setpgrp()
            os.close(held)
            os.dup2(pipe, 0)
            end_with_writer(0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = sys.stderr = os.fdopen(output, "w")
            code = run_stage.main(command[3:])
            sys.stdout.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        os.close(held)
        os.close(pipe)
        return code

    monkeypatch.setattr(running, "in_a_group", in_a_fork)
