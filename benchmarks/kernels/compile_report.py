"""The compiled code of every pinned kernel, without a GPU: `make kernel-report`.

Compiles each configuration to a cubin with the tools inside the Triton wheel, reads registers, shared memory and the
hot loop's machine code, and fails (exit 1) on a violated gate: a spill inside the hot loop (head dimension up to 128),
shared memory over the GPU's limit, no tensor-core instruction.

Utilization is a model, not a measurement: cycles of one hot-loop iteration for the tensor cores, the special-function
units and the issue slots of one SM, from no overlap to as much as the code allows. On sm_90 products by `mma.sync`
reach 63 % of the peak of `wgmma` (arXiv:2402.13499), and a warpgroup that has waited for all of its products overlaps
with those of the SM's other warpgroups alone, but for the special-function instructions that the code issues beside a
product.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.kernels.sass import Code, Loop, read
from benchmarks.tables import table


class Gpu(NamedTuple):
    """Properties of a GPU generation; of the 99 KB ones the tensor-core rate of their professional cards, of which
    GeForce cards have half in float32 accumulation."""

    capability: int
    shared_limit: int
    shared_an_sm: int
    flops_a_clock: int


GPUS = {
    "sm_80": Gpu(80, 163 * 1024, 164 * 1024, 2048),
    "sm_86": Gpu(86, 99 * 1024, 100 * 1024, 1024),
    "sm_89": Gpu(89, 99 * 1024, 100 * 1024, 1024),
    "sm_90": Gpu(90, 227 * 1024, 228 * 1024, 4096),
    "sm_100": Gpu(100, 227 * 1024, 228 * 1024, 8192),
    "sm_120": Gpu(120, 99 * 1024, 100 * 1024, 1024),
}
# Matrix products of [queries, D] x [D, keys] in one iteration of the hot loop.
_PRODUCTS = {"forward": 2, "backward_keys": 4, "backward_queries": 3, "key_mass": 1}
_NORM_KERNELS = ("gated_norm_forward", "gated_norm_backward_rows", "gated_norm_backward_channels")
_NORM_RANK = 16
_NORMALIZERS = {"softmax": 0, "off_by_one": 2, "sigmoid": 3}
_GATES = {"head_gate": 1, "gate": 2}
# Of the peak of wgmma on sm_90, what mma.sync reaches.
_SYNCHRONOUS = 0.63


class Config(NamedTuple):
    """One pinned configuration: kernel, GPU, head dimension (for the norm the model's width), compiled features."""

    kernel: str
    gpu: str
    width: int
    features: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "-".join([self.kernel, f"d{self.width}", *self.features, self.gpu])


def pinned() -> list[Config]:
    """Every configuration of the report; attention has a learnable sink unless it names another normalizer.

    "ahead" and "specialized" are the first candidates of that schedule.
    """
    kernels = ("forward", "backward_keys", "backward_queries")
    configs = [Config(kernel, gpu, dim) for gpu in GPUS for dim in (64, 128) for kernel in kernels]
    configs += [Config(kernel, gpu, 256) for gpu in ("sm_80", "sm_86", "sm_90", "sm_120") for kernel in kernels]
    configs += [Config("backward_keys", "sm_90", 256, ("gqa",))]
    configs += [Config("backward_rows", "sm_90", dim, ("gate",)) for dim in (64, 128, 256)]
    configs += [Config(kernel, "sm_90", dim, ("float32",)) for dim in (64, 128) for kernel in kernels]
    configs += [Config("key_mass", "sm_90", dim) for dim in (64, 128)]
    configs += [Config("forward", "sm_90", dim, ("gate",)) for dim in (64, 128)]
    configs += [Config("forward", "sm_90", dim, ("gate", "statistics")) for dim in (64, 128)]
    configs += [Config("forward", "sm_90", dim, (how,)) for dim in (64, 128) for how in ("ahead", "specialized")]
    configs += [Config(kernel, "sm_90", 128, ("window",)) for kernel in kernels]
    configs += [Config("forward", "sm_90", 64, ("sigmoid",)), Config("forward", "sm_90", 128, ("softcap",))]
    configs += [Config("backward_keys", "sm_90", 128, ("gqa",))]
    configs += [Config(kernel, "sm_90", 2048) for kernel in _NORM_KERNELS]
    configs += [Config(kernel, "sm_90", 2048, ("pre_affine",)) for kernel in _NORM_KERNELS]
    return configs


def compile_config(config: Config, tile: Any = None) -> dict[str, Any]:
    """Compile one configuration and return its row of the report; `tile` replaces the table's."""
    if config.kernel in _NORM_KERNELS:
        kernel, constants, table_tile = _norm(config)
    elif "specialized" in config.features:
        kernel, constants, table_tile = _specialized(config, tile)
    else:
        kernel, constants, table_tile = _attention(config, tile)
    tile = tile or table_tile
    started = time.perf_counter()
    half = "float32" not in config.features
    compiled = _compile(kernel, constants, config.gpu, tile.warps, tile.stages, "*bf16" if half else "*fp32")
    seconds = time.perf_counter() - started
    resources, code = _disassemble(compiled.asm["cubin"])
    # The model has no peak for three passes of TF32.
    flops = 2 * _PRODUCTS.get(config.kernel, 0) * tile.rows * tile.columns * config.width * half
    return _row(config, tile._asdict(), compiled.metadata.shared, resources, code, flops, seconds)


def _attention(config: Config, tile: Any) -> tuple[Any, dict[str, Any], Any]:
    """(kernel, compile-time constants, tile) of an attention kernel."""
    import torch
    from sink_kernels import tiles, triton_backward, triton_forward, triton_key_mass

    kernel = {
        "forward": triton_forward.attention_forward_kernel,
        "backward_rows": triton_backward.attention_backward_rows_kernel,
        "backward_keys": triton_backward.attention_backward_keys_kernel,
        "backward_queries": triton_backward.attention_backward_queries_kernel,
        "key_mass": triton_key_mass.key_mass_kernel,
    }[config.kernel]
    capability = divmod(GPUS[config.gpu].capability, 10)
    if config.kernel == "backward_rows":
        tile = tiles.Tile(tiles.rows_a_block(config.width), 0, 4, 1)
    if "ahead" in config.features:
        candidates = tiles.CANDIDATES[config.kernel, config.width]
        tile = tile or next(each for each in candidates if each.schedule == "ahead")
    dtype = torch.float32 if "float32" in config.features else torch.bfloat16
    tile = tile or tiles.tile_for(config.kernel, config.width, dtype, capability)
    constants = {
        "D": config.width,
        "BD": config.width,
        "BM": tile.rows,
        "BN": tile.columns,
        **_common(config),
        "FIRST": "statistics" in config.features,
        "ROWS": "statistics" in config.features,
        "WINDOW": "window" in config.features,
        "CAP": "softcap" in config.features,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",
        "AHEAD": tile.schedule == "ahead",
    }
    return kernel, constants, tile


def _specialized(config: Config, tile: Any) -> tuple[Any, dict[str, Any], Any]:
    """(kernel, compile-time constants, tile) of the forward in Gluon."""
    from sink_kernels import gluon_forward, tiles

    tile = tile or tiles.SPECIALIZED[config.kernel, config.width][0]
    constants = {"D": config.width, "BM": tile.rows, "BN": tile.columns, "STAGES": tile.stages, "num_warps": tile.warps}
    constants |= _common(config)
    return gluon_forward.gluon_forward_kernel, constants, tile


def _common(config: Config) -> dict[str, Any]:
    return {
        "GROUP": 4 if "gqa" in config.features else 1,
        "NORM": next((_NORMALIZERS[name] for name in config.features if name in _NORMALIZERS), 1),
        "GATE": next((_GATES[name] for name in config.features if name in _GATES), 0),
    }


def _norm(config: Config) -> tuple[Any, dict[str, Any], Any]:
    """(kernel, compile-time constants, tile) of a GatedNorm kernel in bfloat16; its tile is rows by channels."""
    from sink_kernels import triton_gated_norm
    from sink_kernels.tiles import norm_tile_for

    tile = norm_tile_for(config.kernel.removeprefix("gated_norm_"), _NORM_RANK)
    constants = {
        "R": _NORM_RANK,
        "BR": _NORM_RANK,
        "BM": tile.rows,
        "BK": tile.columns,
        "EVEN": True,
        "PRE": "pre_affine" in config.features,
        "STATS": "statistics" in config.features,
        "HALF": True,
        "PRECISION": "ieee",
    }
    return getattr(triton_gated_norm, f"{config.kernel}_kernel"), constants, tile


_FLOAT_POINTERS = {"p_sink", "p_lse", "p_first", "p_entropy", "p_max", "p_delta", "p_dsink", "p_mass"}
_FLOAT_POINTERS |= {"p_weight", "p_pre", "p_down", "p_up", "p_rstd", "p_h", "p_dh", "p_c", "p_absmax", "p_fourth"}
_FLOAT_POINTERS |= {"p_dweight", "p_dpre", "p_ddown", "p_dup"}


def _compile(kernel: Any, constants: dict[str, Any], gpu: str, warps: int, stages: int, data: str = "*bf16") -> Any:
    """Compile as the JIT would: aligned pointers, strides and lengths divisible by 16."""
    import triton
    from sink_kernels import gluon_forward
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon._runtime import GluonASTSource

    signature: dict[str, str] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, name in enumerate(kernel.arg_names):
        if kernel.params[index].is_constexpr:
            signature[name] = "constexpr"
            constexprs[(index,)] = constants[name]
        elif name in ("q", "k", "v"):
            layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
            rows = constants["BM"] if name == "q" else constants["BN"]
            signature[name] = f"tensordesc<bf16[1, 1, {rows}, {constants['D']}],{layout!r}>"
        elif name.startswith("p_"):
            signature[name] = "*fp32" if name in _FLOAT_POINTERS else data
        elif name in ("scale", "softcap", "bias", "eps", "offset"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
        if signature[name] != "constexpr" and (name.startswith(("p_", "s_")) or name in ("T", "M", "D")):
            attributes[(index,)] = [["tt.divisibility", 16]]
    specialized = "q" in kernel.arg_names
    source = (GluonASTSource if specialized else ASTSource)(kernel, signature, constexprs, attributes)
    target = GPUTarget("cuda", GPUS[gpu].capability, 32)
    options = {"maxnreg": gluon_forward.REGISTERS} if specialized else {"num_stages": stages}
    return triton.compile(source, target=target, options={"num_warps": warps} | options)


def _disassemble(cubin: bytes) -> tuple[dict[str, int], Code]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True)
        listing = subprocess.run([tools / "nvdisasm", "-c", path], capture_output=True, text=True, check=True)
    resources = {}
    for name in ("REG", "STACK"):
        found = re.search(rf"{name}:(\d+)", usage.stdout)
        resources[name] = int(found.group(1)) if found else 0
    return resources, read(listing.stdout)


def _row(
    config: Config, tile: dict[str, int], shared: int, resources: dict[str, int], code: Code, flops: int, seconds: float
) -> dict[str, Any]:
    gpu = GPUS[config.gpu]
    hot = code.hot_loop or Loop(0, 0, 0, 0, 0, 0, 0)
    # The loading warp takes a warpgroup's registers.
    warps = tile["warps"] + 4 * ("specialized" in config.features)
    resident = ctas_an_sm(resources["REG"], shared, warps, gpu)
    row = {
        "name": config.name,
        "kernel": config.kernel,
        "gpu": config.gpu,
        "width": config.width,
        "features": list(config.features),
        "tile": tile,
        "registers": resources["REG"],
        "stack_bytes": resources["STACK"],
        "shared_bytes": shared,
        "ctas_an_sm": resident,
        "tensor_core_instructions": code.tensor_core,
        "async_copies": code.async_copies,
        "spills": code.spills,
        "hot_loop": hot._asdict(),
        "utilization": utilization(hot, tile["warps"], flops, _PRODUCTS.get(config.kernel, 0), gpu, resident),
        "compile_seconds": round(seconds, 2),
    }
    row["violations"] = violations(row)
    return row


def ctas_an_sm(registers: int, shared: int, warps: int, gpu: Gpu) -> int:
    """Programs per SM: 64 K registers in units of 256 per warp, 1 KB of shared memory reserved per program."""
    a_warp = (registers * 32 + 255) // 256 * 256
    return min(65536 // (a_warp * warps), gpu.shared_an_sm // (shared + 1024), 64 // warps, 32)


def utilization(loop: Loop, warps: int, flops: int, products: int, gpu: Gpu, ctas: int) -> list[float]:
    """Fraction of the tensor cores' peak, [no overlap but a warpgroup's own, as much as the code allows].

    Empty if memory is the limit. A warpgroup's own overlap is at most one of its products.

    Args:
        loop: of one program.
        warps: of one program.
        flops: of one program's products in an iteration.
        products: their number.
        gpu: whose SM it runs on.
        ctas: programs on an SM.
    """
    if flops == 0:
        return []
    peak = flops / gpu.flops_a_clock
    tensor = peak if gpu.capability != 90 or loop.asynchronous else peak / _SYNCHRONOUS
    rest = max(loop.special * warps * 32 / 16, loop.instructions * warps / 4)
    alone = tensor + rest
    if loop.beside:
        alone -= min(tensor / products, rest * loop.beside / loop.special)
    most = max(tensor, rest)
    if loop.asynchronous and not loop.partial_waits:
        # A warpgroup that waits for its products does nothing meanwhile; the others share the SM's units.
        most = max(most, alone / max(1, ctas * warps // 4))
    return [round(peak / alone, 2), round(peak / most, 2)]


def violations(row: dict[str, Any]) -> list[str]:
    """The violated gates of a row, one sentence each."""
    found = []
    limit = GPUS[row["gpu"]].shared_limit
    if row["shared_bytes"] > limit:
        found.append(f"{row['shared_bytes']} bytes of shared memory, the limit is {limit}: use a smaller tile")
    if row["tensor_core_instructions"] == 0 and row["kernel"] != "backward_rows":
        found.append("no tensor-core instruction: check the operand types of tl.dot")
    if row["hot_loop"]["spills"] and row["width"] != 256:
        found.append(f"{row['hot_loop']['spills']} spills inside the hot loop: use a smaller tile or more warps")
    if row["kernel"] == "backward_rows" and row["spills"]:
        found.append(f"{row['spills']} spills in a kernel without a loop: use fewer rows")
    return found


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    lines = [
        "# Offline compile report",
        "",
        f"Triton {report['triton']}, torch {report['torch']}, {report['date']}, {report['seconds']} s.",
        "Nothing here was measured on a GPU; utilization is modeled, from no overlap to full overlap.",
        "Spills: inside the hot loop / in the whole kernel.",
    ]
    lines += table(
        "kernel | GPU | D | features | tile, warps, stages | registers | shared KB | CTAs/SM | tensor-core "
        "| by wgmma, waits for all | loop instructions | special, beside a product | spills | utilization | gates",
        map(_cells, report["rows"]),
    )
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[Any]:
    tile, hot = row["tile"], row["hot_loop"]
    cells = [row["kernel"], row["gpu"], row["width"], " ".join(row["features"]) or "-"]
    cells += [f"{tile['rows']} x {tile['columns']}, {tile['warps']}, {tile['stages']}", row["registers"]]
    cells += [f"{row['shared_bytes'] / 1024:.0f}", row["ctas_an_sm"], row["tensor_core_instructions"]]
    waits = f"{'yes' if hot['asynchronous'] else 'no'}, {'no' if hot['partial_waits'] else 'yes'}"
    cells += [
        waits if row["gpu"] == "sm_90" and hot["tensor_core"] else "-",
        hot["instructions"],
        f"{hot['special']}, {hot['beside']}",
        f"{hot['spills']} / {row['spills']}",
    ]
    used = " - ".join(f"{fraction:.2f}" for fraction in row["utilization"]) or "-"
    return [*cells, used, "; ".join(row["violations"]) or "pass"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for compile_report.json and .md")
    parser.add_argument("--only", default="", help="compile the configurations whose name contains this")
    options = parser.parse_args(arguments)
    configs = [config for config in pinned() if options.only in config.name]
    if not configs:
        print(f"no configuration contains {options.only!r}: leave --only out to see them all", file=sys.stderr)
        return 2
    # With this set, importing triton replaces the compiler by the interpreter.
    os.environ.pop("TRITON_INTERPRET", None)
    # The default of this flag changes with Triton 3.10; the table was chosen with fusion on.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    import torch
    import triton

    started = time.perf_counter()
    rows = []
    for config in configs:
        row = compile_config(config)
        rows.append(row)
        print(
            f"{config.name}: {row['registers']} registers, {row['hot_loop']['spills']} spills in the loop, "
            f"{'; '.join(row['violations']) or 'pass'}",
            flush=True,
        )
    report = {
        "triton": triton.__version__,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - started),
        "rows": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "compile_report.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "compile_report.md").write_text(markdown(report))
    return 1 if any(row["violations"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
