"""The attention sublayer: projections, positions, a normalizer, an exclusion, an output gate."""

from collections.abc import Callable

import torch
from sink_kernels import Statistic
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.models.attention_config import AttentionConfig
from sinks.models.attention_gates import AttentionGate, gating_of
from sinks.models.counting import SCORES, linear_flops
from sinks.models.exclusion import Exclusion, NoExclusion
from sinks.models.key_gates import KeyGate, NoKeyGate
from sinks.models.layers import Linear
from sinks.models.mixers import SequenceMixer
from sinks.models.normalizers import Normalizer, check_options
from sinks.models.norms import RMSNorm
from sinks.models.splits import Split
from sinks.models.taps import Report, Tap


class Attention(SequenceMixer):
    """Grouped-query attention: [B, T, D] -> [B, T, D].

    With a listener, it reports `q`, `k`, `v` (positions applied), the statistics that `row_statistics` names, the
    values of its `gate`, if it has one, the heads' outputs [B, H, T, head_dim] `before` it and after it, `output`, and
    the `numbers` [B, H, T, N] that `key_numbers` makes of q and all values, learned ones first, with their weighted
    sums. Where the attention call applies the gate, `before` is its result too.

    Args:
        config: widths, names and initialization.
        normalizer: how scores become weights.
        gate: what scales each head's output.
        exclusion: what is taken out of each head's output before the gate.
        key_gate: what scales the keys, before positions are applied.

    Raises:
        UserError: if the key and value heads do not divide the query heads.
    """

    def __init__(
        self,
        config: AttentionConfig,
        normalizer: Callable[[AttentionConfig], Normalizer],
        gate: Callable[[AttentionConfig], AttentionGate],
        exclusion: Callable[[AttentionConfig], Exclusion] = NoExclusion,
        key_gate: Callable[[AttentionConfig], KeyGate] = NoKeyGate,
    ) -> None:
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise UserError(
                f"n_kv_heads is {config.n_kv_heads}, but must divide n_heads = {config.n_heads}: give a divisor of it"
            )
        self.config = config
        width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.query = Linear(config.d_model, width, config.init_std, config.bias)
        self.key = Linear(config.d_model, kv_width, config.init_std, config.bias)
        self.value = Linear(config.d_model, kv_width, config.init_std, config.bias)
        self.query_norm = RMSNorm(config.head_dim, config.qk_norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(config.head_dim, config.qk_norm_eps) if config.qk_norm else nn.Identity()
        self.key_gate = key_gate(config)
        self.rotary = config.rope.rotary(config.head_dim, config.context_length) if config.rope else nn.Identity()
        self.normalizer = check_options(normalizer(config))
        self.exclusion = exclusion(config)
        self.gate = gate(config)
        self.gating = gating_of(self.gate, between=not isinstance(self.exclusion, NoExclusion))
        self.out = Linear(width, config.d_model, config.output_std, config.out_bias)
        self.query_tap = Tap(f"{config.site}.query")
        self.key_tap = Tap(f"{config.site}.key")
        self.value_tap = Tap(f"{config.site}.value")
        self.gate_tap = Tap(f"{config.site}.gate")  # before the sigmoid
        self.report = Report()
        self.row_statistics: tuple[Statistic, ...] = ()
        self.key_numbers: Callable[[Tensor, Tensor], Tensor] | None = None
        self.out_input = Tap(f"{config.site}.out.input")

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, H * head_dim] -> [B, H, T, head_dim], a view; H are the heads this process holds."""
        return x.view(*x.shape[:2], -1, self.config.head_dim).transpose(1, 2)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> q [B, H, T, head_dim], k and v [B, n_kv_heads, T, head_dim], positions applied."""
        q = self.rotary(self.query_norm(self._heads(self.query(x))))
        k = self.rotary(self.key_gate(self.key_norm(self._heads(self.key(x))), x))
        v = self._heads(self.value(x))
        return self.query_tap(q), self.key_tap(k), self.value_tap(v)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x)
        gate = self.gate(x)
        if gate is not None:
            gate = self.gate_tap(gate)  # [B, 1, T] of one for all heads
            gate = gate.expand(*q.shape[:3], *gate.shape[3:])
        within = self.gating.within(gate)
        if self.report.listener is None:
            out = self.exclusion(self.normalizer.attend(q, k, v, within)[0], v)
            out = self.gating.after(self.gate, out, gate)
        else:
            with torch.no_grad():
                numbers = None if self.key_numbers is None else self.key_numbers(q, self.normalizer.values(v))
            before, rows = self.normalizer.attend(q, k, v, within, self.row_statistics, numbers)
            before = self.exclusion(before, v)
            out = self.gating.after(self.gate, before, gate)
            seen = {"q": q, "k": k, "v": v, "before": before, "output": out} | rows
            self._report(seen if numbers is None else seen | {"numbers": numbers}, gate)
        return self.out(self.out_input(out.transpose(1, 2).flatten(2)))

    @torch.no_grad()
    def _report(self, seen: dict[str, Tensor], gate: Tensor | None) -> None:
        """Without gradients, or a checkpointed block would save other tensors than its recomputation."""
        self.report(**seen if gate is None else seen | {"gate": self.gate.values(gate)})

    @property
    def out_weight(self) -> Tensor | None:
        """Weight by which each key's value reaches the stream [D, H * head_dim].

        None where there is none for all queries: the projection is wrapped, e.g. by a quantizer, or a query's own value
        is excluded.
        """
        return self.out.weight if type(self.out) is Linear and isinstance(self.exclusion, NoExclusion) else None

    def weights(self, x: Tensor) -> Tensor:
        """Attention weights [B, H, T, T] of the given normed input, for inspection."""
        return self.weights_of(*self.project(x))

    def weights_of(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention weights [B, H, T, T] of queries and keys, by attending to one-hot values of v's shape."""
        length, head_dim = v.shape[-2:]
        one_hot = torch.eye(length, dtype=q.dtype, device=q.device)
        learned, _ = self.normalizer.attend(q, k, torch.zeros_like(v), None)  # what a learned value adds
        columns = []
        for first in range(0, length, head_dim):
            block = one_hot[:, first : first + head_dim]
            values = nn.functional.pad(block, (0, head_dim - block.shape[1])).expand_as(v)
            columns.append((self.normalizer.attend(q, k, values, None)[0] - learned)[..., : block.shape[1]])
        return torch.cat(columns, dim=-1)

    def flops_per_token(self, tokens: int) -> dict[str, float]:
        return linear_flops(self) | {SCORES: self.normalizer.flops_per_token(tokens)}

    def shard_plan(self) -> dict[str, Split]:
        heads, kv_heads = ("n_heads", self.config.n_heads), ("n_kv_heads", self.config.n_kv_heads)
        plan = {f"query.{kind}": Split("rows", *heads) for kind in ("weight", "bias")}
        plan |= {f"{name}.{kind}": Split("rows", *kv_heads) for name in ("key", "value") for kind in ("weight", "bias")}
        plan |= {f"{name}.weight": Split("shared") for name in ("query_norm", "key_norm")}
        plan |= {"out.weight": Split("columns", *heads), "out.bias": Split("added")}
        for at in ("key_gate", "normalizer", "exclusion", "gate"):
            plan |= {f"{at}.{name}": split for name, split in getattr(self, at).shard_plan().items()}
        return plan
