"""Exclusive self-attention (Zhai 2026, arXiv:2603.09078): a head's output without its part along the own value.

z_t = y_t - s (y_t . u_t) u_t with u_t = v_t / |v_t|, y_t the weighted sum of values and v_t the value of the query's
own token, of its key and value head. Before the output gate.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinks.errors import require
from sinks.models.attention_config import AttentionConfig
from sinks.models.splits import Split


class Exclusion(nn.Module):
    """Base of what is taken out of a head's output.

    Args:
        config: widths and names of the attention sublayer.
    """

    kind = "attention exclusion"

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Tensor, v: Tensor) -> Tensor:
        """Outputs [B, H, T, head_dim] and values [B, n_kv_heads, T, head_dim] -> outputs of the same shape."""
        raise NotImplementedError

    def own_norms(self, norms: Tensor) -> Tensor | None:
        """Norms of what the own value still adds, |1 - s| |v|, of those of the values |v| [B, H, T]; None for all."""
        raise NotImplementedError

    def shard_plan(self) -> dict[str, Split]:
        """How tensor parallelism splits the parameters, by name."""
        return {}


class NoExclusion(Exclusion):
    """The output as it is."""

    def forward(self, out: Tensor, v: Tensor) -> Tensor:
        return out

    def own_norms(self, norms: Tensor) -> None:
        return None


def along_own_value(out: Tensor, v: Tensor) -> Tensor:
    """(y . u) u of each output y [B, H, T, head_dim], at least in float32; zero where the own value is zero.

    Args:
        out: y.
        v: values [B, n_kv_heads, T, head_dim]; n_kv_heads divides H.
    """
    wide = torch.promote_types(out.dtype, torch.float32)
    unit = F.normalize(v.to(wide), dim=-1).repeat_interleave(out.shape[1] // v.shape[1], dim=1)
    return (out.to(wide) * unit).sum(-1, keepdim=True) * unit


class ExclusiveSelfAttention(Exclusion):
    """s = 1: no output has a part along the query's own value."""

    def forward(self, out: Tensor, v: Tensor) -> Tensor:
        return (out - along_own_value(out, v)).to(out.dtype)

    def own_norms(self, norms: Tensor) -> Tensor:
        return 0 * norms  # not zeros: norms that are undefined stay so


class LearnedExclusion(Exclusion):
    """A learned strength s per head, free of limits.

    Args:
        config: widths and names of the attention sublayer.
        initial: s at the start; at 0 the model is the one without exclusion.
    """

    def __init__(self, config: AttentionConfig, initial: float = 1.0) -> None:
        super().__init__(config)
        self.initial = require("initial exclusion strength", initial, remedy="give e.g. 0 or 1")
        self.added = ("strength",) if self.initial == 0 else ()
        self.strength = nn.Parameter(torch.empty(config.n_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.strength, self.initial)

    def forward(self, out: Tensor, v: Tensor) -> Tensor:
        return (out - self.strength[:, None, None] * along_own_value(out, v)).to(out.dtype)

    def own_norms(self, norms: Tensor) -> Tensor:
        return (1 - self.strength.detach()).abs()[:, None] * norms

    def shard_plan(self) -> dict[str, Split]:
        return {"strength": Split("rows", "n_heads", self.config.n_heads)}
