"""Gated DeltaNet, a sequence mixer without attention weights: linear attention with decay and the delta rule."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinks.errors import require
from sinks.models.attention_config import AttentionConfig
from sinks.models.counting import linear_flops
from sinks.models.delta_rule import delta_rule
from sinks.models.layers import Linear
from sinks.models.mixers import SequenceMixer
from sinks.models.norms import RMSNorm
from sinks.models.precision import wide
from sinks.models.short_convolution import ShortConvolution
from sinks.models.splits import Split
from sinks.models.taps import Tap

STATE = "recurrent state"  # kind of the delta rule's products
UNIT_EPS = 1e-6  # added to the squared length of queries and keys, as Qwen3-Next


class GatedDeltaNet(SequenceMixer):
    """Qwen3-Next's linear attention: [B, T, D] -> [B, T, D] (Yang et al. 2024, arXiv:2412.06464).

    Queries, keys and values go through short causal convolutions with SiLU; queries and keys get unit length. For each
    value head the rate is sigmoid(W_b x) and the log decay is -exp(A) * softplus(W_a x + c). The output is normed per
    head, multiplied by silu(W_z x) and projected. exp(A) starts uniform in (0.01, 16), softplus(c) log-uniform in
    (0.001, 0.1), as in the authors' code. There are no positions and no attention weights, so `position`, `qk_norm`,
    windows and biases of the architecture do not apply.

    Args:
        config: widths, names and initialization; `n_heads` is the number of query and key heads.
        head_dim: width of every head; the architecture's if not given.
        values_per_key: value heads that share a query and key head.
        kernel: tokens that a convolution sees.
        norm_eps: eps of the norm of the outputs.
    """

    def __init__(
        self,
        config: AttentionConfig,
        head_dim: int | None = None,
        values_per_key: int = 2,
        kernel: int = 4,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.config = config
        head_dim = config.head_dim if head_dim is None else head_dim
        self.head_dim = require("head_dim", head_dim, at_least=1, remedy="leave it out for the architecture's")
        self.values_per_key = require("values_per_key", values_per_key, at_least=1, remedy="give e.g. 2")
        value_heads = config.n_heads * values_per_key
        width, value_width = config.n_heads * self.head_dim, value_heads * self.head_dim
        self.log_decay_rate = nn.Parameter(torch.empty(value_heads))
        self.decay_bias = nn.Parameter(torch.empty(value_heads))
        self.reset_parameters()  # before the rest is built: a module is reset before those in it
        self.query = Linear(config.d_model, width, config.init_std)
        self.key = Linear(config.d_model, width, config.init_std)
        self.value = Linear(config.d_model, value_width, config.init_std)
        self.query_convolution = ShortConvolution(width, kernel)
        self.key_convolution = ShortConvolution(width, kernel)
        self.value_convolution = ShortConvolution(value_width, kernel)
        self.rate = Linear(config.d_model, value_heads, config.init_std)
        self.decay = Linear(config.d_model, value_heads, config.init_std)
        self.gate = Linear(config.d_model, value_width, config.init_std)
        self.norm = RMSNorm(self.head_dim, norm_eps)
        self.out = Linear(value_width, config.d_model, config.output_std)
        self.query_tap = Tap(f"{config.site}.query")
        self.key_tap = Tap(f"{config.site}.key")
        self.value_tap = Tap(f"{config.site}.value")
        self.rate_tap = Tap(f"{config.site}.rate")  # after the sigmoid
        self.decay_tap = Tap(f"{config.site}.decay")  # its logarithm
        self.gate_tap = Tap(f"{config.site}.gate")  # pre-activations
        self.out_input = Tap(f"{config.site}.out.input")

    def reset_parameters(self) -> None:
        with torch.no_grad():
            nn.init.uniform_(self.log_decay_rate, 0.01, 16.0).log_()
            step = nn.init.uniform_(self.decay_bias, math.log(0.001), math.log(0.1)).exp()
            self.decay_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, H * head_dim] -> [B, H, T, head_dim], a view; H are the heads this process holds."""
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.query_tap(_unit(self._heads(self.query_convolution(self.query(x)))))
        k = self.key_tap(_unit(self._heads(self.key_convolution(self.key(x)))))
        v = self.value_tap(self._heads(self.value_convolution(self.value(x))))
        q, k = (each.repeat_interleave(self.values_per_key, 1) for each in (q, k))
        rate = self.rate_tap(torch.sigmoid(self.rate(x)).transpose(1, 2))
        step = F.softplus(wide(self.decay(x)) + self.decay_bias)
        log_decay = self.decay_tap((-wide(self.log_decay_rate).exp() * step).transpose(1, 2))
        gate = self.gate_tap(self._heads(self.gate(x)))
        out = self.norm(delta_rule(q, k, v, log_decay, rate)) * F.silu(gate)
        return self.out(self.out_input(out.transpose(1, 2).flatten(2)))

    def flops_per_token(self, tokens: int) -> dict[str, float]:
        """The state's three products by its definition: read for a key, written, read for a query."""
        heads = self.config.n_heads * self.values_per_key
        return linear_flops(self) | {STATE: 3 * 2 * heads * self.head_dim**2}

    def shard_plan(self) -> dict[str, Split]:
        """By query and key heads, with the value heads that share them."""
        heads = ("n_heads", self.config.n_heads)
        rows = ("query", "key", "value", "query_convolution", "key_convolution", "value_convolution")
        plan = {f"{name}.weight": Split("rows", *heads) for name in (*rows, "rate", "decay", "gate")}
        plan |= {name: Split("rows", *heads) for name in ("log_decay_rate", "decay_bias")}
        return plan | {"norm.weight": Split("shared"), "out.weight": Split("columns", *heads)}


def _unit(x: Tensor) -> Tensor:
    """x / sqrt(|x|^2 + eps) over the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + UNIT_EPS)
