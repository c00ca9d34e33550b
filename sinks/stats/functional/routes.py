"""How much of its attention a head uses, and where the rest goes: the effective weight and its routes.

With a_k the weights of a query as used, never renormalized, and w_k = |v_k| / m the norms of the values over m, the
lower median of |v_j| over the tokens j >= 1 of the row and key head,

    used = sum_k a_k w_k              effective weight = gain * used              closed = (1 - gain) * used
    lost_k = a_k max(0, 1 - w_k)      excess = sum_k a_k max(0, w_k - 1)          missing = 1 - sum_k a_k
    1 = effective weight + closed + missing + lost_first + lost_own + lost_other + lost_learned - excess

gain = |gated output| / |output before the gate|, 1 without a gate. `missing` is the mass on what has no value: a
learned sink; negative where sigmoid weights sum to more than one. The rest is lost at the first token, at the query's
own (that of the first query is the first token), at a learned key with a value, and at other tokens. So an attention
sink, a learned sink and a closed gate are measured by what they have in common, the weight that is left: a definition
of this project for the view of arXiv:2601.22966, section 3, that they do the same.

Exclusive self-attention of strength s takes out of the output its part along the query's own value v_t, so that a_t v_t
leaves (1 - s) a_t v_t: w of the own key is |1 - s| |v_t| / m, 0 at s = 1. What it takes of other values along v_t does
not count, as w is of norms alone.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sinks.stats.functional.sums import narrow, nonfinite, number, spread, total, wide


def relative_value_norms(v: Tensor, learned: int = 0) -> Tensor:
    """w = |v_k| / m of values v [B, n_kv_heads, T, head_dim]: [B, n_kv_heads, T].

    Args:
        v: values.
        learned: how many of them precede the first token and belong to none; m leaves them out.

    Returns:
        NaN for a row and head with m = 0, or with one token: w is not defined.
    """
    norms = torch.linalg.vector_norm(v.float(), dim=-1)
    others = norms[..., learned + 1 :]
    if not others.shape[-1]:
        return torch.full_like(norms, torch.nan)
    median = others.median(-1, keepdim=True).values
    return norms / torch.where(median > 0, median, torch.nan)


def gate_gain(gate: Tensor, ungated: Tensor | None) -> Tensor:
    """|g * o| / |o| [B, H, T] of gates g and outputs o; 1 where o is zero.

    Args:
        gate: g [B, H, T], whose gain is |g| whatever o is, or one per channel [B, H, T, head_dim].
        ungated: o [B, H, T, head_dim]; only needed for gates per channel.
    """
    if gate.dim() == 3:
        return gate.float().abs()
    assert ungated is not None
    o = ungated.float()
    before = torch.linalg.vector_norm(o, dim=-1)
    after = torch.linalg.vector_norm(gate.float() * o, dim=-1)
    return torch.where(before == 0, 1.0, after / torch.where(before == 0, 1.0, before))


@dataclass
class RouteInputs:
    """What `routes` reads, each [B, H, T]; weights are those that are used, never renormalized.

    Args:
        used: sum_k a_k w_k.
        excess: sum_k a_k max(0, w_k - 1).
        row_mass: sum_k a_k, a learned key with a value included.
        first: weight on the first token.
        own: weight on the query's own token.
        relative: w of the tokens, as keys of other queries.
        gain: of the output gate; None without one.
        learned, learned_relative: weight on a learned key, and w of its value; None without one.
        own_relative: w of the query's own key, counted in `used` and `excess`; None where it is that of the token.
    """

    used: Tensor
    excess: Tensor
    row_mass: Tensor
    first: Tensor
    own: Tensor
    relative: Tensor
    gain: Tensor | None = None
    learned: Tensor | None = None
    learned_relative: Tensor | None = None
    own_relative: Tensor | None = None


def with_own_relative(x: RouteInputs, own_relative: Tensor) -> RouteInputs:
    """The inputs with another w of each query's own key [B, H, T]; before, it is that of the token."""
    above, own_above = ((w - 1).clamp_min(0.0) for w in (x.relative, own_relative))
    return replace(
        x,
        used=x.used - x.own * (x.relative - own_relative),
        excess=x.excess - x.own * (above - own_above),
        own_relative=own_relative,
    )


def routes(x: RouteInputs) -> dict[str, Tensor]:
    """The effective weight of each query and its routes, each [B, H, T].

    Returns:
        effective_weight, missing, lost_first, lost_own, lost_other, excess; `closed` with a gate, `lost_learned` with
        a learned key.
    """
    lacking, own_lacking = _lacking(x.relative), _lacking(x.relative if x.own_relative is None else x.own_relative)
    lost_first, lost_own = x.first * lacking[..., :1], x.own * own_lacking
    # The own key of the first query is the first token.
    lost_first = torch.cat([x.first[..., :1] * own_lacking[..., :1], lost_first[..., 1:]], dim=-1)
    lost_own = torch.cat([torch.zeros_like(lost_own[..., :1]), lost_own[..., 1:]], dim=-1)
    # sum_k a_k max(0, 1 - w_k) = sum_k a_k (1 - w_k + max(0, w_k - 1))
    lost_other = x.row_mass - x.used + x.excess - lost_first - lost_own
    found = {"missing": 1 - x.row_mass, "lost_first": lost_first, "lost_own": lost_own, "excess": x.excess}
    if x.learned is not None and x.learned_relative is not None:
        found["lost_learned"] = x.learned * _lacking(x.learned_relative)
        lost_other = lost_other - found["lost_learned"]
    if x.gain is not None:
        found["closed"] = (1 - x.gain) * x.used
    effective = x.used if x.gain is None else x.gain * x.used
    return {"effective_weight": effective, "lost_other": lost_other} | found


