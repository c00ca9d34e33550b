"""Low-rank gates after a norm: explicit rescaling in place of rescaling by outliers (arXiv:2601.22966, section 4)."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from sink_kernels import gated_norm
from torch import Tensor

from sinks.errors import UserError
from sinks.models.layers import Linear
from sinks.models.norms import DyT, Norm, PreAffine, RMSNorm

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
    if not 0 < probability < 1:
        raise UserError(f"{name} is {probability}, but a sigmoid gate starts between 0 and 1: give e.g. 0.5")
    return math.log(probability / (1 - probability))


class GatedNorm(Norm):
    """y = norm(x); y * act(W_up silu(W_down y)).

    A sigmoid gate per channel over RMSNorm or PreAffine is one fused kernel on a GPU (`sink_kernels.gated_norm`).

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
        if not 1 <= rank <= d_model:
            raise UserError(f"norm rank is {rank}, but must lie in 1 ... d_model = {d_model}: give e.g. 16")
        self.norm = norm(d_model)
        self.down = Linear(d_model, rank, init_std)
        self.up = Linear(rank, d_model if granularity == "elementwise" else 1, init_std)
        self.offset = logit(initial_gate, "initial_gate") if activation == "sigmoid" else 0.0
        self.activation = ACTIVATIONS[activation]
        one_kernel = (
            type(self.norm) in (RMSNorm, PreAffine) and activation == "sigmoid" and granularity == "elementwise"
        )
        self.compute = self._fused if one_kernel else self._composed

    def gain(self) -> Tensor | None:
        return self.norm.gain()

    def gate(self, y: Tensor) -> Tensor:
        """Gate values [B, T, D], or [B, T, 1] if tensorwise, of the norm's output y [B, T, D]."""
        return self.activation(self.up(F.silu(self.down(y))) + self.offset)

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        parts = self.norm.parts(x)
        return parts | {"gate": self.gate(parts["normed"])}

    def _composed(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.gate(y) * y

    def _fused(self, x: Tensor) -> Tensor:
        norm: Any = self.norm
        pre_affine = norm.pre if isinstance(norm, PreAffine) else None
        weights = (norm.weight, self.down.weight, self.up.weight)
        return gated_norm(x, *weights, pre_affine=pre_affine, eps=norm.eps, offset=self.offset)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


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
