"""Norms of the residual stream: [B, T, D] -> [B, T, D].

A norm is built from `d_model` alone; its other constructor arguments are its options.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sinks.errors import require
from sinks.models.rms_norm import rms_norm
from sinks.models.taps import Report, Tap, taps_of


class Norm(nn.Module):
    """Base of the norms between the residual stream and a sublayer.

    A subclass writes `forward`, which makes its internals available to the statistics:

        if self.internals is not None:
            self.internals |= {"gain": self.weight}

    `gain` [D]: what a channel is multiplied by, besides 1 / rms. `divided` [B, T, D], `weight` [D] and
    `normalized` [B, T, D]: what an RMSNorm divides by its RMS, its gain, and what comes out. `gate` [B, T, D] or
    [B, T, 1] and `normed` [B, T, D]: a gate and what it multiplies. `clipped` [B, T, D] bool: which values are clipped.
    What is not set is absent from the statistics.

    Args:
        d_model: width D of the residual stream.
    """

    kind = "norms"

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.internals: dict[str, Tensor] | None = None  # a dict only while the site has a listener

    def reset_parameters(self) -> None:
        """Initialize this module's own parameters."""


class RootMeanSquareNorm(Norm):
    """Base of the norms y = gain * x / rms(x); a subclass writes `gain`.

    Args:
        d_model: width D of the residual stream.
        eps: added to the mean square.
    """

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__(d_model)
        self.eps = require("norm eps", eps, at_least=0, remedy="give e.g. 1e-6")

    def gain(self, x: Tensor) -> Tensor:
        """The gain [D] with which x is normed."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain(x)
        y = rms_norm(x, gain, self.eps)
        if self.internals is not None:
            self.internals |= {"gain": gain, "divided": x, "weight": gain, "normalized": y}
        return y


class RMSNorm(RootMeanSquareNorm):
    """y = weight * x / rms(x) (Zhang and Sennrich 2019, arXiv:1910.07467); the gain starts at one.

    Args:
        d_model: width D of the residual stream.
        eps: added to the mean square.
    """

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__(d_model, eps)
        self.weight = nn.Parameter(torch.ones(d_model))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def gain(self, x: Tensor) -> Tensor:
        return self.weight


class PreAffine(RMSNorm):
    """y = RMSNorm(pre * x): a second gain before the norm absorbs residual sinks (arXiv:2601.22966, section 4).

    The gain of a channel is `weight * pre`.

    Args:
        d_model: width D of the residual stream.
        eps: added to the mean square.
    """

    added = ("pre",)

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__(d_model, eps)
        self.pre = nn.Parameter(torch.ones(d_model))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.pre)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(self.pre * x)
        if self.internals is not None:
            self.internals |= {"gain": self.weight * self.pre}
        return y


class DyT(Norm):
    """y = weight * tanh(alpha * x) + bias: pointwise, no normalizer (Zhu et al. 2025, arXiv:2503.10622).

    Args:
        d_model: width D of the residual stream.
        alpha: initial slope; small embeddings need a large one, or tanh stays near zero.
    """

    def __init__(self, d_model: int, alpha: float = 0.5) -> None:
        super().__init__(d_model)
        self.initial_alpha = require("dyt alpha", alpha, above=0, remedy="give e.g. 0.5")
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.alpha, self.initial_alpha)
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.internals is not None:
            self.internals |= {"gain": self.weight}
        return self.weight * torch.tanh(self.alpha * x) + self.bias


class IdentityNorm(Norm):
    """y = x: no norm between the residual stream and the sublayer."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class NormSite(nn.Module):
    """A norm between the taps of its input and output.

    With a listener, it reports `input`, `output`, and the internals that the norm's own forward set.

    Args:
        site: name of the place, e.g. `blocks.0.attention.norm`; taps inside the norm get it as a prefix.
        norm: the norm at this site.
    """

    def __init__(self, site: str, norm: Norm) -> None:
        super().__init__()
        self.site = site
        self.input = Tap(f"{site}.input")
        self.norm = norm
        for tap in taps_of(norm):
            tap.site = f"{site}.{tap.site}"
        self.output = Tap(f"{site}.output")
        self.report = Report()

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        if self.report.listener is None:
            return self.output(self.norm(x))
        # Parameters are reported during the forward pass, because only then has FSDP2 gathered them.
        with self._internals() as internals:
            y = self.output(self.norm(x))
            self.report(**{"input": x, "output": y} | internals)
        return y

    @contextmanager
    def _internals(self) -> Iterator[dict[str, Tensor]]:
        internals: dict[str, Tensor] = {}
        norms = [m for m in self.norm.modules() if isinstance(m, Norm)]
        try:
            for norm in norms:
                norm.internals = internals
            yield internals
        finally:
            for norm in norms:
                norm.internals = None


class OutputNormSite(NormSite):
    """A norm of a sublayer's output, before that joins the residual stream; not a reader of the stream."""


def output_norm_site(site: str, norm: Norm) -> nn.Module:
    """The site of an output norm; without one a module that has neither taps nor statistics."""
    return nn.Identity() if type(norm) is IdentityNorm else OutputNormSite(site, norm)
