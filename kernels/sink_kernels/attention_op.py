"""The Triton attention as torch custom ops: opaque to torch.compile, with shapes and gradients declared.

Triton is imported only when an op runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sink_kernels.launching import triton_unsupported
from sink_kernels.options import Options
from sink_kernels.row_blocks import BACK, mass_back

MAX_HEAD_DIM = 256


def unsupported(q: Tensor, options: Options) -> str | None:
    """Why this backend does not support the call, and what does; None if it does."""
    reason = triton_unsupported("q", q)
    if reason is not None:
        return reason
    if callable(options.normalizer) or options.normalizer == "clipped_softmax":
        return f"backend 'triton' cannot normalize by {options.normalizer_name}: use backend='reference'"
    if q.shape[3] > MAX_HEAD_DIM:
        return (
            f"backend 'triton' supports head dimensions up to {MAX_HEAD_DIM} (fastest: 64, 128), q has {q.shape[3]}: "
            "use more heads or backend='reference'"
        )
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, gate: Tensor | None, options: Options,
    stats: Sequence[str], numbers: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Attention of q [B, H, T, D] over k, v [B, Hkv, T, D]: out [B, H, T, D] in q's dtype, statistics [B, H, T]."""
    # The total of a sigmoid row is a statistic; that of a softmax row is computed anyway.
    row_stats = "entropy" in stats or "max_logit" in stats or (options.normalizer == "sigmoid" and len(stats) > 0)
    out, lse, first_key_mass, entropy, max_logit = attention_forward(
        q, k, v, sink, gate, *flat(options), "first_key_mass" in stats, row_stats
    )
    taken = {"lse": lse, "first_key_mass": first_key_mass, "entropy": entropy, "max_logit": max_logit}
    if "sink_mass" in stats or "row_mass" in stats:
        with torch.no_grad():
            if options.has_sink:
                logit = 0.0 if sink is None else sink.float().view(1, -1, 1)
                taken["sink_mass"] = (logit - lse).exp()
            else:
                taken["sink_mass"] = torch.zeros_like(lse)
    with torch.no_grad():
        if "row_mass" in stats:
            taken["row_mass"] = lse.exp() if options.renormalized else 1 - taken["sink_mass"]
        for name in BACK.keys() & {*stats}:
            taken[name] = mass_back(q, k, lse, BACK[name], options)
        if "key_mass" in stats:
            taken["key_mass"] = key_mass(q, k, lse, *flat(options))
        found = {name: taken[name] for name in stats}
        return out, found if numbers is None else found | {"weighted_sum": _weighted_sum(q, k, sink, options, numbers)}


def _weighted_sum(q: Tensor, k: Tensor, sink: Tensor | None, options: Options, numbers: Tensor) -> Tensor:
    """sum_j P_ij x_j [B, H, T, N] of numbers x, by one more forward pass in float32 that attends to them.

    The g-th query head of a key head reads channels g N ... g N + N - 1 of the values. The other channels are 1 and
    give the row's total mass, so one more is needed; queries and keys are padded where they have fewer.
    """
    group, count = q.shape[1] // k.shape[1], numbers.shape[3]
    used = group * count
    if count > 1 and used >= MAX_HEAD_DIM:
        return torch.cat([_weighted_sum(q, k, sink, options, x) for x in numbers.split(1, dim=3)], dim=3)
    width = max(q.shape[3], used + 1)
    q, k = (F.pad(x.float(), (0, width - x.shape[3])) for x in (q, k))
    by_group = numbers.float().unflatten(1, (-1, group)).transpose(2, 3)
    values = F.pad(by_group.flatten(3), (0, width - used), value=1.0)
    out, *_ = attention_forward(q, k, values, sink, None, *flat(options), False, False)
    grouped = out.unflatten(1, (-1, group))
    sums = grouped[..., :used].unflatten(4, (group, count)).diagonal(dim1=2, dim2=4).movedim(4, 2)
    if options.renormalized:
        sums = sums / grouped[..., used:][..., :1].clamp_min(torch.finfo(torch.float32).tiny)
    return sums.flatten(1, 2)


@torch.library.custom_op("sink_kernels::attention_forward", mutates_args=())
def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, gate: Tensor | None,
    normalizer: str, scale: float, window: int, softcap: float, bias: float, first_key: bool, row_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(out, lse, first_key_mass, entropy, max_logit); 0 means no window or no softcap."""
    from sink_kernels import triton_attention

    options = _options(normalizer, scale, window, softcap, bias)
    return triton_attention.forward(q, k, v, sink, gate, options, first_key, row_stats)


@torch.library.custom_op("sink_kernels::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, gate: Tensor | None, out: Tensor, lse: Tensor,
    normalizer: str, scale: float, window: int, softcap: float, bias: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv, dsink, dgate); empty without a sink or gate."""
    from sink_kernels import triton_attention

    options = _options(normalizer, scale, window, softcap, bias)
    return triton_attention.backward(grad, q, k, v, sink, gate, out, lse, options)


@torch.library.custom_op("sink_kernels::key_mass", mutates_args=())
def key_mass(
    q: Tensor, k: Tensor, lse: Tensor, normalizer: str, scale: float, window: int, softcap: float, bias: float
) -> Tensor:
    """The mass each key receives, [B, H, T] float32."""
    from sink_kernels import triton_attention

    return triton_attention.key_mass(q, k, lse, _options(normalizer, scale, window, softcap, bias))


@attention_forward.register_fake
def _(q: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    first_key, row_stats = others[-2:]
    batch, heads, tokens, head_dim = q.shape

    def rows(wanted: bool) -> Tensor:
        return q.new_empty((batch, heads, tokens) if wanted else 0, dtype=torch.float32)

    out = q.new_empty((batch, tokens, heads, head_dim)).transpose(1, 2)
    return out, rows(True), rows(first_key), rows(row_stats), rows(row_stats)


@attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, gate: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dsink = q.new_empty(0) if sink is None else torch.empty_like(sink)
    dgate = q.new_empty(0) if gate is None else torch.empty_like(gate)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), dsink, dgate


@key_mass.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, sink, gate, *flat = inputs
    out, lse = output[:2]
    ctx.save_for_backward(q, k, v, sink, gate, out, lse)
    ctx.flat = flat[:5]
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, sink, gate, out, lse = ctx.saved_tensors
    dq, dk, dv, dsink, dgate = attention_backward(grad, q, k, v, sink, gate, out, lse, *ctx.flat)
    return dq, dk, dv, None if sink is None else dsink, None if gate is None else dgate, *[None] * 7


attention_forward.register_autograd(_backward, setup_context=_setup_context)


def flat(options: Options) -> tuple[str, float, int, float, float]:
    """The options as supported by a custom op's schema; functions are rejected earlier."""
    assert isinstance(options.normalizer, str)
    return options.normalizer, options.scale, options.window or 0, options.softcap or 0.0, options.bias or 0.0


def _options(normalizer: str, scale: float, window: int, softcap: float, bias: float) -> Options:
    return Options(normalizer, scale, window or None, softcap or None, bias if normalizer == "sigmoid" else None)
