"""What is cut of the path from some dimensions of the residual stream, the sink dimensions, through a norm.

A norm y = norm(h) passes dimension j on in two ways: directly, as y_j, and through its denominator, as a part of the
mean square by which every other dimension is divided. With an RMSNorm of D channels and S the sink dimensions

    direct                y_S := 0
    constant-direct       y_S := mean y_S
    denominator           y_j := g_j h_j / sqrt(sum_{i not in S} h_i^2 / D + eps)            for j not in S
    constant-denominator  y_j := g_j h_j / sqrt((sum_{i not in S} h_i^2 + sum_S mean h_i^2) / D + eps)
    mean                  h_S := mean h_S
    zero                  h_S := 0
    clamp                 h_S := h_S within +-c times the RMS of the other dimensions

The denominator's two are computed as norm(h with other h_S) on the dimensions not in S, so that they mean the same for
every norm: how h_S changes what the sublayer reads of the other dimensions. In a gated norm this holds what the gate
reads of S; in a pointwise norm, as DyT, it is nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sinks.probes.places import Norm


@dataclass(frozen=True)
class Constants:
    """Means over calibration tokens, spread over the tokens that are edited, each [B, T, S] for S dimensions.

    Args:
        stream: mean of h_S.
        output: mean of norm(h)_S.
        square: mean of h_S^2.
    """

    stream: Tensor
    output: Tensor
    square: Tensor


@dataclass(frozen=True)
class Cut:
    """One edit of one norm.

    Args:
        h: the stream [B, T, D].
        y: norm(h) [B, T, D].
        norm: that makes y.
        dimensions: S indices.
        constants: for these.
        limit: of `clamp`, in RMS of the other dimensions.
    """

    h: Tensor
    y: Tensor
    norm: Norm
    dimensions: Tensor
    constants: Constants
    limit: float

    def direct(self) -> Tensor:
        return self._with(self.y, torch.zeros_like(self.constants.output))

    def constant_direct(self) -> Tensor:
        return self._with(self.y, self.constants.output)

    def denominator(self) -> Tensor:
        return self._scaled(torch.zeros_like(self.constants.stream))

    def constant_denominator(self) -> Tensor:
        return self._scaled(self.constants.square.sqrt())

    def mean(self) -> Tensor:
        return self.norm(self._with(self.h, self.constants.stream))

    def zero(self) -> Tensor:
        return self.norm(self._with(self.h, torch.zeros_like(self.constants.stream)))

    def clamp(self) -> Tensor:
        own = self.h[..., self.dimensions]
        others = self._with(self.h, torch.zeros_like(own))
        count = self.h.shape[-1] - own.shape[-1]
        limit = self.limit * (others.square().sum(-1, keepdim=True) / max(count, 1)).sqrt()
        return self.norm(self._with(self.h, torch.maximum(torch.minimum(own, limit), -limit)))

    def _scaled(self, read: Tensor) -> Tensor:
        """norm(h with other sink dimensions), but the sink dimensions of the output as they are."""
        return self._with(self.norm(self._with(self.h, read)), self.y[..., self.dimensions])

    def _with(self, x: Tensor, values: Tensor) -> Tensor:
        """x [B, T, D] with other values [B, T, S] at the dimensions."""
        return x.index_copy(-1, self.dimensions, values.to(x.dtype))


EDITS: dict[str, Callable[[Cut], Tensor]] = {
    "direct": Cut.direct,
    "constant-direct": Cut.constant_direct,
    "denominator": Cut.denominator,
    "constant-denominator": Cut.constant_denominator,
    "mean": Cut.mean,
    "zero": Cut.zero,
    "clamp": Cut.clamp,
}
