"""One stage in its own process, so that e.g. a broken CUDA context does not affect the next."""

import argparse
import importlib
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.results import Results, origin
from benchmarks.gpu_report.stage_context import StageContext
from sinks.parallel.process_exit import end_with_writer


def main(arguments: list[str] | None = None) -> int:
    """Run the stage of a module and write its files after every result it yields and at the end."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report.run_stage", description=__doc__)
    parser.add_argument("module", help="import path of the stage")
    parser.add_argument("file", help="name of its files")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--limit", type=float, required=True, help="seconds until it should end")
    parser.add_argument("--fingerprint", required=True)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args(arguments)

    results = Results(options.output, options.file)
    folder = options.output / "work" / options.file
    folder.mkdir(parents=True, exist_ok=True)
    before = results.read()
    if before is None or before["fingerprint"] != options.fingerprint:
        before = {"commands": [], "result": {}}
    result: dict[str, Any] = before["result"]
    context = StageContext(folder, options.dry, options.minutes, started + options.limit, result)
    command = origin()
    commands = [*before["commands"], command]
    record: dict[str, Any] = {
        "stage": options.file,
        "fingerprint": options.fingerprint,
        "dry": options.dry,
        "minutes": options.minutes,
        "commands": commands,
    }
    stage: Any = None

    def write(state: str, error: str | None = None) -> None:
        command["seconds"] = time.monotonic() - started
        text = stage.markdown(result) if stage is not None and result else f"# {options.file}\n"
        text += "".join(f"\nNot measured: {name} ({why}).\n" for name, why in result.get("missing", {}).items())
        text += "".join(f"\nNot reached in time: {what}.\n" for what in result.get("left_out", ()))
        for one in commands:
            text += (
                f"\nMeasured on {one['device']}, commit {one['commit']}, {one['started']}, in {one['seconds']:.0f} s.\n"
            )
        if options.dry:
            text += "\nA dry run: tiny sizes, to test that everything runs. No number here indicates speed.\n"
        if error is not None:
            text += f"\nFailed:\n\n```\n{error.rstrip()}\n```\n"
        results.write(record | {"state": state, "error": error, "result": result}, text)

    try:
        stage = importlib.import_module(options.module)
        write("running")
        for grown in stage.run(context):
            result = grown
            write("running")
        if result.get("faults"):
            write("failed", "\n".join(result["faults"]))
            return 1
        write("out of time" if result.get("left_out") else "done")
    except Exception:
        write("failed", traceback.format_exc())
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    end_with_writer(0)
    raise SystemExit(main())
