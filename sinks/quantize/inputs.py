"""The inputs of the linear maps of a model's blocks, each with all maps that read it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.quantize.watch import version, watching

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
class SharedInput:
    """What one or several linear maps read.

    Args:
        name: e.g. "blocks.3.attention.in".
        kind: "attention.in" is what a block's attention reads first (q, k and v), "attention.out" what it reads last
            (the output projection), "attention.inner" what is between; the same for its feed-forward; "gate" is the
            path of an output gate or a norm gate.
        linears: by their names in the model, the first where one has several.
        per_token: whether it has a row for every token, in their order; what experts are sent has not.
    """

    name: str
    kind: str
    linears: Mapping[str, nn.Linear]
    per_token: bool = True

    @property
    def first(self) -> nn.Linear:
        """Of the maps, the one that is called first."""
        return next(iter(self.linears.values()))

    @property
    def width(self) -> int:
        return self.first.in_features


@dataclass(frozen=True)
class BlockOf:
    """A block, which of its modules is attention, and which modules are the gate path."""

    module: nn.Module
    attention: nn.Module | None
    gates: Sequence[nn.Module] = ()


@dataclass(frozen=True)
class _Call:
    """Of a linear map. Two that read one memory read the same only if nothing was written to it in between."""

    linear: nn.Linear
    input: Tensor  # kept, so that no other tensor gets its address
    version: int

    @property
    def identity(self) -> tuple[object, ...]:
        x = self.input
        return x.data_ptr(), x.shape, x.stride(), self.version


def inputs_of(
    model: nn.Module, blocks: Iterable[BlockOf], run: Callable[[Tensor], object], tokens: Tensor
) -> list[SharedInput]:
    """The inputs of the linear maps in blocks, by what they read in a short pass.

    Args:
        model: that holds the blocks.
        blocks: first to last.
        run: runs the model.
        tokens: a few token ids [B, T] to run it over.

    Raises:
        UserError: if there is none.
    """
    names = {module: name for name, module in model.named_modules()}
    calls: list[_Call] = []
    blocks = list(blocks)
    linears = dict.fromkeys(m for block in blocks for m in block.module.modules() if is_plain(m))

    def see(linear: nn.Linear, x: Tensor) -> None:
        calls.append(_Call(linear, x, version(x)))

    with watching((linear, partial(see, linear)) for linear in linears), torch.no_grad():
        run(tokens)
    found: list[SharedInput] = []
    taken = set[nn.Module]()
    for index, block in enumerate(blocks):
        own = [m for m in block.module.modules() if m not in taken]  # a module of several blocks is the first one's
        taken.update(own)
        found += _of_block(f"blocks.{index}", block, own, calls, names, tokens)
    if not found:
        raise UserError(f"{type(model).__name__} has no nn.Linear in its blocks: only these can be quantized")
    return found


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes x W^T + b and nothing else: a subclass or a wrapper may have a forward of its own."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward and "forward" not in vars(module)


def left_out(inputs: Iterable[SharedInput], blocks: Iterable[BlockOf]) -> list[str]:
    """Class names of modules with weight matrices in the blocks that are no plain linear map, or were not called."""
    read = {linear for each in inputs for linear in each.linears.values()}
    modules = [m for block in blocks for m in block.module.modules() if m not in read]
    return sorted({type(m).__name__ for m in modules if any(p.ndim > 1 for p in m.parameters(recurse=False))})


def _of_block(
    name: str,
    block: BlockOf,
    own: Sequence[nn.Module],
    calls: Sequence[_Call],
    names: Mapping[nn.Module, str],
    tokens: Tensor,
) -> Iterator[SharedInput]:
    gates = {m for gate in block.gates for m in gate.modules()}
    attention = set() if block.attention is None else set(block.attention.modules())
    rest = set(own) - gates
    for part, chosen in (
        ("attention", [c for c in calls if c.linear in rest & attention]),
        ("feed_forward", [c for c in calls if c.linear in rest - attention]),
    ):
        groups = _by_input(chosen)
        for at, group in enumerate(groups):
            place = "in" if at == 0 else "out" if at == len(groups) - 1 else "inner"
            kind = f"{part}.{place}"
            label = f"{name}.{kind}.{at}" if place == "inner" else f"{name}.{kind}"
            linears = {names[call.linear]: call.linear for call in group}
            yield SharedInput(label, kind, linears, _is_per_token(group[0].input, tokens))
    for group in _by_input([c for c in calls if c.linear in gates & set(own)]):
        linears = {names[call.linear]: call.linear for call in group}
        yield SharedInput(next(iter(linears)), GATE, linears, _is_per_token(group[0].input, tokens))


def _by_input(calls: Sequence[_Call]) -> list[list[_Call]]:
    """In the order of the first call; a module that is called twice counts once."""
    first = {call.linear: call for call in reversed(calls)}
    groups: dict[tuple[object, ...], list[_Call]] = {}
    for call in calls:
        if first[call.linear] is call:
            groups.setdefault(call.identity, []).append(call)
    return list(groups.values())


def _is_per_token(x: Tensor, tokens: Tensor) -> bool:
    return x.shape[:-1] in (tokens.shape, (tokens.numel(),))
