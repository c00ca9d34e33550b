"""Run the notebooks and save them with light outputs: `python notebooks/execute.py [NOTEBOOK ...]`, all by default.

What they show comes from runs/, and where nothing is there, from experiments/results/.
"""

import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
LARGEST = 300_000  # bytes of a notebook
CELL_SECONDS = 300


def execute(path: Path, after: str | None = None) -> Any:
    """A notebook with the outputs of a run of all its cells, in a kernel of its own.

    Args:
        path: of the notebook.
        after: code of one more cell, which may move the controls.
    """
    notebook = nbformat.read(path, as_version=4)
    if after is not None:
        notebook.cells.append(nbformat.v4.new_code_cell(after))
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # a kernel of one's own machine warns that it is not encrypted
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    return notebook


def lighten(notebook: Any) -> None:
    """Leave out what differs from machine to machine: the interpreter, warnings, and progress that was overwritten."""
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]


def machine_paths(text: str) -> list[str]:
    """Paths of this machine in a notebook."""
    folders = {str(HERE.parent.resolve()), str(Path.home()), sys.prefix} - {"/"}
    return [found for folder in sorted(folders) for found in re.findall(re.escape(folder) + r"\b[^\s\"']*", text)]


def main(arguments: list[str]) -> int:
    """Run and save the notebooks; 1 if one is too large or names a path of this machine."""
    code = 0
    for path in [Path(argument) for argument in arguments] or sorted(HERE.glob("*.ipynb")):
        started = time.perf_counter()
        notebook = execute(path.resolve())
        lighten(notebook)
        text = nbformat.writes(notebook) + "\n"
        problems = [f"names {found}" for found in machine_paths(text)]
        if len(text) > LARGEST:
            problems.append(f"has {len(text):,} bytes, but may have {LARGEST:,}: draw fewer or smaller figures")
        if problems:
            code = 1
            print(f"{path.name}: not saved: it {'; '.join(problems)}", file=sys.stderr)
            continue
        path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {len(text) // 1000} kB, {time.perf_counter() - started:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
