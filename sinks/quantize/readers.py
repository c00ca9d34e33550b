"""The linear maps of a model's blocks, together where they read the same input."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sinks.errors import UserError

GATE = "gate"
# Kinds of inputs that are quantized by default: the gate path stays in high precision.
KINDS = (
    "attention.in",
    "attention.inner",
    "attention.out",
    "feed_forward.in",
    "feed_forward.inner",
    "feed_forward.out",
)


@dataclass(frozen=True)
class Readers:
    """Linear maps that read one input.

    Args:
        name: e.g. "blocks.3.attention.in".
        kind: "attention.in" is what a block's attention reads first (q, k and v), "attention.out" what it reads last
            (the output projection), "attention.inner" what is between; the same for its feed-forward; "gate" is the
            path of an output gate or a norm gate.
        linears: by their names in the model, which is where they are replaced.
    """

    name: str
    kind: str
    linears: Mapping[str, nn.Linear]

    @property
    def width(self) -> int:
        """Of the input."""
        return next(iter(self.linears.values())).in_features


@dataclass(frozen=True)
class BlockOf:
    """A block, which of its modules is attention, and which modules are the gate path."""

    module: nn.Module
    attention: nn.Module | None
    gates: Sequence[nn.Module] = ()


def readers_of(model: nn.Module, blocks: Iterable[BlockOf], run: Callable[[], object]) -> list[Readers]:
    """The linear maps of blocks, by the inputs that they read in a short pass.

    Args:
        model: that holds the blocks.
        blocks: first to last.
        run: runs the model over a few tokens.

    Raises:
        UserError: if there is none.
    """
    names = {module: name for name, module in model.named_modules()}
    calls: list[tuple[nn.Linear, Tensor]] = []
    blocks = list(blocks)
    linears = [m for block in blocks for m in block.module.modules() if isinstance(m, nn.Linear)]
    handles = [m.register_forward_pre_hook(lambda module, args: calls.append((module, args[0]))) for m in linears]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    found: list[Readers] = []
    for index, block in enumerate(blocks):
        found += _of_block(f"blocks.{index}", block, calls, names)
    if not found:
        raise UserError(f"{type(model).__name__} has no nn.Linear in its blocks: only these can be quantized")
    return found


def left_out(readers: Iterable[Readers], blocks: Iterable[BlockOf]) -> list[str]:
    """Class names of modules with weight matrices in the blocks that are no plain linear map, or were not called."""
    read = {linear for reader in readers for linear in reader.linears.values()}
    modules = [m for block in blocks for m in block.module.modules() if m not in read]
    return sorted({type(m).__name__ for m in modules if any(p.ndim > 1 for p in m.parameters(recurse=False))})


def _of_block(
    name: str, block: BlockOf, calls: Sequence[tuple[nn.Linear, Tensor]], names: Mapping[nn.Module, str]
) -> Iterator[Readers]:
    gates = {m for gate in block.gates for m in gate.modules()}
    attention = set() if block.attention is None else set(block.attention.modules())
    own = set(block.module.modules())
    for part, chosen in (
        ("attention", [c for c in calls if c[0] in attention - gates]),
        ("feed_forward", [c for c in calls if c[0] in own - attention - gates]),
    ):
        groups = _by_input(chosen)
        for at, linears in enumerate(groups):
            place = "in" if at == 0 else "out" if at == len(groups) - 1 else "inner"
            kind = f"{part}.{place}"
            label = f"{name}.{kind}.{at}" if place == "inner" else f"{name}.{kind}"
            yield Readers(label, kind, {names[linear]: linear for linear in linears})
    # A fused gate computes with its maps' weights without calling them.
    for module in block.module.modules():
        if module in gates and isinstance(module, nn.Linear):
            yield Readers(names[module], GATE, {names[module]: module})


def _by_input(calls: Sequence[tuple[nn.Linear, Tensor]]) -> list[list[nn.Linear]]:
    """In the order of the first call; a module that is called twice counts once."""
    groups: dict[tuple[int, torch.Size], list[nn.Linear]] = {}
    seen: set[nn.Linear] = set()
    for linear, x in calls:
        if linear not in seen:
            seen.add(linear)
            groups.setdefault((x.data_ptr(), x.shape), []).append(linear)
    return list(groups.values())
