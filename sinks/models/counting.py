"""Parameters and floating-point operations, counted on modules.

Counted are products with matrices: 2 operations per weight and token, forward; twice that backward. Attention's two
products, of queries with keys and of weights with values, are counted causally. Elementwise work, norms, rotary angles
and the softmax are left out, as is whatever is computed a second time (activation checkpointing, fused attention's
backward): these are the operations of the model, by which MFU is defined (arXiv:2204.02311, appendix B).

A module says in `kind` to which kind of part it belongs; what says nothing belongs to the part around it.
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
        forward_by_kind: of the forward pass, by kind of part; attention's two products are `attention scores`.
    """

    forward_by_kind: dict[str, float]

    @property
    def forward(self) -> float:
        return sum(self.forward_by_kind.values())

    @property
    def per_token(self) -> float:
        """Forward and backward, which is two products for every one of the forward pass."""
        return 3 * self.forward


def modules_by_kind(module: nn.Module, around: str = "other") -> Iterator[tuple[str, nn.Module]]:
    """A module and all modules in it, each with the kind of the innermost part around it."""
    kind = getattr(module, "kind", around)
    yield kind, module
    for child in module.children():
        yield from modules_by_kind(child, kind)


def linear_flops(module: nn.Module) -> dict[str, float]:
    """Operations per token of a forward pass of every `nn.Linear` in a module, by kind of part."""
    counts: Counter[str] = Counter()
    for kind, part in modules_by_kind(module):
        if isinstance(part, nn.Linear):
            counts[kind] += 2 * part.in_features * part.out_features
    return dict(counts)


def parameters_by_kind(module: nn.Module) -> dict[str, int]:
    """Number of parameters of each kind of part; one that is tied to another counts once."""
    counts: Counter[str] = Counter()
    seen: set[nn.Parameter] = set()
    for kind, part in modules_by_kind(module):
        for parameter in part.parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                counts[kind] += parameter.numel()
    return dict(counts)
