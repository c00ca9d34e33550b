"""How attention scores become weights. Each normalizer is one call of `sink_kernels.attention`."""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from sink_kernels import Statistic, attention, key_mass
from torch import Tensor, nn

from sinks.errors import UserError, require
from sinks.models.attention_config import AttentionConfig
from sinks.models.splits import Split

# Keyword arguments of `sink_kernels.attention` that a normalizer may give.
OPTIONS = ("normalizer", "sink", "bias", "clip", "scale", "window", "softcap", "backend")


class Normalizer(nn.Module):
    """Base: causal softmax attention, whose options subclasses change.

    A subclass overrides `options` only. A normalizer that `sink_kernels.attention` does not name is a function of
    causal scores [B, H, T, T] (-inf where attention is forbidden) to weights [B, H, T, T]:

        def options(self):
            return {"normalizer": my_function}

    Then forward pass, statistics and maps all use the same weights.

    Args:
        config: widths and names of the attention sublayer.

    Raises:
        UserError: if a subclass overrides `attend`.
    """

    # Number of learned sinks that count in the entropy of a row, and how many have values that count in the output.
    learned_sinks = 0
    learned_values = 0

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        own = type(self)._attend.__module__ == __name__
        if not own or type(self).attend is not Normalizer.attend:
            raise UserError(
                f"{type(self).__name__} overrides Normalizer.attend, which statistics and maps would ignore: write "
                "options() with a function of scores as 'normalizer', or a SequenceMixer of its own"
            )

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `sink_kernels.attention`."""
        return {}

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `sink_kernels.attention`, with the scale and the window of the layer."""
        return {"scale": self.config.scale, "window": self.config.window} | self.options()

    @property
    def row_normalized(self) -> bool:
        """Whether a row's weights, learned sinks included, sum to one; otherwise masses are fractions of the total."""
        return self.options().get("normalizer", "softmax") in ("softmax", "off_by_one", "learnable_sink")

    @property
    def separable(self) -> bool:
        """Whether each weight is a function of its own score, divided by exp(lse) of its row."""
        return self.options().get("normalizer", "softmax") in ("softmax", "off_by_one", "learnable_sink", "sigmoid")

    @final
    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate: Tensor | None,
        stats: Sequence[Statistic] = (),
        numbers: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Attention with this normalizer.

        Args:
            q: queries [B, H, T, head_dim].
            k: keys [B, n_kv_heads, T, head_dim].
            v: values [B, n_kv_heads, T, head_dim].
            gate: pre-activations [B, H, T] or [B, H, T, head_dim] of the output gate, None for none.
            stats: names of statistics; `first_key_mass` is that of the first token.
            numbers: N per key and query head [B, H, learned_values + T, N], for the statistic `weighted_sum`.

        Returns:
            The output [B, H, T, head_dim], and the named statistics [B, H, T] in float32. The masses of rows that are
            not normalized are fractions of the row's total, a proxy (arXiv:2410.10781, section 5).
        """
        return self._attend(q, k, v, gate, stats, numbers)

    def values(self, v: Tensor) -> Tensor:
        """All values that a query may use [B, n_kv_heads, learned_values + T, head_dim], learned ones first."""
        return v

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, stats: Sequence[Statistic], numbers: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not stats:
            return attention(q, k, v, gate=gate, **self.arguments()), {}
        return attention(q, k, v, gate=gate, stats=stats, numbers=numbers, **self.arguments())

    def first_token_within(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of each query on the first of the given tokens, and lse, both [B, H, T], of attention among these."""
        _, rows = self.attend(q, k, v, None, ("first_key_mass", "lse"))
        return rows["first_key_mass"], rows["lse"]

    def key_mass(self, q: Tensor, k: Tensor, lse: Tensor) -> Tensor | None:
        """Mass each key receives [B, H, T] float32, from `lse` of the same call; None where undefined."""
        return key_mass(q, k, lse, **{name: value for name, value in self.arguments().items() if name != "sink"})

    def flops_per_token(self, tokens: int) -> float:
        """Operations of the two products of attention per token, counted causally: T / 2 keys per query.

        With a window of W < T keys they are W (1 - W / 2T), which at W = T is T / 2.
        """
        window = min(self.config.window or tokens, tokens)
        return 2 * 2 * self.config.n_heads * self.config.head_dim * (window - window * window / (2 * tokens))

    def shard_plan(self) -> dict[str, Split]:
        """How tensor parallelism splits the parameters this module owns, by name."""
        return {}