def _lacking(relative: Tensor) -> Tensor:
    """max(0, 1 - w), NaN where w is infinite: a zero would hide it."""
    return torch.where(torch.isinf(relative), torch.nan, (1 - relative).clamp_min(0.0))


def route_accumulators(x: RouteInputs) -> dict[str, Tensor]:
    """Accumulators of `routes` over queries i >= 1.

    Returns:
        rows: number of queries B * (T - 1).
        {name}_sum: [H] of each of `routes`, of `first_token_weight` and `own_token_weight`, of `gate_gain` with a gate.
        effective_weight_square_sum: [H].
    """
    batch, _, length = x.used.shape
    seen = routes(x) | {"first_token_weight": x.first, "own_token_weight": x.own}
    if x.gain is not None:
        seen["gate_gain"] = x.gain
    inputs = [x.used, x.excess, x.row_mass, x.first, x.own, x.relative, x.gain, x.learned, x.learned_relative]
    square = seen["effective_weight"][..., 1:].to(wide(x.used.device)).square()
    return {
        "rows": number(batch * (length - 1), x.used),
        "effective_weight_square_sum": total(square, (0, 2)),
        "nonfinite": nonfinite(*(part[..., 1:] for part in inputs if part is not None)),
    } | {f"{name}_sum": total(part[..., 1:], (0, 2)) for name, part in seen.items()}


def route_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `route_accumulators`, each [H]: means over queries i >= 1.

    Returns:
        effective_weight: of the weight that is left, about 1 where a head works; may exceed 1.
        effective_weight_cv: its standard deviation over queries over its mean; 0 is a constant, no switch.
        missing, lost_first, lost_own, lost_other, excess, closed, lost_learned: as in `routes`.
        first_token_weight, own_token_weight: the weights as used, where `first_token_mass` is a fraction of the row.
        gate_gain: of the output gate.
    """
    rows = accumulators["rows"]
    means = {
        name.removesuffix("_sum"): x / rows
        for name, x in accumulators.items()
        if name.endswith("_sum") and not name.endswith("_square_sum")
    }
    _, cv = spread(accumulators["effective_weight_square_sum"], accumulators["effective_weight_sum"], rows)
    return narrow(means | {"effective_weight_cv": cv, "nonfinite": accumulators["nonfinite"]})


def neighbor_accumulators(own: Tensor, previous: Tensor) -> dict[str, Tensor]:
    """Accumulators of the mass on each query's own token, and on the one before it [B, H, T], over queries i >= 1.

    Returns:
        rows: number of queries B * (T - 1), and [H] sums own_sum and previous_sum.
    """
    batch, _, length = own.shape
    own, previous = own[..., 1:].float(), previous[..., 1:].float()
    return {
        "rows": number(batch * (length - 1), own),
        "own_sum": total(own, (0, 2)),
        "previous_sum": total(previous, (0, 2)),
        "nonfinite": nonfinite(own, previous),
    }


def neighbor_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """own_token_mass, previous_token_mass: [H] mean over queries i >= 1 of A[i, i] and A[i, i - 1]; nonfinite."""
    rows = accumulators["rows"]
    return narrow(
        {
            "own_token_mass": accumulators["own_sum"] / rows,
            "previous_token_mass": accumulators["previous_sum"] / rows,
            "nonfinite": accumulators["nonfinite"],
        }
    )


def effective_scale(h: Tensor, output: Tensor, gain: Tensor, dimensions: Tensor) -> Tensor:
    """By what a norm and its gate scale the ordinary dimensions O of each token: |y_O| / |g_O h_O| * rms(h_O) [B, T].

    O are all dimensions but the sink dimensions. For an RMSNorm it is rms(h_O) / rms(h), times what the gate leaves.

    Args:
        h: what the norm reads [B, T, D].
        output: y, after the gate [B, T, D].
        gain: g, what a dimension is multiplied by besides 1 / rms [D].
        dimensions: sink dimensions [K].

    Returns:
        NaN where g_O h_O is zero.
    """
    ordinary = torch.ones_like(gain, dtype=torch.bool).index_fill(0, dimensions, False)
    h, y, count = h.float() * ordinary, output.float() * ordinary, ordinary.sum()
    scaled = torch.linalg.vector_norm(gain.float() * h, dim=-1)
    left = torch.linalg.vector_norm(y, dim=-1) / torch.where(scaled == 0, torch.nan, scaled)
    return left * torch.linalg.vector_norm(h, dim=-1) / count.sqrt()


def scale_accumulators(h: Tensor, output: Tensor, gain: Tensor, dimensions: Tensor) -> dict[str, Tensor]:
    """Accumulators of `effective_scale` over tokens but token 0: tokens, scale_sum, scale_square_sum."""
    scale = effective_scale(h[:, 1:], output[:, 1:], gain, dimensions)
    return {
        "tokens": number(scale.numel(), h),
        "scale_sum": total(scale),
        "scale_square_sum": total(scale.to(wide(h.device)).square()),
        "nonfinite": nonfinite(h[:, 1:], output[:, 1:]),
    }


def scale_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """effective_scale: mean over tokens; effective_scale_cv: deviation over mean; nonfinite."""
    mean, cv = spread(accumulators["scale_square_sum"], accumulators["scale_sum"], accumulators["tokens"])
    return narrow({"effective_scale": mean, "effective_scale_cv": cv, "nonfinite": accumulators["nonfinite"]})
