"""Stage a: the kernels on this machine against the reference in float64, with the table's tiles."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_report.stage_context import StageContext
from benchmarks.kernels.checks import (
    LAYOUTS,
    Check,
    attention_checks,
    graph_checks,
    make_call,
    norm_checks,
    poisoned_memory,
    relative_error,
    wrong,
)
from benchmarks.kernels.measure import reason_of
from benchmarks.tables import table
from sinks.models.cross_entropy import linear_cross_entropy

Case = dict[str, Any]

PROCESSES = 8  # a case is mostly Triton compilation
GATES = (None, "head", "element")
NORMALIZERS = ("softmax", "off_by_one", "learnable_sink", "sigmoid")
HEAD_DIMS = (128, 64, 256, 96, 32)


def cases(dry: bool) -> list[Case]:
    """The most used first. 300 tokens are several full tiles and a partial one, for every tile of the table.

    At 4096 tokens, a common context length, the reference's T x T matrices leave memory for one row and two heads.
    """
    if dry:
        return [
            {"kernel": "attention", "dtype": "float32", "normalizer": "learnable_sink", "head_dim": 16, "tokens": 40,
             "gate": "element", "heads": 2, "kv_heads": 1},
            {"kernel": "attention", "dtype": "float16", "normalizer": "sigmoid", "head_dim": 16, "tokens": 40,
             "gate": "head", "heads": 1, "kv_heads": 1},
            {"kernel": "attention", "dtype": "float16", "normalizer": "learnable_sink", "head_dim": 16, "tokens": 20,
             "gate": "head", "heads": 2, "kv_heads": 1, "layout": "stride 2"},
            {"kernel": "norm", "dtype": "float32", "shape": [40, 64], "rank": 4, "pre_affine": True},
            {"kernel": "loss", "dtype": "float32", "tokens": 40, "width": 16, "vocab_size": 50},
        ]  # fmt: skip
    found: list[Case] = []
    for dtype in ("bfloat16", "float32", "float16"):
        for i, head_dim in enumerate(HEAD_DIMS):
            for j, normalizer in enumerate(NORMALIZERS):
                # Every gate with every normalizer and every head dimension, but not the full product.
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
        if dtype == "bfloat16":
            found += [plain | {"kernel": "graph", "normalizer": "learnable_sink", "gate": "element", "kv_heads": 1}]
            found += [
                plain | {"normalizer": normalizer, "head_dim": head_dim, "tokens": 4096, "kv_heads": 1, "gate": None}
                for head_dim in (128, 64)
                for normalizer in NORMALIZERS
            ]
            found += [
                plain | {"normalizer": normalizer, "kv_heads": 1, "gate": gate, "batch": 2, "layout": layout}
                for layout in LAYOUTS
                for normalizer, gate in (("learnable_sink", "head"), ("sigmoid", "element"))
            ]
        found += [
            {"kernel": "norm", "dtype": dtype, "shape": shape, "rank": rank, "pre_affine": pre_affine}
            for shape, rank, pre_affine in (
                ([2, 300, 768], 16, False),
                ([500, 2048], 16, True),
                ([300, 1000], 40, True),
            )
        ]
        # Several chunks and a partial one.
        found += [{"kernel": "loss", "dtype": dtype, "tokens": 3000, "width": 512, "vocab_size": 151936}]
    return found


def describe(case: Case) -> str:
    """A case in a few words."""
    if case["kernel"] == "norm":
        shape = " x ".join(map(str, case["shape"]))
        return f"GatedNorm {case['dtype']} {shape} rank {case['rank']}" + (" PreAffine" if case["pre_affine"] else "")
    if case["kernel"] == "loss":
        return f"loss of the head {case['dtype']} {case['tokens']} x {case['width']} V {case['vocab_size']}"
    parts = [case["normalizer"], case["dtype"], f"D {case['head_dim']}", f"T {case['tokens']}"]
    parts += [f"{case['heads']}/{case['kv_heads']} heads"]
    parts += [f"{case['gate']} gate"] if case["gate"] else []
    parts += [f"{name} {case[name]}" for name in ("window", "softcap", "layout") if name in case]
    parts += ["in a CUDA graph"] if case["kernel"] == "graph" else []
    return " ".join(parts)


def check(case: Case, device: str) -> dict[str, Any]:
    """The errors and limits of everything the case computes, or the reason for its failure."""
    options = dict(case)
    kernel, dtype = options.pop("kernel"), getattr(torch, options.pop("dtype"))
    try:
        with poisoned_memory():
            if kernel == "norm":
                found = norm_checks(**options, dtype=dtype, device=device, eps=1e-5, offset=0.5)
            elif kernel == "loss":
                found = loss_checks(**options, dtype=dtype, device=device)
            elif kernel == "graph":
                found = graph_checks(make_call(**options, dtype=dtype).to(device), dtype)
            else:
                layout = options.pop("layout", None)
                found = attention_checks(make_call(**options, dtype=dtype).to(device), dtype, layout)
    # A kernel that does not compile or launch is a result, and the other cases continue.
    except Exception as failure:
        return {"case": describe(case), "refused": reason_of(failure)}
    return {
        "case": describe(case),
        "checks": {name: {"error": c.error, "limit": c.limit, "passed": c.passed} for name, c in found.items()},
    }


def loss_checks(tokens: int, width: int, vocab_size: int, dtype: torch.dtype, device: str) -> dict[str, Check]:
    """The loss and both gradients of the head, in chunks on a GPU, against whole logits in float64."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, width, generator=generator).to(device, torch.bfloat16) for n in (tokens, vocab_size))
    targets = torch.randint(vocab_size, (tokens,), generator=generator).to(device)
    results = []
    for own in (dtype, torch.float64):
        own_x, own_weight = x.to(own).requires_grad_(), (weight / width**0.5).to(own).requires_grad_()
        if own == dtype:
            loss = linear_cross_entropy(own_x, own_weight, targets)
        else:
            loss = F.cross_entropy(F.linear(own_x, own_weight), targets)
        results.append([loss.detach(), *torch.autograd.grad(loss, (own_x, own_weight))])
    of_loss, of_gradients = {torch.float32: (1e-5, 1e-4)}.get(dtype, (1e-4, 1e-2))  # TF32 is off
    limits = {"loss": of_loss, "gradient of x": of_gradients, "gradient of the head": of_gradients}
    return {
        name: Check(relative_error(own, exact), limit)
        for (name, limit), own, exact in zip(limits.items(), *results, strict=True)
    }


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    """Every case that is not yet known to be right, until time is up."""
    every = cases(context.dry)
    rows = [row for row in context.before.get("rows", ()) if not _wrong(row)]
    right = {row["case"] for row in rows}
    todo = [case for case in every if describe(case) not in right]

    def result() -> dict[str, Any]:
        return {
            "rows": rows,
            "faults": [f"{row['case']}: {_wrong(row)}" for row in rows if _wrong(row)],
            "left_out": [f"{len(every) - len(rows)} of {len(every)} cases"] if len(rows) < len(every) else [],
        }

    yield result()
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
    checks = {name: Check(c["error"], c["limit"]) for name, c in row.get("checks", {}).items()}
    return row.get("refused") or wrong(checks)


def markdown(result: dict[str, Any]) -> str:
    """The number of correct cases, and each case's error closest to its limit."""
    rows = result["rows"]

    def cells(row: dict[str, Any]) -> list[str]:
        if "refused" in row:
            return [row["case"], row["refused"], "", "", "WRONG"]
        name, worst = max(row["checks"].items(), key=lambda item: item[1]["error"] / item[1]["limit"])
        errors = [f"{worst['error']:.1e}", f"{worst['limit']:.1e}"]
        return [row["case"], name, *errors, "WRONG" if _wrong(row) else "right"]

    lines = [
        "# a. Kernels against the reference in float64",
        "",
        f"{len(rows) - len(result['faults'])} of {len(rows)} cases right: output, every gradient, every statistic and "
        "the key mass, relative to float64 on the same rounded inputs; limits as in tests/kernels.",
        *table("case | nearest to its limit | error | limit | ", map(cells, sorted(rows, key=lambda row: row["case"]))),
    ]
    return "\n".join(lines) + "\n"
