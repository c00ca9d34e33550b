"""What the weights of each query sum up in the attention call: one number per key and query head and channel."""

from collections.abc import Collection

import torch
from torch import Tensor

from sinks.stats.functional import projected_value_norms, relative_value_norms

ROUTE_FIELDS = {"used", "excess", "relative_value_norms", "learned_value_norm"}


class KeyNumbers:
    """The channels that fields of an `AttentionRecord` need.

    Args:
        fields: of the record, those that somebody reads.
        projected: whether the norms of projected values can be had.
        learned: how many learned keys with values precede the first token.
    """

    def __init__(self, fields: Collection[str], projected: bool, learned: int = 0) -> None:
        # With a learned value among the keys, what the first token contributes to the others is not defined.
        self._contribution = projected and learned == 0 and "value_norm_sums" in fields
        self._routes = bool(ROUTE_FIELDS & {*fields})
        self._learned = learned

    def __bool__(self) -> bool:
        return self._contribution or self._routes

    def of(self, v: Tensor, n_heads: int, out_weight: Tensor | None) -> Tensor:
        """The channels [B, n_heads, T, N].

        Args:
            v: values [B, n_kv_heads, T, head_dim], learned ones first.
            n_heads: number of query heads.
            out_weight: of the output projection [D, n_heads * head_dim].
        """
        channels = []
        if self._contribution:
            assert out_weight is not None
            channels.append(projected_value_norms(v, out_weight, n_heads))
        if self._routes:
            relative = relative_value_norms(v, self._learned)
            relative = relative.repeat_interleave(n_heads // v.shape[1], dim=1)
            channels += [relative, (relative - 1).clamp_min(0.0)]
        return torch.stack(channels, dim=-1)

    def fields(self, numbers: Tensor, sums: Tensor) -> dict[str, Tensor]:
        """Fields of the record out of `of` [B, H, T, N] and its sums by the weights of each query, learned keys apart.

        The sums are those of the renormalized row where rows do not sum to one.
        """
        learned, of_tokens = numbers[:, :, : self._learned], numbers[:, :, self._learned :]
        found: dict[str, Tensor] = {}
        if self._contribution:
            found |= {"value_norms": of_tokens[..., 0], "value_norm_sums": sums[..., 0]}
        if self._routes:
            found |= {
                "relative_value_norms": of_tokens[..., -2], "used": sums[..., -2], "excess": sums[..., -1],
            }  # fmt: skip
        if self._routes and self._learned:
            found["learned_value_norm"] = learned[..., -2].expand_as(found["used"])
        return found
