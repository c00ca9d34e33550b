"""The options of an attention call.

Shapes in this package: B batch, H query heads, Hkv key/value heads (H = G * Hkv), T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from torch import Tensor

Normalizer = Literal["softmax", "off_by_one", "learnable_sink", "sigmoid", "clipped_softmax"]
# Causal scores [B, H, T, T], -inf where forbidden -> weights [B, H, T, T].
NormalizerFunction = Callable[[Tensor], Tensor]
Statistic = Literal[
    "lse", "first_key_mass", "own_key_mass", "previous_key_mass", "row_mass", "sink_mass", "entropy", "max_logit",
    "key_mass",
]  # fmt: skip
Backend = Literal["auto", "triton", "flash", "fa4", "reference"]

NORMALIZERS: tuple[str, ...] = get_args(Normalizer)
STATISTICS: tuple[str, ...] = get_args(Statistic)
BACKENDS: tuple[str, ...] = get_args(Backend)


class Options(NamedTuple):
    """The resolved, validated options of a call: `scale` is set, a window that excludes nothing is None."""

    normalizer: str | NormalizerFunction = "softmax"
    scale: float = 1.0
    window: int | None = None
    softcap: float | None = None
    bias: float | None = None
    clip: tuple[float, float] | None = None

    @property
    def has_sink(self) -> bool:
        """Whether the rows share their mass with a sink logit (fixed at 0 for off_by_one)."""
        return self.normalizer in ("off_by_one", "learnable_sink")

    @property
    def renormalized(self) -> bool:
        """Whether rows may not sum to 1, so that their statistics are those of the renormalized row."""
        return callable(self.normalizer) or self.normalizer in ("sigmoid", "clipped_softmax")

    @property
    def normalizer_name(self) -> str:
        """The normalizer's name in messages."""
        return "a function" if callable(self.normalizer) else repr(self.normalizer)
