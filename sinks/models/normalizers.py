"""How attention scores become weights. Each normaliser is one call of `sink_kernels.attention`."""

import math
from typing import Any

import torch
from sink_kernels import Statistic, attention
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.models.clips import positive
from sinks.models.shapes import AttentionShape


class Normalizer(nn.Module):
    """Base: causal softmax attention, whose options subclasses change.

    Args:
        shape: widths and names of the attention sublayer.
    """

    # Index of the first token among the keys; 1 where a learned key stands before it.
    first_token = 0
    # Learned sinks that take part in the entropy of a row.
    learned_sinks = 0
    # Whether masses are shares of a row's total, because the row is not normalised.
    reports_shares = False

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.shape = shape

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `sink_kernels.attention`."""
        return {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None) -> Tensor:
        """q [B, H, T, head_dim], k and v [B, n_kv_heads, T, head_dim], gate pre-activations -> [B, H, T, head_dim]."""
        return attention(q, k, v, gate=gate, **self.options())

    def attend_with_statistics(
        self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, more: tuple[Statistic, ...] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `attend`, and per row [B, H, T] float32 `first_token_mass`, `learned_sink_mass`, `lse`, and `more`.

        Unnormalised attention reports shares of each row's total mass, a proxy (arXiv:2410.10781, section 5).
        """
        out, found = attention(
            q, k, v, gate=gate, stats=("lse", "first_key_mass", "sink_mass", *more), **self.options()
        )
        found["first_token_mass"], found["learned_sink_mass"] = found.pop("first_key_mass"), found.pop("sink_mass")
        return out, found


class Softmax(Normalizer):
    """The ordinary softmax.

    Args:
        shape: widths and names of the attention sublayer.
    """


class OffByOne(Normalizer):
    """exp(s_j) / (1 + sum_i exp(s_i)): a sink logit frozen at zero.

    Args:
        shape: widths and names of the attention sublayer.
    """

    learned_sinks = 1

    def options(self) -> dict[str, Any]:
        return {"normalizer": "off_by_one"}


class LearnableSink(Normalizer):
    """exp(s_j) / (exp(sink_h) + sum_i exp(s_i)) with a learned logit per head, as in gpt-oss.

    The logit is `sink_scale * parameter`: at scale 1 and small budgets the model leaves the logit unused, because
    growing the first token's key is faster.

    Args:
        shape: widths and names of the attention sublayer.
        sink_scale: factor between the parameter (float32, starts at zero) and the logit.
    """

    learned_sinks = 1

    def __init__(self, shape: AttentionShape, sink_scale: float = 1.0) -> None:
        super().__init__(shape)
        self.sink_scale = positive(sink_scale, "sink_scale", 10.0)
        self.sink = nn.Parameter(torch.zeros(shape.n_heads, dtype=torch.float32))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.sink)

    def options(self) -> dict[str, Any]:
        return {"normalizer": "learnable_sink", "sink": self.sink_scale * self.sink.float()}


class KeyValueBias(Normalizer):
    """A learned key and value per head stand before the first token (Sun et al. 2024, arXiv:2402.17762, section 5).

    Args:
        shape: widths and names of the attention sublayer.
        learn_value: whether the value is learned too; without it the value is zero, a pure sink.
    """

    first_token = 1
    learned_sinks = 1

    def __init__(self, shape: AttentionShape, learn_value: bool = True) -> None:
        super().__init__(shape)
        size = (shape.n_kv_heads, shape.head_dim)
        self.key = nn.Parameter(torch.empty(size))
        self.value = nn.Parameter(torch.empty(size), requires_grad=learn_value)
        self.learn_value = learn_value
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.key, std=self.shape.init_std)
        nn.init.normal_(self.value, std=self.shape.init_std if self.learn_value else 0.0)

    def _prepend(
        self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Shift by one: a dummy query keeps the causal mask square, so that the fused path serves unchanged."""
        batch = q.shape[0]
        key = self.key.to(k.dtype)[None, :, None].expand(batch, -1, 1, -1)
        value = self.value.to(v.dtype)[None, :, None].expand(batch, -1, 1, -1)
        q = torch.cat([torch.zeros_like(q[:, :, :1]), q], dim=2)
        return q, torch.cat([key, k], dim=2), torch.cat([value, v], dim=2), self._pad(gate)

    @staticmethod
    def _pad(gate: Tensor | None) -> Tensor | None:
        return None if gate is None else torch.cat([torch.zeros_like(gate[:, :, :1]), gate], dim=2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None) -> Tensor:
        q, k, v, gate = self._prepend(q, k, v, gate)
        return attention(q, k, v, gate=gate)[:, :, 1:]

    def attend_with_statistics(
        self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, more: tuple[Statistic, ...] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v, gate = self._prepend(q, k, v, gate)
        out, found = attention(q, k, v, gate=gate, stats=("lse", "first_key_mass", *more))
        first_token = k[:, :, 1].repeat_interleave(self.shape.n_heads // self.shape.n_kv_heads, dim=1)
        score = torch.einsum("bhtd,bhd->bht", q.float(), first_token.float()) / math.sqrt(self.shape.head_dim)
        found["first_token_mass"] = torch.exp(score - found["lse"])
        found["learned_sink_mass"] = found.pop("first_key_mass")
        return out[:, :, 1:], {name: rows[:, :, 1:] for name, rows in found.items()}


class Sigmoid(Normalizer):
    """sigmoid(s_j + bias): every key weighed by itself, no normalisation over keys (arXiv:2409.04431).

    The bias is -log(context_length) of the configured context, so that a prefix alone gives the same outputs.

    Args:
        shape: widths and names of the attention sublayer.
    """

    reports_shares = True

    def options(self) -> dict[str, Any]:
        return {"normalizer": "sigmoid", "bias": -math.log(self.shape.context_length)}


class ClippedSoftmax(Normalizer):
    """clip((1 - gamma) * softmax + gamma, 0, 1), gamma = -alpha / context_length (arXiv:2306.12929).

    Args:
        shape: widths and names of the attention sublayer.
        alpha: how much is cut off; 2 ... 4 in the source for short contexts.
    """

    reports_shares = True

    def __init__(self, shape: AttentionShape, alpha: float = 4.0) -> None:
        super().__init__(shape)
        if not 0 < alpha < shape.context_length:
            raise UserError(
                f"clipped softmax alpha is {alpha}, but must lie between 0 and the context length "
                f"{shape.context_length}: give e.g. 4"
            )
        self.gamma = -alpha / shape.context_length

    def options(self) -> dict[str, Any]:
        return {"normalizer": "clipped_softmax", "clip": (self.gamma, 1.0)}


class SoftCap(Normalizer):
    """Softmax over cap * tanh(s / cap): logits stay within +-cap.

    Args:
        shape: widths and names of the attention sublayer.
        cap: largest logit.
    """

    def __init__(self, shape: AttentionShape, cap: float = 20.0) -> None:
        super().__init__(shape)
        self.cap = positive(cap, "soft cap", 20.0)

    def options(self) -> dict[str, Any]:
        return {"softcap": self.cap}
