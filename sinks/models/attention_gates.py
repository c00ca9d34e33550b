"""Output gates of attention: pre-activations from the normed input, applied as a sigmoid to each head's output.

Gated attention as in arXiv:2505.06708 (position G1, after the weighted sum, before the output projection).
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from sinks.models.attention_config import AttentionConfig
from sinks.models.gated_norm import logit
from sinks.models.layers import Linear
from sinks.models.splits import Split


class AttentionGate(nn.Module):
    """Base of the gates.

    Args:
        config: widths, names and initialization of the attention sublayer.
    """

    kind = "attention gates"
    limit = 1.0  # of its values

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor | None:
        """[B, T, D] -> pre-activations [B, H, T] or [B, H, T, head_dim], or None for no gate."""
        raise NotImplementedError

    def values(self, activations: Tensor) -> Tensor:
        """What each output is multiplied by, for pre-activations of any shape."""
        return torch.sigmoid(activations)

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


class HeadwiseGate(AttentionGate):
    """One gate per head and token.

    Args:
        config: widths, names and initialization of the attention sublayer.
        initial_gate: value at which the gate starts, up to the noise of the initial weights.
    """

    def __init__(self, config: AttentionConfig, initial_gate: float = 0.5) -> None:
        super().__init__(config)
        self.projection = Linear(config.d_model, config.n_heads, config.init_std)
        self.offset = logit(initial_gate, "initial_gate")

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x).transpose(1, 2) + self.offset

    def shard_plan(self) -> dict[str, Split]:
        return {"projection.weight": Split("rows", "n_heads", self.config.n_heads)}


class ElementwiseGate(AttentionGate):
    """One gate per channel of each head's output and token.

    Args:
        config: widths, names and initialization of the attention sublayer.
        initial_gate: value at which the gate starts, up to the noise of the initial weights.
    """

    def __init__(self, config: AttentionConfig, initial_gate: float = 0.5) -> None:
        super().__init__(config)
        self.projection = Linear(config.d_model, config.n_heads * config.head_dim, config.init_std)
        self.offset = logit(initial_gate, "initial_gate")

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        gate = self.projection(x).view(batch, length, -1, self.config.head_dim)
        return gate.transpose(1, 2) + self.offset

    def shard_plan(self) -> dict[str, Split]:
        return {"projection.weight": Split("rows", "n_heads", self.config.n_heads)}


class _StartsAtOne(AttentionGate):
    """2 sigmoid(W x) with W zero at the start."""

    added = ("projection.weight",)
    limit = 2.0

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__(replace(config, init_std=0.0))

    def values(self, activations: Tensor) -> Tensor:
        return self.limit * super().values(activations)

    def rescale(self, out: Tensor) -> Tensor:
        return self.limit * out


class IdentityHeadwiseGate(_StartsAtOne, HeadwiseGate):
    """2 sigmoid(W x) per head and token, with W zero: the gate starts at exactly one, and leaves a trained model as is.

    Args:
        config: widths, names and initialization of the attention sublayer.
    """


class IdentityElementwiseGate(_StartsAtOne, ElementwiseGate):
    """2 sigmoid(W x) per channel of each head's output and token, with W zero: as `IdentityHeadwiseGate`.

    Args:
        config: widths, names and initialization of the attention sublayer.
    """


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
    return AfterCall() if between and not isinstance(gate, NoGate) else WithinCall()
