"""What is cut of attention to some keys: their values, their share of the mass, or what varies of either.

With weights P, values v, `taken` a part of P (the mass on the sinks, or as much on other keys), w_t = sum_j taken_tj,
and o_l, m_l what learned sinks add and their mass; output_t = sum_j P_tj v_j + o_l. Means are over calibration queries.

    value                   sum_j (P - taken)_tj v_j + o_l
    constant-contribution   the same + mean(w) * sum_{s <= t} sum_j taken_sj v_j / sum_{s <= t} w_s
    rescaling               (sum_j (P - taken)_tj v_j + o_l) / (1 - w_t) + sum_j taken_tj v_j
    constant-rescaling      (sum_j (P - taken)_tj v_j + o_l) * mean(1 - w) / (1 - w_t) + sum_j taken_tj v_j
    masked                  (sum_j (P - taken)_tj v_j + o_l) / (1 - w_t)
    learned-constant        sum_j P_tj v_j * mean(1 - m_l) / (1 - m_l) + o_l mean(m_l) / m_l

With a single sink, `constant-contribution` is mean(w) times its value. Where rows are not normalized, as in sigmoid
attention, keys do not share mass: 1 - w_t counts as 1, and there is no rescaling to remove or to make constant.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sinks.probes.places import Attended


@dataclass(frozen=True)
class Removal:
    """One edit of one attention layer.

    Args:
        attended: the attention.
        taken: part of its weights [B, H, T, T].
        mass: mean mass that is taken in each head, over calibration queries [H].
        learned_mass: mean m_l of each head over the same [H].
    """

    attended: Attended
    taken: Tensor
    mass: Tensor
    learned_mass: Tensor

    @cached_property
    def kept_weights(self) -> Tensor:
        """Weights without what is taken [B, H, T, T]."""
        return self.attended.weights - self.taken

    @cached_property
    def left(self) -> Tensor:
        """1 - w_t [B, H, T, 1], as a sum, which is exact where nearly everything is taken."""
        if not self.attended.row_normalized:
            return torch.ones_like(self.taken[..., :1])
        left = self.kept_weights.sum(-1) + self.attended.learned_mass
        return left.clamp_min(torch.finfo(left.dtype).tiny).unsqueeze(-1)

    @cached_property
    def kept(self) -> Tensor:
        """What the other keys and learned sinks add [B, H, T, d]."""
        return self.kept_weights @ self.attended.values + self.attended.learned_output

    @cached_property
    def contribution(self) -> Tensor:
        """What is taken adds [B, H, T, d]."""
        return self.taken @ self.attended.values

    def value(self) -> Tensor:
        return self.kept

    def constant_contribution(self) -> Tensor:
        mass = self.taken.sum(-1, keepdim=True).cumsum(2)
        mean = self.contribution.cumsum(2) / mass.clamp_min(torch.finfo(mass.dtype).tiny)
        return self.kept + _of_heads(self.mass, mean) * mean

    def rescaling(self) -> Tensor:
        return self.kept / self.left + self.contribution

    def constant_rescaling(self) -> Tensor:
        return self.kept * ((1 - _of_heads(self.mass, self.left)) / self.left) + self.contribution

    def masked(self) -> Tensor:
        return self.kept / self.left

    def learned_constant(self) -> Tensor:
        attended, tiny = self.attended, torch.finfo(self.taken.dtype).tiny
        mass, mean = attended.learned_mass.unsqueeze(-1), _of_heads(self.learned_mass, self.left)
        own = attended.weights.sum(-1, keepdim=True).clamp_min(tiny)
        return attended.weights @ attended.values * ((1 - mean) / own) + attended.learned_output * (
            mean / mass.clamp_min(tiny)
        )


def _of_heads(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like).view(1, -1, 1, 1)


EDITS: dict[str, Callable[[Removal], Tensor]] = {
    "value": Removal.value,
    "constant-contribution": Removal.constant_contribution,
    "rescaling": Removal.rescaling,
    "constant-rescaling": Removal.constant_rescaling,
    "masked": Removal.masked,
}
RESCALING = ("rescaling", "constant-rescaling")
LEARNED, GATE_MEAN, GATE_ONE = "learned-constant", "gate-mean", "gate-one"


def mass_on(weights: Tensor, keys: Tensor) -> Tensor:
    """The part of weights [B, H, T, T] that later queries put on keys [B, H, T] bool; a key's own query keeps its."""
    later = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril(-1)
    return weights * (keys.unsqueeze(2) & later)


def mass_on_own(weights: Tensor, heads: Tensor) -> Tensor:
    """The part of weights [B, H, T, T] that queries but the first put on their own token, in heads [B, H] bool."""
    own = torch.eye(weights.shape[-1], dtype=torch.bool, device=weights.device)
    own[0, 0] = False
    return weights * (heads[..., None, None] & own)


def as_much(weights: Tensor, taken: Tensor, order: Tensor) -> Tensor:
    """Mass taken from other keys, as much as is taken of every query, or all where they have less.

    Args:
        weights: [B, H, T, T].
        taken: part of them; a key of which a query gives some is none of the others [B, H, T, T].
        order: keys of each query, first those of which mass is taken first [T, T].

    Returns:
        [B, H, T, T].
    """
    index = order.expand_as(weights)
    others = weights.masked_fill(taken > 0, 0.0).gather(-1, index)
    missing = taken.sum(-1, keepdim=True) - (others.cumsum(-1) - others)
    return torch.zeros_like(weights).scatter(-1, index, torch.minimum(others, missing.clamp_min(0)))


CONTROLS = RANDOM, RECENT, MIDDLE = ("random", "recent", "middle")


def order_of_keys(kind: str, length: int, generator: torch.Generator) -> Tensor:
    """The order [T, T] of the keys of each query: drawn at random for all alike, the latest first, or the middle first.

    Args:
        kind: "random", "recent" or "middle".
        length: T.
        generator: of the draw.
    """
    keys = torch.arange(length)
    if kind == RANDOM:
        return torch.randperm(length, generator=generator).expand(length, length)
    if kind == RECENT:
        return keys.flip(0).expand(length, length)
    distance = (2 * keys[None, :] - keys[:, None]).abs() + length * (keys[None, :] > keys[:, None])
    return distance.argsort(dim=1, stable=True)
