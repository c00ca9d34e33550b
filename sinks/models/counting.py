"""Parameters and floating-point operations, counted on modules.

Counted are products with matrices: 2 operations per weight and token, forward; twice that backward. Attention's two
products, of queries with keys and of weights with values, are counted causally. Elementwise work, norms, rotary angles
and the softmax are left out, as is recomputation (activation checkpointing, fused attention's backward): these are the
operations of the model, by which MFU is defined (arXiv:2204.02311, appendix B).

A module's `kind` is what it is counted as; a module without one has the kind of the module that contains it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

SCORES = "attention scores"


@dataclass(frozen=True)
class Flops:
    """Floating-point operations per token.

    Args:
        forward_by_kind: of the forward pass, by kind of module; attention's two products are `attention scores`.
    """

    forward_by_kind: dict[str, float]

    @property
    def forward(self) -> float:
        return sum(self.forward_by_kind.values())

    @property
    def per_token(self) -> float:
        """Forward and backward; the backward pass has twice the products of the forward pass."""
        return 3 * self.forward


def modules_by_kind(module: nn.Module, around: str = "other") -> Iterator[tuple[str, nn.Module]]:
    """A module and all modules in it, each with the kind of the innermost module that has one."""
    kind = getattr(module, "kind", around)
    yield kind, module
    for child in module.children():
        yield from modules_by_kind(child, kind)


def linear_flops(module: nn.Module) -> dict[str, float]:
    """Operations per token of a forward pass of every `nn.Linear` in a module, by kind."""
    counts: Counter[str] = Counter()
    for kind, part in modules_by_kind(module):
        if isinstance(part, nn.Linear):
            counts[kind] += 2 * part.in_features * part.out_features
    return dict(counts)


def parameters_by_kind(module: nn.Module) -> dict[str, int]:
    """Number of parameters by kind; tied parameters count once."""
    counts: Counter[str] = Counter()
    seen: set[nn.Parameter] = set()
    for kind, part in modules_by_kind(module):
        for parameter in part.parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                counts[kind] += parameter.numel()
    return dict(counts)
