"""Stage f: the same run in one process, under DDP and under FSDP2 on all available GPUs."""

import argparse
import gc
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch.utils.data import Dataset

from benchmarks.gpu_report.recipe import layered, over, train_sections
from benchmarks.gpu_report.stage_context import StageContext
from benchmarks.tables import number, table
from sinks.data.module import TokenData
from sinks.data.order import identity_order
from sinks.parallel.process_exit import end_with_writer, exit_process
from sinks.parallel.strategy import Sharded
from sinks.record import RunFolder
from sinks.record.folder import from_json, to_json, write_atomically

ALONE = "one process"
STRATEGIES: dict[str, Callable[[], Any]] = {"ddp": lambda: "ddp", "fsdp2": lambda: Sharded()}
VARIANT = "gated-both"
ROWS_A_GPU, STEPS, LOG_EVERY = 16, 40, 10
DRY_PROCESSES = 2
VALIDATION_ROWS = 16


class SkewedRows(Dataset[torch.Tensor]):
    """Rows [T + 1] int64 with tokens of unequal frequency, so that they can be learned; a function of the index.

    Args:
        vocab_size: number of token ids.
        length: of a row.
        first: index of row 0.
        size: number of rows.
    """

    def __init__(self, vocab_size: int, length: int, first: int, size: int) -> None:
        self.vocab_size, self.length, self.first, self.size = vocab_size, length, first, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        uniform = torch.rand(self.length, generator=torch.Generator().manual_seed(self.first + index))
        return (uniform**3 * self.vocab_size).long()


class SkewedTokens(TokenData):
    """Generated rows, which need no preparation.

    Args:
        vocab_size: number of token ids.
        context_length: tokens the model sees.
        batch_size: rows per process and step.
    """

    def __init__(self, vocab_size: int, context_length: int, batch_size: int) -> None:
        super().__init__(vocab_size, context_length, batch_size, seed=0, num_workers=0)

    def train_set(self) -> Dataset[torch.Tensor]:
        return SkewedRows(self.vocab_size, self.context_length + 1, VALIDATION_ROWS, 2**31)

    def train_order(self) -> Callable[[int], int]:
        return identity_order

    def validation_set(self) -> Dataset[torch.Tensor]:
        return SkewedRows(self.vocab_size, self.context_length + 1, 0, VALIDATION_ROWS)

    def fingerprint(self) -> str:
        return "skewed"


def configuration(dry: bool) -> dict[str, Any]:
    """The 60M recipe for a few steps; validation only at the end."""
    sections = layered("models/60m.yaml", "data/text-60m.yaml", "trainers/gpu.yaml")
    sections["model"] = over(layered(f"variants/{VARIANT}.yaml")["model"], sections["model"])
    sections["trainer"] |= {"max_steps": STEPS, "log_every_n_steps": LOG_EVERY, "val_check_interval": STEPS}
    if not dry:
        return sections
    return over(
        sections,
        {
            "model": {"init_args": {"architecture": {"d_model": 32, "n_layers": 1, "n_heads": 2, "ffn_hidden": 48}}},
            "data": {"init_args": {"vocab_size": 64, "context_length": 16}},
            "trainer": {"max_steps": 4, "log_every_n_steps": 2, "val_check_interval": 4, "accelerator": "cpu"},
        },
    )


