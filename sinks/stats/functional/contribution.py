"""What the first token adds to the output, besides its mass: values, and values projected by W_O.

For the contribution share, weights meet the norms n_j = ||W_O^h v_j|| in the attention call, no T x T matrix:

    norms = projected_value_norms(v, out_weight, n_heads)                      [B, H, T]
    out, rows = sink_kernels.attention(q, k, v, stats=("first_key_mass",), numbers=norms[..., None], **options)
    accumulators = contribution_accumulators(rows["first_key_mass"], norms, rows["weighted_sum"][..., 0])
"""

import torch
from torch import Tensor

from sinks.stats.functional.sums import narrow, nonfinite, number, quotient, total


def value_accumulators(v: Tensor) -> dict[str, Tensor]:
    """Accumulators of value vectors v [B, n_kv_heads, T, head_dim].

    Returns:
        samples: B, or 0 if T is 1.
        ratio_sum: [n_kv_heads] sum over samples of ||v_0|| / median_{j >= 1} ||v_j|| (arXiv:2410.10781).
    """
    norms = torch.linalg.vector_norm(v.float(), dim=-1)
    accumulators = {
        "samples": number(0, v),
        "ratio_sum": total(torch.zeros_like(norms), (0, 2)),
        "nonfinite": nonfinite(v),
    }
    if norms.shape[-1] < 2:
        return accumulators
    ratio = norms[..., 0] / norms[..., 1:].median(dim=-1).values
    ratio = torch.where(torch.isfinite(norms).all(-1), ratio, torch.nan)  # a median would hide an infinite value
    return accumulators | {"samples": number(len(v), v), "ratio_sum": total(ratio, 0)}


def value_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """value_norm_ratio: [n_kv_heads] mean of ||v_0|| / median ||v_j||, >= 0; nonfinite. From `value_accumulators`."""
    ratio = accumulators["ratio_sum"] / accumulators["samples"]
    return narrow({"value_norm_ratio": ratio, "nonfinite": accumulators["nonfinite"]})


def projected_value_norms(v: Tensor, out_weight: Tensor, n_heads: int) -> Tensor:
    """||W_O^h v_j|| of values v [B, n_kv_heads, T, head_dim] for each query head h [B, n_heads, T].

    From the Gram matrix of W_O^h, so without the [B, H, T, D] projection; in float32 norms below about 3e-4 of
    ||W_O^h|| ||v_j|| are rounding.
    """
    with torch.autocast(v.device.type, enabled=False):
        per_head = out_weight.float().unflatten(1, (n_heads, -1)).transpose(0, 1)
        values = v.float().repeat_interleave(n_heads // v.shape[1], dim=1)
        square = ((values @ (per_head.transpose(1, 2) @ per_head)) * values).sum(-1)
    return square.clamp_min(0.0).sqrt()


def contribution_accumulators(first_token_mass: Tensor, norms: Tensor, totals: Tensor) -> dict[str, Tensor]:
    """Accumulators of the first token's contribution, over queries i >= 1 of [B, H, T] tensors.

    Args:
        first_token_mass: A_i0.
        norms: n_j = ||W_O^h v_j||.
        totals: sum_j A_ij n_j with the same A as `first_token_mass`: renormalized where that is.

    Returns:
        rows: number of queries B * (T - 1).
        defined_rows: [H] those with totals other than 0; a row of zeros (clipped softmax) contributes nothing at all.
        contribution_sum: [H] sum over defined rows of c_i = A_i0 n_0 / totals_i.
        mass_sum: [H] sum over the same rows of A_i0.
        norm_ratio_sum: [H] sum over samples of n_0 over the mean of the others, and `samples` (0 if T is 1).
    """
    mass, norms, totals = first_token_mass.float(), norms.float(), totals.float()
    batch, heads, length = mass.shape
    rows_mass, rows_total = mass[..., 1:], totals[..., 1:]
    empty = rows_total == 0
    share = quotient(rows_mass * norms[..., :1], torch.where(empty, 1.0, rows_total)).masked_fill(empty, 0.0)
    if length > 1:
        norm_ratio = quotient(norms[..., 0], norms[..., 1:].mean(-1))
    else:
        norm_ratio = norms.new_zeros(0, heads)
    return {
        "rows": number(batch * (length - 1), mass),
        "samples": number(len(norm_ratio), mass),
        "defined_rows": total((~empty).float(), (0, 2)),
        "contribution_sum": total(share, (0, 2)),
        "mass_sum": total(torch.where(empty, 0.0, rows_mass), (0, 2)),
        "norm_ratio_sum": total(norm_ratio, 0),
        "nonfinite": nonfinite(mass, norms, totals),
    }


def contribution_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `contribution_accumulators`, each [H].

    Returns:
        contribution_share: mean of A_i0 ||W_O v_0|| / sum_j A_ij ||W_O v_j||, in [0, 1].
        mass_share: mean of A_i0 over the same rows.
        contribution_over_mass: the former over the latter; far below 1, the sink takes mass but adds nothing.
        projected_norm_ratio: mean of ||W_O v_0|| over the mean of the others.
        undefined_rows: fraction of rows without any mass or value.
    """
    defined = accumulators["defined_rows"]
    contribution, mass = accumulators["contribution_sum"] / defined, accumulators["mass_sum"] / defined
    return narrow(
        {
            "contribution_share": contribution,
            "mass_share": mass,
            "contribution_over_mass": quotient(contribution, mass),
            "projected_norm_ratio": accumulators["norm_ratio_sum"] / accumulators["samples"],
            "undefined_rows": 1 - defined / accumulators["rows"],
            "nonfinite": accumulators["nonfinite"],
        }
    )
