"""Output gates of attention: activations of the normed input, by whose sigmoid each head's output is multiplied.

Gated attention as in arXiv:2505.06708 (position G1, after the weighted sum, before the output projection).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from sinks.errors import UserError, require
from sinks.models.attention_config import AttentionConfig
from sinks.models.gated_norm import ACTIVATIONS, logit
from sinks.models.layers import Linear
from sinks.models.splits import Split

LARGEST_LOGIT = 40.0  # its sigmoid is 1 in float64


class AttentionGate(nn.Module):
    """Base of the gates.

    Args:
        config: widths, names and initialization of the attention sublayer.
    """

    kind = "attention gates"
    limit = 1.0  # of its values
    sigmoid = True  # values are limit * sigmoid(activations): the attention call knows no other activation

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor | None:
        """[B, T, D] -> activations [B, H, T], [B, 1, T] or [B, H, T, head_dim], or None for no gate."""
        raise NotImplementedError

    def values(self, activations: Tensor) -> Tensor:
        """What each output is multiplied by, for activations of any shape."""
        return torch.sigmoid(activations)

    def activations(self, values: Tensor) -> Tensor:
        """The inverse of `values`; of a sigmoid gate, at most 40 in size."""
        return torch.logit(values / self.limit).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)

    def rescale(self, out: Tensor) -> Tensor:
        """What remains of the gate once `sink_kernels.attention` has multiplied by the sigmoid [B, H, T, head_dim]."""
        return out

    def multiply(self, out: Tensor, activations: Tensor) -> Tensor:
        """Outputs [B, H, T, head_dim] times the gate's values, at least in float32, as in `sink_kernels.attention`."""
        wide = torch.promote_types(out.dtype, torch.float32)
        values = self.values(activations.to(wide))
        return (out * (values if values.dim() == 4 else values.unsqueeze(-1))).to(out.dtype)

    def shard_plan(self) -> dict[str, Split]:
        """How tensor parallelism splits the parameters of the gate, by name."""
        return {}


class NoGate(AttentionGate):
    """No gate."""

    def forward(self, x: Tensor) -> None:
        return None


class ProjectedGate(AttentionGate):
    """Base of the gates whose activations are linear in the input.

    Args:
        config: widths, names and initialization of the attention sublayer.
        gates: number of them per token.
        initial_gate: value at which the gate starts, up to the noise of the initial weights.
        dimensions: how many of the input's first dimensions are read; all if None.

    Raises:
        UserError: if `initial_gate` is not between 0 and 1, or `dimensions` below 1 or above d_model.
    """

    std = 1.0  # of the initial weights, over that of the sublayer's other projections

    def __init__(self, config: AttentionConfig, gates: int, initial_gate: float, dimensions: int | None) -> None:
        super().__init__(config)
        read = config.d_model if dimensions is None else dimensions
        require("attention gate dimensions", read, at_least=1, at_most=config.d_model, remedy="give at most d_model")
        self.dimensions = dimensions
        self.projection = Linear(read, gates, config.init_std * self.std)
        self.offset = logit(initial_gate, "initial_gate")

    def project(self, x: Tensor) -> Tensor:
        """[B, T, D] -> activations [B, T, number of gates]."""
        return self.projection(x[..., : self.dimensions]) + self.offset

    def shard_plan(self) -> dict[str, Split]:
        return {"projection.weight": Split("rows", "n_heads", self.config.n_heads)}


class TensorwiseGate(ProjectedGate):
    """One gate per token, for all heads.

    Args:
        config: widths, names and initialization of the attention sublayer.
        initial_gate: value at which the gate starts, up to the noise of the initial weights.
        dimensions: how many of the input's first dimensions are read; all if None.
    """

    def __init__(self, config: AttentionConfig, initial_gate: float = 0.5, dimensions: int | None = None) -> None:
        super().__init__(config, 1, initial_gate, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).transpose(1, 2)

    def shard_plan(self) -> dict[str, Split]:
        return {"projection.weight": Split("shared")}


class HeadwiseGate(ProjectedGate):
    """One gate per head and token.

    Args:
        config: widths, names and initialization of the attention sublayer.
        initial_gate: value at which the gate starts, up to the noise of the initial weights.
        dimensions: how many of the input's first dimensions are read; all if None.
    """

    def __init__(self, config: AttentionConfig, initial_gate: float = 0.5, dimensions: int | None = None) -> None:
        super().__init__(config, config.n_heads, initial_gate, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).transpose(1, 2)


