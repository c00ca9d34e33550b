"""Counts of a small machine-code listing, checked by hand."""

from __future__ import annotations

import pytest

from benchmarks.kernels.sass import Loop, read

LISTING = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   STL [R1], R4 ;
.L_x_1:
        /*0020*/                   LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64] ;
.L_x_2:
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0038*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*003c*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0040*/                   LDL R4, [R1] ;
        /*0050*/              @!P1 MUFU.EX2 R9, R9 ;
        /*0060*/                   FADD R4, R4, R9 ;
        /*0070*/               @P0 BRA `(.L_x_2) ;
        /*0080*/              @!P2 BRA `(.L_x_1) ;
.L_x_3:
        /*0090*/                   UTCHMMA gdesc[UR6], gdesc[UR8], tmem[UR9] ;
        /*00a0*/               @P3 BRA `(.L_x_3) ;
        /*00b0*/               @P4 BRA `(.L_x_4) ;
.L_x_4:
        /*00c0*/                   EXIT ;
"""


def test_counts_innermost_loops_spills_and_tensor_core_work():
    code = read(LISTING)
    assert code.instructions == 15
    assert code.tensor_core == 2
    assert code.async_copies == 1
    assert code.spills == 2
    assert code.loops == [Loop(7, 1, 1, 1, 1, 1, 0), Loop(2, 1, 0, 0, 0, 0, 0)]
    assert code.hot_loop == Loop(2, 1, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("loop", "beside"),
    [
        ("HGMMA MUFU MUFU WAIT0 MUFU", 2),
        ("WAIT0 MUFU HGMMA MUFU", 1),  # the wait of the next iteration
        ("MUFU HGMMA WAIT1 MUFU WAIT0 MUFU HGMMA WAIT0", 1),
        ("HGMMA WAIT0 MUFU HGMMA FADD WAIT0", 0),
        ("MUFU HGMMA", 1),  # never waited for
    ],
)
def test_what_is_issued_beside_a_product(loop, beside):
    lines = {"WAIT0": "WARPGROUP.DEPBAR.LE gsb0, 0x0 ;", "WAIT1": "WARPGROUP.DEPBAR.LE gsb0, 0x1 ;"}
    body = "\n".join(
        f"        /*{i:04x}*/  {lines.get(name, name + ' R1 ;')}" for i, name in enumerate(loop.split(), 1)
    )
    (found,) = read(f".L_x_1:\n{body}\n        /*00ff*/  @P0 BRA `(.L_x_1) ;").loops
    assert found.beside == beside


def test_a_kernel_without_loops_has_no_hot_one():
    assert read("        /*0000*/                   EXIT ;").hot_loop is None