def train(folder: Path, name: str, processes: int, batch_size: int, dry: bool) -> dict[str, Any]:
    """One run, or this process's part of a distributed run.

    Args:
        folder: parent of the run's folder.
        name: of a strategy, or `ALONE`.
        processes: number of processes.
        batch_size: rows over all processes.
        dry: tiny sizes.
    """
    sections = configuration(dry)
    sections["trainer"]["devices"] = processes
    options = sections["data"]["init_args"]
    data = SkewedTokens(options["vocab_size"], options["context_length"], batch_size // processes)
    strategy = STRATEGIES[name]() if name in STRATEGIES else "auto"
    summary = train_sections(folder / name.replace(" ", "-"), sections, data, compile=not dry, strategy=strategy)
    return {"name": name, "processes": processes, "summary": summary}


def free_memory() -> None:
    """Free the memory of a run."""
    gc.collect()
    torch._dynamo.reset()
    torch.cuda.empty_cache()


def series(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """A run's result with the losses, gradient norms and memory logged in its folder."""
    run = RunFolder(folder / result["name"].replace(" ", "-"))
    keys = {"losses": "train/loss", "gradient_norms": "train/gradient_norm", "peak_memory_gb": "train/peak_memory_gb"}
    return result | {name: run.series(key)[1].tolist() for name, key in keys.items()}


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    """One process first: the reference for the others, of which all that are still unknown run together."""
    processes = DRY_PROCESSES if context.device.type == "cpu" else torch.cuda.device_count()
    batch_size = 4 if context.dry else ROWS_A_GPU * processes
    rows = [row for row in context.before.get("rows", ()) if "refused" not in row]
    result: dict[str, Any] = {"processes": processes, "rows": rows, "faults": [], "left_out": []}
    if not rows:
        shutil.rmtree(context.folder / ALONE, ignore_errors=True)
        rows.append(series(context.folder, train(context.folder, ALONE, 1, batch_size, context.dry)))
        free_memory()  # the following processes share the first GPU with this one
    yield result
    names = [name for name in STRATEGIES if name not in {row["name"] for row in rows}]
    if context.late:
        yield result | {"left_out": names}
        return
    for row in launch(context, names, processes, batch_size) if names else ():
        if "refused" in row:
            result["faults"].append(f"{row['name']}: {row['refused']}")
        else:
            row = compare(series(context.folder, row), result["rows"][0])
        result["rows"].append(row)
    yield result


def launch(context: StageContext, names: list[str], processes: int, batch_size: int) -> list[dict[str, Any]]:
    """Run strategies in turn under one torchrun; `refused` is the reason of a failure."""
    answers = {name: context.folder / f"{name}.json" for name in names}
    for name, answer in answers.items():
        answer.unlink(missing_ok=True)
        shutil.rmtree(context.folder / name, ignore_errors=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "benchmarks.gpu_report.parallel", str(context.folder), str(processes), str(batch_size), *names]
    done = subprocess.run(command + (["--dry"] if context.dry else []), capture_output=True, text=True)
    print(done.stdout, done.stderr, flush=True)
    lines = [line for line in done.stderr.splitlines() if "Error" in line and "ChildFailedError" not in line]
    reason = lines[0] if lines else f"exit code {done.returncode}"
    return [
        from_json(answer.read_text(encoding="utf-8"))
        if answer.is_file()
        else {"name": name, "processes": processes, "refused": reason}
        for name, answer in answers.items()
    ]


def compare(row: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    """A run with its largest relative distances from the single process on the same rows, and its scaling."""
    distances = {
        f"{name}_distance": max((abs(a / b - 1) for a, b in zip(row[name], alone[name], strict=True)), default=math.nan)
        for name in ("losses", "gradient_norms")
    }
    speed, speed_alone = row["summary"]["tokens_per_second"], alone["summary"]["tokens_per_second"]
    return row | distances | {"scaling": speed / speed_alone / row["processes"]}


def markdown(result: dict[str, Any]) -> str:
    """One row per strategy."""
    processes = result["processes"]
    lines = [
        "# f. DDP and FSDP2",
        "",
        f"{VARIANT} at 60M over {processes} process{'es' if processes > 1 else ''}, the same rows of generated tokens "
        "in the same steps. "
        + ("" if processes > 1 else "**One process: the code runs, but without communication between GPUs.** ")
        + "Distances: largest relative difference of logged values from the single process.",
    ]
    lines += table(
        " | processes | tokens/s | of linear | peak GB | loss distance | gradient norm distance | validation loss "
        "| first-token mass",
        map(_cells, result["rows"]),
    )
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[Any]:
    cells = [row["name"], row["processes"]]
    if "refused" in row:
        return [*cells, row["refused"]]
    found, memory = row["summary"], max(row["peak_memory_gb"], default=None)
    cells += [f"{found['tokens_per_second']:,.0f}", number(row.get("scaling"), ".2f"), number(memory, ".1f")]
    cells += [number(row.get(f"{name}_distance"), ".1e") for name in ("losses", "gradient_norms")]
    return [*cells, f"{found['val_loss']:.5f}", number(found["first_token_mass"], ".5f")]


def main() -> None:
    """One of the processes that torchrun starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("processes", type=int)
    parser.add_argument("batch_size", type=int)
    parser.add_argument("names", nargs="+", help="strategies")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    end_with_writer(0)
    for name in options.names:
        found = train(options.folder, name, options.processes, options.batch_size, options.dry)
        if torch.distributed.get_rank() == 0:
            write_atomically(options.folder / f"{name}.json", to_json(found))
        free_memory()
    exit_process(0)


if __name__ == "__main__":
    main()