class ElementwiseGate(ProjectedGate):
    """One gate per channel of each head's output and token.

    Args:
        config: widths, names and initialization of the attention sublayer.
        initial_gate: value at which the gate starts, up to the noise of the initial weights.
        dimensions: how many of the input's first dimensions are read; all if None.
    """

    def __init__(self, config: AttentionConfig, initial_gate: float = 0.5, dimensions: int | None = None) -> None:
        super().__init__(config, config.n_heads * config.head_dim, initial_gate, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return self.project(x).view(batch, length, -1, self.config.head_dim).transpose(1, 2)


class _Amplifying(ProjectedGate):
    """2 sigmoid(W x), which starts at about one, where its slope is largest."""

    limit = 2.0

    def values(self, activations: Tensor) -> Tensor:
        return self.limit * super().values(activations)

    def rescale(self, out: Tensor) -> Tensor:
        return self.limit * out


class AmplifyingHeadwiseGate(_Amplifying, HeadwiseGate):
    """2 sigmoid(W x) per head and token: starts at one, up to the noise of the initial weights.

    Args:
        config: widths, names and initialization of the attention sublayer.
        dimensions: how many of the input's first dimensions are read; all if None.
    """

    def __init__(self, config: AttentionConfig, dimensions: int | None = None) -> None:
        super().__init__(config, dimensions=dimensions)


class AmplifyingElementwiseGate(_Amplifying, ElementwiseGate):
    """2 sigmoid(W x) per channel of each head's output and token: as `AmplifyingHeadwiseGate`.

    Args:
        config: widths, names and initialization of the attention sublayer.
        dimensions: how many of the input's first dimensions are read; all if None.
    """

    def __init__(self, config: AttentionConfig, dimensions: int | None = None) -> None:
        super().__init__(config, dimensions=dimensions)


class IdentityHeadwiseGate(AmplifyingHeadwiseGate):
    """2 sigmoid(W x) per head and token, with W zero: the gate starts at exactly one, and leaves a trained model as is.

    Args:
        config: widths, names and initialization of the attention sublayer.
        dimensions: how many of the input's first dimensions are read; all if None.
    """

    added = ("projection.weight",)
    std = 0.0


class IdentityElementwiseGate(AmplifyingElementwiseGate):
    """2 sigmoid(W x) per channel of each head's output and token, with W zero: as `IdentityHeadwiseGate`.

    Args:
        config: widths, names and initialization of the attention sublayer.
        dimensions: how many of the input's first dimensions are read; all if None.
    """

    added = ("projection.weight",)
    std = 0.0


class ActivatedGate(AttentionGate):
    """A gate of another activation than the sigmoid, applied after the attention call; its activations are its values.

    Args:
        config: widths, names and initialization of the attention sublayer.
        activation: in place of the sigmoid; all start near zero.
        gate: what is activated.

    Raises:
        UserError: if the gate has a factor or an initial value of its own, both of which are of its sigmoid.
    """

    limit = math.inf
    sigmoid = False

    def __init__(
        self,
        config: AttentionConfig,
        activation: Literal["tanh", "silu", "identity"],
        gate: Callable[[AttentionConfig], ProjectedGate] = ElementwiseGate,
    ) -> None:
        super().__init__(config)
        self.gate = gate(config)
        if self.gate.limit != 1:
            raise UserError(
                f"ActivatedGate has {type(self.gate).__name__}, whose factor {self.gate.limit:g} is of its sigmoid: "
                "give ElementwiseGate, HeadwiseGate or TensorwiseGate"
            )
        if self.gate.offset:
            raise UserError(
                f"ActivatedGate has a gate whose initial_gate is {torch.sigmoid(torch.tensor(self.gate.offset)):g}, of "
                "its sigmoid, but starts near zero: leave initial_gate out"
            )
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.gate(x))

    def values(self, activations: Tensor) -> Tensor:
        return activations

    def activations(self, values: Tensor) -> Tensor:
        return values

    def shard_plan(self) -> dict[str, Split]:
        return {f"gate.{name}": split for name, split in self.gate.shard_plan().items()}


class UnconditionalGate(AttentionGate):
    """One learned gate per channel, the same for every token: the control, which cannot rescale by context.

    Args:
        config: widths, names and initialization of the attention sublayer.
        initial_gate: value at which the gate starts.
    """

    def __init__(self, config: AttentionConfig, initial_gate: float = 0.5) -> None:
        super().__init__(config)
        self.initial = logit(initial_gate, "initial_gate")
        self.value = nn.Parameter(torch.full((config.n_heads * config.head_dim,), self.initial))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.value, self.initial)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        value = self.value.to(x.dtype).view(1, -1, 1, self.config.head_dim)
        return value.expand(batch, -1, length, -1)

    def shard_plan(self) -> dict[str, Split]:
        return {"value": Split("rows", "n_heads", self.config.n_heads)}


class WithinCall:
    """Applies a gate: the attention call multiplies by the sigmoid, the gate by what remains."""

    def within(self, activations: Tensor | None) -> Tensor | None:
        """What the attention call is given as its gate."""
        return activations

    def after(self, gate: AttentionGate, out: Tensor, activations: Tensor | None) -> Tensor:
        """The gated outputs, of what the attention call gave [B, H, T, head_dim]."""
        return gate.rescale(out)

    def ungated(self, before: Tensor, gated: Tensor, values: Tensor) -> Tensor:
        """The outputs without the gate [B, H, T, head_dim], of those before and after `after`."""
        return gated.float() / (values if values.dim() == 4 else values.unsqueeze(-1)).float()


class AfterCall(WithinCall):
    """Applies a gate to what the attention call gave, where something comes between."""

    def within(self, activations: Tensor | None) -> None:
        return None

    def after(self, gate: AttentionGate, out: Tensor, activations: Tensor | None) -> Tensor:
        assert activations is not None
        return gate.multiply(out, activations)

    def ungated(self, before: Tensor, gated: Tensor, values: Tensor) -> Tensor:
        return before


def gating_of(gate: AttentionGate, between: bool) -> WithinCall:
    """How a gate is applied.

    Args:
        gate: of the outputs.
        between: whether something comes between the attention call and the gate.
    """
    apart = (between or not gate.sigmoid) and not isinstance(gate, NoGate)
    return AfterCall() if apart else WithinCall()
