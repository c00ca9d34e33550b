"""The precision of a run on the CPU: what the CPU computes fast."""

import torch

# Instructions that multiply bfloat16 matrices, as torch.cpu.get_capabilities() names them: x86, then Arm.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def has_bfloat16() -> bool:
    """Whether oneDNN computes bfloat16 with instructions of this CPU; without, it is many times slower than float32.

    `ONEDNN_MAX_CPU_ISA=AVX2` imitates a CPU without.
    """
    found = torch.cpu.get_capabilities()
    in_hardware = any(found.get(name) for name in BFLOAT16_INSTRUCTIONS)
    return in_hardware and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def cpu_precision() -> str:
    """What `${cpu_precision:}` stands for in a configuration: bf16-mixed where the CPU has bfloat16, else 32-true."""
    return "bf16-mixed" if has_bfloat16() else "32-true"
