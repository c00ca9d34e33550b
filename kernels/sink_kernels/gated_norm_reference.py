"""The definition of GatedNorm in plain torch (Qiu et al., arXiv 2601.22966, section 4), with PreAffine in front.

    u = pre_affine * x                          PreAffine; u = x without it
    n = weight * u / sqrt(mean(u^2) + eps)      RMSNorm
    h = W_down n,  z = silu(h)                  rank r
    y = n * sigmoid(W_up z + offset)

Half precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_norm(
    x: Tensor, weight: Tensor, w_down: Tensor, w_up: Tensor, pre_affine: Tensor | None,
    eps: float, offset: float, stats: Sequence[str],
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """y like x [..., D] and the named statistics [D]; arguments as in `sink_kernels.gated_norm`."""
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(x.dtype, torch.float32)
        u = x.to(wide) if pre_affine is None else x.to(wide) * pre_affine.to(wide)
        n = u * torch.rsqrt(u.square().mean(-1, keepdim=True) + eps) * weight.to(wide)
        z = F.silu(n @ w_down.to(wide).T)
        y = n * torch.sigmoid(z @ w_up.to(wide).T + offset)
        return y.to(x.dtype), statistics(y.detach(), stats)


def statistics(y: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Per channel over all rows of y [..., D]: `absmax`, `fourth_moment` (mean of y^4), float32."""
    rows = y.flatten(0, -2)
    taken = {}
    for name in names:
        taken[name] = (rows.abs().amax(0) if name == "absmax" else rows.square().square().mean(0)).float()
    return taken
