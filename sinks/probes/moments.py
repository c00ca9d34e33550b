"""What calibration measures at a norm site: means by kind of token, and which dimensions are its sink."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinks.probes.cuts import Constants
from sinks.probes.tokens import KINDS, kinds_of_tokens


@dataclass
class Moments:
    """Sums over the calibration tokens of one norm site, in float64 where the device has it.

    Args:
        count: tokens of a kind.
        stream, output, square: sums of h, norm(h) and h^2 over these [D].
        magnitude: sum of |h| over the later tokens [D].
    """

    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    stream: dict[str, Tensor] = field(default_factory=dict)
    output: dict[str, Tensor] = field(default_factory=dict)
    square: dict[str, Tensor] = field(default_factory=dict)
    magnitude: Tensor | None = None

    def add(self, h: Tensor, y: Tensor) -> None:
        """Count the tokens of a stream and what the norm makes of it, both [B, T, D]."""
        for kind, chosen in kinds_of_tokens(h).items():
            own, made = h[chosen].double(), y[chosen].double()
            self.count[kind] += len(own)
            for sums, x in ((self.stream, own), (self.output, made), (self.square, own.square())):
                sums[kind] = sums.get(kind, 0) + x.sum(0)
        magnitude = h[:, 1:].double().abs().sum((0, 1))
        self.magnitude = magnitude if self.magnitude is None else self.magnitude + magnitude

    @property
    def scores(self) -> Tensor:
        """m_j over the (lower) median m_j [D], m_j the mean of |h_j| over the later tokens."""
        assert self.magnitude is not None
        return self.magnitude / self.magnitude.median()

    def sink_dimensions(self, threshold: float) -> list[int]:
        """Dimensions whose score reaches a threshold."""
        return (self.scores >= threshold).nonzero().flatten().tolist()

    def random_dimensions(self, dimensions: Sequence[int], generator: torch.Generator) -> list[int]:
        """As many others: of the middle half by score, or of all if these are too few."""
        order: list[int] = self.scores.argsort().tolist()
        size, taken = len(order), set(dimensions)
        middle = [j for j in order[size // 4 : 3 * size // 4] if j not in taken]
        pool = middle if len(middle) >= len(taken) else [j for j in order if j not in taken]
        return [pool[i] for i in torch.randperm(len(pool), generator=generator)[: len(taken)].tolist()]

    def constants(self, h: Tensor, kinds: Sequence[str], dimensions: Tensor) -> tuple[Constants, Tensor]:
        """The means for the tokens of a stream [B, T, D], and which tokens have one [B, T] bool.

        Args:
            h: the stream.
            kinds: of tokens that are edited, without a token in common; one that calibration has not seen is left out.
            dimensions: S indices.
        """
        found, edited = kinds_of_tokens(h), torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
        values = [h.new_zeros(*h.shape[:2], len(dimensions)) for _ in range(3)]
        for kind in kinds:
            if self.count[kind]:
                edited |= found[kind]
                for value, sums in zip(values, (self.stream, self.output, self.square), strict=True):
                    value[found[kind]] = (sums[kind][dimensions] / self.count[kind]).to(value)
        return Constants(*values), edited
