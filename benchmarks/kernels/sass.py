"""Parsing GPU machine code as printed by nvdisasm: instructions, innermost loops, spills, tensor-core work."""

import re
from typing import NamedTuple

_LABEL = re.compile(r"\s*(\.L_x?_?\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)")
_BRANCH_TARGET = re.compile(r"\(?(\.L_x?_?\w+)")
_TENSOR_CORE = re.compile(r"(HGMMA|HMMA|QGMMA|IMMA|UTC\w*MMA)(\.|$)")
_ASYNCHRONOUS = ("HGMMA", "QGMMA", "IGMMA")
# WARPGROUP.DEPBAR.LE gsb0, 0x1: up to one group of products may still run.
_WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE\s+gsb\d+,\s*0x([0-9a-f]+)")


class Loop(NamedTuple):
    """Instruction counts of one innermost loop.

    Args:
        instructions: all.
        tensor_core: matrix products, synchronous or not.
        special: of the special-function units.
        spills: loads and stores of local memory.
        asynchronous: wgmma, products that a warpgroup starts and waits for later.
        partial_waits: waits for products that leave some of them running (`wait_group` above 0).
        beside: of the special ones, those issued while a product of the same warpgroup may run.
    """

    instructions: int
    tensor_core: int
    special: int
    spills: int
    asynchronous: int
    partial_waits: int
    beside: int


class Code(NamedTuple):
    """Instruction counts of a kernel and its innermost loops."""

    instructions: int
    tensor_core: int
    async_copies: int
    spills: int
    loops: list[Loop]

    @property
    def hot_loop(self) -> Loop | None:
        """The tensor-core loop without masks: the shortest loop with tensor-core work."""
        working = [loop for loop in self.loops if loop.tensor_core]
        return min(working, key=lambda loop: loop.instructions, default=None)


def read(text: str) -> Code:
    """Count in the output of `nvdisasm -c`."""
    operations: list[str] = []
    operands: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label.group(1)] = len(operations)
        elif instruction := _INSTRUCTION.match(line):
            operations.append(instruction.group(1))
            operands.append(instruction.group(2))
    spans = []
    for index, (operation, operand) in enumerate(zip(operations, operands, strict=True)):
        target = _BRANCH_TARGET.search(operand) if operation.split(".")[0] == "BRA" else None
        start = labels.get(target.group(1)) if target else None
        if start is not None and start <= index:
            spans.append((start, index + 1))
    lines = [f"{operation}{operand}" for operation, operand in zip(operations, operands, strict=True)]
    innermost = [
        span
        for span in spans
        if not any(other != span and span[0] <= other[0] and other[1] <= span[1] for other in spans)
    ]
    return Code(
        instructions=len(operations),
        tensor_core=_tensor_core(operations),
        async_copies=_count(operations, "LDGSTS", "UTMALDG", "UBLKCP"),
        spills=_count(operations, "LDL", "STL"),
        loops=[
            Loop(
                stop - start,
                _tensor_core(body),
                _count(body, "MUFU"),
                _count(body, "LDL", "STL"),
                _count(body, *_ASYNCHRONOUS),
                sum(wait is not None and int(wait[1], 16) > 0 for wait in map(_WAIT.match, lines[start:stop])),
                _beside(lines[start:stop]),
            )
            for start, stop in innermost
            for body in [operations[start:stop]]
        ],
    )


def _beside(loop: list[str]) -> int:
    """Special-function instructions between the start of a product and the wait for it, also across iterations."""
    running, found = False, 0
    for iteration in range(2):
        for line in loop:
            operation = re.split(r"\W", line, maxsplit=1)[0]
            if wait := _WAIT.match(line):
                running = running and int(wait[1], 16) > 0
            running = running or operation in _ASYNCHRONOUS
            found += iteration == 1 and running and operation.startswith("MUFU")
    return found


def _tensor_core(operations: list[str]) -> int:
    return sum(_TENSOR_CORE.match(operation) is not None for operation in operations)


def _count(operations: list[str], *names: str) -> int:
    return sum(operation.split(".")[0] in names for operation in operations)
