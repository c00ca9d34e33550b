"""Stage a: the kernels on this machine against the reference in float64, with the table's own tiles."""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from benchmarks.gpu_report.stage_context import StageContext
from benchmarks.kernels.checks import attention_checks, make_call, norm_checks
from benchmarks.kernels.measure import reason_of

Case = dict[str, Any]

PROCESSES = 8  # a case is mostly Triton compiling
GATES = (None, "head", "element")
NORMALIZERS = ("softmax", "off_by_one", "learnable_sink", "sigmoid")
HEAD_DIMS = (128, 64, 256, 96, 32)


def cases(dry: bool) -> list[Case]:
    """The most used first. 300 tokens are several tiles and a ragged one, in every tile of the table."""
    if dry:
        return [
            {"kernel": "attention", "dtype": "float32", "normalizer": "learnable_sink", "head_dim": 16, "tokens": 40,
             "gate": "element", "heads": 2, "kv_heads": 1},
            {"kernel": "attention", "dtype": "float16", "normalizer": "sigmoid", "head_dim": 16, "tokens": 40,
             "gate": "head", "heads": 1, "kv_heads": 1},
            {"kernel": "norm", "dtype": "float32", "shape": [40, 64], "rank": 4, "pre_affine": True},
        ]  # fmt: skip
    found: list[Case] = []
    for dtype in ("bfloat16", "float32", "float16"):
        for i, head_dim in enumerate(HEAD_DIMS):
            for j, normalizer in enumerate(NORMALIZERS):
                # Every gate with every normaliser and every head dimension, without the whole product.
                gates = GATES if dtype == "bfloat16" and head_dim in (64, 128) else GATES[(i + j) % 3 :][:1]
                found += [
                    {"kernel": "attention", "dtype": dtype, "normalizer": normalizer, "head_dim": head_dim,
                     "tokens": 300, "gate": gate, "heads": 4, "kv_heads": 4 if (i + j) % 2 else 1, "batch": 2}
                    for gate in gates
                ]  # fmt: skip
        plain = {"kernel": "attention", "dtype": dtype, "head_dim": 64, "heads": 2, "kv_heads": 2, "tokens": 300}
        found += [
            plain | {"normalizer": "learnable_sink", "gate": "head", "window": 100},
            plain | {"normalizer": "softmax", "gate": None, "softcap": 5.0},
            plain | {"normalizer": "sigmoid", "gate": None, "window": 64, "softcap": 5.0},
            plain | {"normalizer": "softmax", "gate": None, "tokens": 1},
        ]
        found += [
            {"kernel": "norm", "dtype": dtype, "shape": shape, "rank": rank, "pre_affine": pre_affine}
            for shape, rank, pre_affine in (
                ([2, 300, 768], 16, False),
                ([500, 2048], 16, True),
                ([300, 1000], 40, True),
            )
        ]
    return found


def describe(case: Case) -> str:
    """A case in a few words."""
    if case["kernel"] == "norm":
        shape = " x ".join(map(str, case["shape"]))
        return f"GatedNorm {case['dtype']} {shape} rank {case['rank']}" + (" PreAffine" if case["pre_affine"] else "")
    parts = [case["normalizer"], case["dtype"], f"D {case['head_dim']}", f"T {case['tokens']}"]
    parts += [f"{case['heads']}/{case['kv_heads']} heads"]
    parts += [f"{case['gate']} gate"] if case["gate"] else []
    parts += [f"{name} {case[name]}" for name in ("window", "softcap") if name in case]
    return " ".join(parts)


def check(case: Case, device: str) -> dict[str, Any]:
    """The case with the errors and limits of everything it computes, or with the reason why it could not."""
    options = dict(case)
    kernel, dtype = options.pop("kernel"), getattr(torch, options.pop("dtype"))
    try:
        with poisoned_memory():
            if kernel == "norm":
                found = norm_checks(**options, dtype=dtype, device=device, eps=1e-5, offset=0.5)
            else:
                found = attention_checks(make_call(**options, dtype=dtype).to(device), dtype)
    # A kernel that does not compile or launch is an answer, and the other cases go on.
    except Exception as failure:
        return {"case": describe(case), "refused": reason_of(failure)}
    return {
        "case": describe(case),
        "checks": {name: {"error": c.error, "limit": c.limit, "passed": c.passed} for name, c in found.items()},
    }


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN: what a kernel forgets to write cannot pass for a result."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    """Every case until time is up."""
    todo = cases(context.dry)
    rows: list[dict[str, Any]] = []

    def result() -> dict[str, Any]:
        wrong = [row for row in rows if row.get("refused") or not all(c["passed"] for c in row["checks"].values())]
        return {
            "rows": rows,
            "faults": [f"{row['case']}: {_wrong(row)}" for row in wrong],
            "left_out": [f"{len(todo) - len(rows)} of {len(todo)} cases"] if len(rows) < len(todo) else [],
        }

    if context.device.type != "cuda":
        for case in todo:
            rows.append(check(case, str(context.device)))
            yield result()
        return
    processes = min(PROCESSES, os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(check, case, str(context.device)) for case in todo]
        for future in as_completed(futures):
            rows.append(future.result())
            yield result()
            if context.late:
                pool.shutdown(wait=False, cancel_futures=True)
                break


def _wrong(row: dict[str, Any]) -> str:
    if "refused" in row:
        return row["refused"]
    worst = [f"{n} {c['error']:.1e} over {c['limit']:.1e}" for n, c in row["checks"].items() if not c["passed"]]
    return ", ".join(worst)


def markdown(result: dict[str, Any]) -> str:
    """How many cases are right, each case's error nearest to its limit, and what is wrong."""
    rows = result["rows"]
    lines = [
        "# a. Kernels against the reference in float64",
        "",
        f"{len(rows) - len(result['faults'])} of {len(rows)} cases right: output, every gradient, every statistic and "
        "the key mass, relative to float64 on the same rounded inputs; limits as in tests/kernels.",
        "",
        "| case | nearest to its limit | error | limit | |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["case"]):
        if "refused" in row:
            lines.append(f"| {row['case']} | {row['refused']} | | | WRONG |")
            continue
        name, worst = max(row["checks"].items(), key=lambda item: item[1]["error"] / item[1]["limit"])
        verdict = "right" if all(c["passed"] for c in row["checks"].values()) else "WRONG"
        lines.append(f"| {row['case']} | {name} | {worst['error']:.1e} | {worst['limit']:.1e} | {verdict} |")
    lines += [f"\nNot reached in time: {what}." for what in result["left_out"]]
    return "\n".join(lines) + "\n"
