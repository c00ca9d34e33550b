"""Gates of attention's keys, after their norm and before positions: a key can withdraw from all queries."""

import torch
from torch import Tensor, nn

from sinks.models.attention_config import AttentionConfig
from sinks.models.layers import Linear
from sinks.models.splits import Split


class KeyGate(nn.Module):
    """Base of what scales keys.

    Args:
        config: widths, names and initialization of the attention sublayer.
    """

    kind = "key gates"

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, k: Tensor, x: Tensor) -> Tensor:
        """Keys [B, n_kv_heads, T, head_dim] and the input [B, T, D] -> keys of the same shape."""
        raise NotImplementedError

    def shard_plan(self) -> dict[str, Split]:
        """How tensor parallelism splits the parameters, by name."""
        return {}


class NoKeyGate(KeyGate):
    """The keys as they are."""

    def forward(self, k: Tensor, x: Tensor) -> Tensor:
        return k


class GatedKeys(KeyGate):
    """k * 2 sigmoid(W x) per channel of each key, with W zero at the start, where the gate is exactly one.

    After marin-community/marin, issue 5381, which in place of the factor 2 learns one per query head, from 2 on, and
    norms its keys: give `qk_norm` for that.

    Args:
        config: widths, names and initialization of the attention sublayer.
    """

    added = ("projection.weight",)

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__(config)
        self.projection = Linear(config.d_model, config.n_kv_heads * config.head_dim, 0.0)

    def forward(self, k: Tensor, x: Tensor) -> Tensor:
        gate = 2 * torch.sigmoid(self.projection(x))
        return k * gate.view(*x.shape[:2], -1, self.config.head_dim).transpose(1, 2)

    def shard_plan(self) -> dict[str, Split]:
        return {"projection.weight": Split("rows", "n_kv_heads", self.config.n_kv_heads)}
