"""Low-rank gates after a norm: explicit rescaling in place of rescaling by outliers (arXiv:2601.22966, section 4)."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from sink_kernels import gated_norm
from torch import Tensor

from sinks.errors import require
from sinks.models.layers import Linear, is_bare
from sinks.models.norms import DyT, Norm, PreAffine, RMSNorm
from sinks.models.taps import Tap

Activation = Literal["sigmoid", "tanh", "silu", "identity"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "identity": torch.nn.Identity(),
}


def logit(probability: float, name: str) -> float:
    """The pre-activation at which a sigmoid gate gives `probability`.

    Raises:
        UserError: unless 0 < probability < 1.
    """
    require(name, probability, above=0, below=1, remedy="give e.g. 0.5")
    return math.log(probability / (1 - probability))


class GatedNorm(Norm):
    """y = norm(x); y * act(W_up silu(W_down y)).

    A sigmoid gate per channel over RMSNorm or PreAffine is one fused kernel on a GPU (`sink_kernels.gated_norm`). The
    gate's values are at the tap `gate`.

    Args:
        d_model: width D of the residual stream.
        rank: width r of the bottleneck; 2 * r * D parameters.
        granularity: one gate per channel, or one per token.
        activation: of the gate; all but the sigmoid were unstable in the paper.
        initial_gate: value at which a sigmoid gate starts, up to the noise of the initial weights.
        init_std: standard deviation of the initial W_down and W_up.
        norm: the norm that is gated.

    Raises:
        UserError: if the rank is below 1 or above d_model.
    """

    kind = "norm gates"
    wraps = "norm"  # a model without the gate has this module in its place
    up_std = 1.0  # of the initial W_up, over that of W_down
    limit = 1.0  # of a sigmoid gate

    def __init__(
        self,
        d_model: int,
        rank: int = 16,
        granularity: Literal["elementwise", "tensorwise"] = "elementwise",
        activation: Activation = "sigmoid",
        initial_gate: float = 0.5,
        init_std: float = 0.02,
        norm: Callable[[int], Norm] = RMSNorm,
    ) -> None:
        super().__init__(d_model)
        require("norm rank", rank, at_least=1, at_most=d_model, remedy="give at most d_model")
        require("norm gate init_std", init_std, at_least=0, remedy="give e.g. 0.02")
        self.norm = norm(d_model)
        self.down = Linear(d_model, rank, init_std)
        self.up = Linear(rank, d_model if granularity == "elementwise" else 1, init_std * self.up_std)
        self.gate_tap = Tap("gate")
        self.offset = logit(initial_gate, "initial_gate") if activation == "sigmoid" else 0.0
        self.activation = ACTIVATIONS[activation]
        self.one_kernel = activation == "sigmoid" and granularity == "elementwise" and type(self).gate is GatedNorm.gate

    def gate(self, y: Tensor) -> Tensor:
        """Gate values [B, T, D], or [B, T, 1] if tensorwise, of the norm's output y [B, T, D]."""
        return self.activation(self.up(F.silu(self.down(y))) + self.offset)

    def _gated(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        gate = self.gate_tap(self.gate(y))
        if self.internals is not None:
            self.internals |= {"normed": y, "gate": gate}
        return gate * y

    @property
    def _fused(self) -> bool:
        """Whether the kernel computes what the modules would: it reads their weights."""
        bare = is_bare(self.down) and is_bare(self.up) and type(self.norm) in (RMSNorm, PreAffine)
        return self.one_kernel and bare and self.gate_tap.edit is None

    def forward(self, x: Tensor) -> Tensor:
        if not self._fused:
            return self._gated(x)
        if self.internals is not None or self.gate_tap.listener is not None:
            with torch.no_grad():
                self._gated(x)  # the kernel returns neither; a test compares the two
        norm: Any = self.norm
        pre_affine = norm.pre if isinstance(norm, PreAffine) else None
        weights = (norm.weight, self.down.weight, self.up.weight)
        return gated_norm(x, *weights, pre_affine=pre_affine, eps=norm.eps, offset=self.offset)


class AmplifyingGatedNorm(GatedNorm):
    """y = norm(x); y * limit * sigmoid(W_up silu(W_down y)): what a gate amplifies needs no residual sink.

    At limit 2 the gate starts at one, up to the noise of the initial weights, where the sigmoid is steepest: what it
    does from there on is not due to a start that halves what the sublayer reads.

    Args:
        d_model: width D of the residual stream.
        rank: width r of the bottleneck; 2 * r * D parameters.
        granularity: one gate per channel, or one per token.
        limit: largest value of the gate, which starts at half of it.
        init_std: standard deviation of the initial W_down and W_up.
        norm: the norm that is gated.
    """

    def __init__(
        self,
        d_model: int,
        rank: int = 16,
        granularity: Literal["elementwise", "tensorwise"] = "elementwise",
        limit: float = 2.0,
        init_std: float = 0.02,
        norm: Callable[[int], Norm] = RMSNorm,
    ) -> None:
        super().__init__(d_model, rank, granularity, init_std=init_std, norm=norm)
        self.limit = require("norm gate limit", limit, above=0, remedy="give e.g. 2")

    def gate(self, y: Tensor) -> Tensor:
        return self.limit * super().gate(y)


class IdentityGatedNorm(AmplifyingGatedNorm):
    """y = norm(x); y * 2 sigmoid(W_up silu(W_down y)), with W_up zero: the gate starts at exactly one.

    Put into a trained model, it leaves the model as it is, to the bit: the modules run, not the kernel, which rounds
    otherwise than the norm alone.

    Args:
        d_model: width D of the residual stream.
        rank: width r of the bottleneck; 2 * r * D parameters.
        granularity: one gate per channel, or one per token.
        init_std: standard deviation of the initial W_down.
        norm: the norm that is gated.
    """

    added = ("down.weight", "up.weight")
    up_std = 0.0

    def __init__(
        self,
        d_model: int,
        rank: int = 16,
        granularity: Literal["elementwise", "tensorwise"] = "elementwise",
        init_std: float = 0.02,
        norm: Callable[[int], Norm] = RMSNorm,
    ) -> None:
        super().__init__(d_model, rank, granularity, init_std=init_std, norm=norm)


class GateDyT(GatedNorm):
    """The low-rank gate over DyT (arXiv:2601.22966, Table 1 row 9).

    Args:
        d_model: width D of the residual stream.
        rank: width r of the bottleneck.
        initial_gate: value at which the gate starts.
        init_std: standard deviation of the initial W_down and W_up.
        alpha: initial slope of DyT.
    """

    def __init__(
        self, d_model: int, rank: int = 16, initial_gate: float = 0.5, init_std: float = 0.02, alpha: float = 0.5
    ) -> None:
        super().__init__(
            d_model, rank, initial_gate=initial_gate, init_std=init_std, norm=lambda d: DyT(d, alpha=alpha)
        )