def check_options(normalizer: Normalizer) -> Normalizer:
    """The normalizer, whose `options` are keyword arguments that a normalizer may give.

    Raises:
        UserError: naming what else they are.
    """
    options, name = normalizer.options(), f"{type(normalizer).__name__}.options()"
    if not isinstance(options, dict):
        raise UserError(f"{name} is {options!r}, but must be a dict of {', '.join(OPTIONS)}: return one, e.g. {{}}")
    for option in options:
        if option not in OPTIONS:
            raise UserError(f"{name} has {option!r}, but must be of {', '.join(OPTIONS)}: leave it out")
    return normalizer


class Softmax(Normalizer):
    """The ordinary softmax."""


class OffByOne(Normalizer):
    """exp(s_j) / (1 + sum_i exp(s_i)): a sink logit frozen at zero."""

    learned_sinks = 1

    def options(self) -> dict[str, Any]:
        return {"normalizer": "off_by_one"}


class LearnableSink(Normalizer):
    """exp(s_j) / (exp(sink_h) + sum_i exp(s_i)) with a learned logit per head, as in gpt-oss.

    The logit is `sink_scale * parameter`: at scale 1 and small budgets the model does not use the logit, because
    growing the first token's key is faster.

    Args:
        config: widths and names of the attention sublayer.
        sink_scale: factor between the parameter (float32) and the logit.
        initial: logit at the start; below a row's log-sum-exp, e.g. -5, it changes a trained model little.
    """

    learned_sinks = 1
    added = ("sink",)

    def __init__(self, config: AttentionConfig, sink_scale: float = 1.0, initial: float = 0.0) -> None:
        super().__init__(config)
        self.sink_scale = require("sink_scale", sink_scale, above=0, remedy="give e.g. 10")
        self.initial = require("initial sink logit", initial, remedy="give e.g. -5")
        self.sink = nn.Parameter(torch.empty(config.n_heads, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.sink, self.initial / self.sink_scale)

    def options(self) -> dict[str, Any]:
        return {
            "normalizer": "learnable_sink",
            "sink": self.sink_scale * self.sink.to(torch.promote_types(self.sink.dtype, torch.float32)),
        }

    def shard_plan(self) -> dict[str, Split]:
        return {"sink": Split("rows", "n_heads", self.config.n_heads)}


class KeyValueBias(Normalizer):
    """A learned key and value per head precede the first token (Sun et al. 2024, arXiv:2402.17762, section 5).

    Args:
        config: widths and names of the attention sublayer.
        learn_value: whether the value is learned too; without it the value is zero, a pure sink.
    """

    learned_sinks = 1
    learned_values = 1
    no_decay = ("key", "value")

    def __init__(self, config: AttentionConfig, learn_value: bool = True) -> None:
        super().__init__(config)
        if config.window is not None:
            raise UserError(
                f"the learned key precedes the first token, which a window of {config.window} keys hides: "
                "leave the window out, or choose another normalizer"
            )
        size = (config.n_kv_heads, config.head_dim)
        self.key = nn.Parameter(torch.empty(size))
        self.value = nn.Parameter(torch.empty(size), requires_grad=learn_value)
        self.learn_value = learn_value
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.key, std=self.config.init_std)
        nn.init.normal_(self.value, std=self.config.init_std if self.learn_value else 0.0)

    def _prepend(
        self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Shift by one: a dummy query keeps the causal mask square, so that the fused path needs no change."""
        key = self.key.to(k.dtype)[None, :, None].expand(len(q), -1, 1, -1)
        q = torch.cat([torch.zeros_like(q[:, :, :1]), q], dim=2)
        gate = None if gate is None else torch.cat([torch.zeros_like(gate[:, :, :1]), gate], dim=2)
        return q, torch.cat([key, k], dim=2), self.values(v), gate

    def values(self, v: Tensor) -> Tensor:
        value = self.value.to(v.dtype)[None, :, None].expand(len(v), -1, 1, -1)
        return torch.cat([value, v], dim=2)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, stats: Sequence[Statistic], numbers: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v, gate = self._prepend(q, k, v, gate)
        if not stats:
            return attention(q, k, v, gate=gate, scale=self.config.scale)[:, :, 1:], {}
        wanted = tuple({*stats, "lse", "first_key_mass"})
        out, found = attention(q, k, v, gate=gate, scale=self.config.scale, stats=wanted, numbers=numbers)
        with torch.no_grad():
            # The first key is the learned one, the second the first token.
            first_token = k[:, :, 1].repeat_interleave(self.config.n_heads // self.config.n_kv_heads, dim=1)
            divisor = math.sqrt(self.config.head_dim) if self.config.scale is None else 1 / self.config.scale
            score = torch.einsum("bhtd,bhd->bht", q.float(), first_token.float()) / divisor
            found["sink_mass"] = found["first_key_mass"]
            found["first_key_mass"] = torch.exp(score - found["lse"])
            if "previous_key_mass" in found:
                found["previous_key_mass"][:, :, 1] = 0.0  # no token precedes the first
        names = stats if numbers is None else (*stats, "weighted_sum")
        return out[:, :, 1:], {name: found[name][:, :, 1:] for name in names}

    def key_mass(self, q: Tensor, k: Tensor, lse: Tensor) -> None:
        """Not defined: the learned key is one of the keys."""

    def flops_per_token(self, tokens: int) -> float:
        return super().flops_per_token(tokens + 1)

    def shard_plan(self) -> dict[str, Split]:
        return {name: Split("rows", "n_kv_heads", self.config.n_kv_heads) for name in ("key", "value")}


class Sigmoid(Normalizer):
    """sigmoid(s_j + bias): every key weighted independently, no normalization over keys (arXiv:2409.04431).

    The bias is -log(context_length) of the configured context, so that a prefix alone gives the same outputs.
    """

    def options(self) -> dict[str, Any]:
        return {"normalizer": "sigmoid", "bias": -math.log(self.config.context_length)}


class ClippedSoftmax(Normalizer):
    """clip((1 - gamma) * softmax + gamma, 0, 1), gamma = -alpha / context_length (arXiv:2306.12929).

    Args:
        config: widths and names of the attention sublayer.
        alpha: how much is clipped; 2 ... 4 in the paper for short contexts.
    """

    def __init__(self, config: AttentionConfig, alpha: float = 4.0) -> None:
        super().__init__(config)
        limit = config.context_length
        require("clipped softmax alpha", alpha, above=0, below=limit, remedy="give e.g. 4, below the context length")
        self.gamma = -alpha / config.context_length

    def options(self) -> dict[str, Any]:
        return {"normalizer": "clipped_softmax", "clip": (self.gamma, 1.0)}


SOFTPICK_EPS = 1e-6


def softpick(scores: Tensor) -> Tensor:
    """relu(exp(s_j) - 1) / (sum_i |exp(s_i) - 1| + eps), the sum over keys that a query sees.

    Args:
        scores: s [..., T], -inf where attention is forbidden.
    """
    top = scores.detach().amax(-1, keepdim=True).clamp_min(0.0)
    # |exp(s) - 1| = exp(max(s, 0)) (1 - exp(-|s|)) does not cancel near 0; exp(-top) keeps it finite.
    sizes = (scores.relu() - top).exp() * -torch.expm1(-scores.abs())
    total = sizes.masked_fill(scores == -torch.inf, 0.0).sum(-1, keepdim=True)
    return sizes.masked_fill(scores <= 0, 0.0) / (total + SOFTPICK_EPS * (-top).exp())


class Softpick(Normalizer):
    """Rectified softmax, whose rows sum to at most one and may be empty (arXiv:2504.20966).

    relu(exp(s_j) - 1) / (sum_i |exp(s_i) - 1| + 1e-6). On the reference path, in T x T memory.
    """

    def options(self) -> dict[str, Any]:
        return {"normalizer": softpick}


class SoftCap(Normalizer):
    """Softmax over cap * tanh(s / cap): logits stay within +-cap.

    Args:
        config: widths and names of the attention sublayer.
        cap: largest logit.
    """

    def __init__(self, config: AttentionConfig, cap: float = 20.0) -> None:
        super().__init__(config)
        self.cap = require("soft cap", cap, above=0, remedy="give e.g. 20")

    def options(self) -> dict[str, Any]:
        return {"softcap": self.cap}
