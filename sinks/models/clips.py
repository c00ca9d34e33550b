"""Clipping of outliers in the residual stream, or only in a norm's input (arXiv:2601.22966, section 3)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sinks.errors import require
from sinks.models.norms import Norm, RMSNorm
from sinks.models.taps import Report


class ResidualClip(nn.Module):
    """Applied to the residual stream after each addition: [B, T, D] -> [B, T, D].

    A subclass that clips values reports which, `self.report(clipped=[B, T, D] bool)`; one that never does sets `cuts`
    to False, and is no site of statistics.

    Args:
        site: name under which the clipped fraction is reported.
    """

    kind = "clips"
    cuts = True

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site
        self.report = Report()


class NoClip(ResidualClip):
    """The residual stream as it is."""

    cuts = False

    def forward(self, x: Tensor) -> Tensor:
        return x


class Clamp(ResidualClip):
    """x clamped to [-threshold, threshold].

    Args:
        site: name under which the clipped fraction is reported.
        threshold: largest |h| left in the stream.
    """

    def __init__(self, site: str, threshold: float = 100.0) -> None:
        super().__init__(site)
        self.threshold = require("residual threshold", threshold, above=0, remedy="give e.g. 100")

    def forward(self, x: Tensor) -> Tensor:
        if self.report.listener is not None:
            self.report(clipped=x.abs() > self.threshold)
        return x.clamp(-self.threshold, self.threshold)


class _ClampOfSomeTokens(Clamp):
    def chosen(self, tokens: Tensor) -> Tensor:
        """Which tokens are clamped, of their positions in the row [T]; bool [T]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.chosen(torch.arange(x.shape[1], device=x.device)).unsqueeze(-1)
        if self.report.listener is not None:
            self.report(clipped=chosen & (x.abs() > self.threshold))
        return torch.where(chosen, x.clamp(-self.threshold, self.threshold), x)


class FirstTokenClamp(_ClampOfSomeTokens):
    """Token 0 of each row clamped to [-threshold, threshold]: where massive activations are (arXiv:2402.17762).

    Residual sinks, which all tokens have, stay.

    Args:
        site: name under which the clipped fraction is reported.
        threshold: largest |h| left at token 0.
    """

    def chosen(self, tokens: Tensor) -> Tensor:
        return tokens == 0


class OtherTokensClamp(_ClampOfSomeTokens):
    """All tokens but token 0 of each row clamped to [-threshold, threshold]: no residual sink above it.

    Massive activations of token 0 stay.

    Args:
        site: name under which the clipped fraction is reported.
        threshold: largest |h| left at the other tokens.
    """

    def chosen(self, tokens: Tensor) -> Tensor:
        return tokens > 0


class ClippedNorm(Norm):
    """norm(x clamped to `medians` times the token's median |x|): outliers stay in the stream, not in the norm's input.

    Args:
        d_model: width D of the residual stream.
        medians: threshold in units of the token's median |x|.
        norm: the norm that reads the clipped input.
    """

    def __init__(self, d_model: int, medians: float = 4.0, norm: Callable[[int], Norm] = RMSNorm) -> None:
        super().__init__(d_model)
        self.medians = require("norm-input threshold", medians, above=0, remedy="give e.g. 4")
        self.norm = norm(d_model)

    def threshold(self, x: Tensor) -> Tensor:
        """Of each token [B, T, 1]."""
        return self.medians * x.abs().median(dim=-1, keepdim=True).values

    def forward(self, x: Tensor) -> Tensor:
        threshold = self.threshold(x)
        if self.internals is not None:
            self.internals |= {"clipped": x.abs() > threshold}
        return self.norm(x.clamp(-threshold, threshold))
