"""Normalisers of the residual stream: [B, T, D] -> [B, T, D].

A norm is built from `d_model` alone; its other constructor arguments are its options.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinks.models.taps import Tap


class Norm(nn.Module):
    """What may stand between the residual stream and a sublayer.

    Args:
        d_model: width D of the residual stream.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model

    def gain(self) -> Tensor | None:
        """Effective gain of each channel [D] (lambda in arXiv:2601.22966), None where there is no per-channel gain."""
        return None

    def reset_parameters(self) -> None:
        """Fill the parameters this module itself owns."""

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        """What a look inside shows of x [B, T, D]; only computed while the site's tap is on.

        `normed`: the output before any gate; and where the norm has them `gain` [D] (effective), `divided` and `weight`
        (what is divided by its RMS, and the gain after that), `gate`, and `clipped` [B, T, D] (which values are cut).
        """
        gain = self.gain()
        return {"normed": self(x)} | ({} if gain is None else {"gain": gain})


class RMSNorm(Norm):
    """y = weight * x / rms(x) (Zhang and Sennrich 2019, arXiv:1910.07467); the gain starts at one.

    Args:
        d_model: width D of the residual stream.
        eps: added to the mean square.
    """

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__(d_model)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def gain(self) -> Tensor:
        return self.weight

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        return super().parts(x) | {"divided": x, "weight": self.weight}

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.d_model,), self.weight, self.eps)


class PreAffine(RMSNorm):
    """y = RMSNorm(pre * x): a second gain before the norm absorbs residual sinks (arXiv:2601.22966, section 4).

    The effective gain is `weight * pre`: what a channel is multiplied by, the common 1 / rms left aside.

    Args:
        d_model: width D of the residual stream.
        eps: added to the mean square.
    """

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__(d_model, eps)
        self.pre = nn.Parameter(torch.ones(d_model))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.pre)

    def gain(self) -> Tensor:
        return self.weight * self.pre

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        return super().parts(x) | {"divided": self.pre * x}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.pre * x)


class DyT(Norm):
    """y = weight * tanh(alpha * x) + bias: pointwise, no normaliser (Zhu et al. 2025, arXiv:2503.10622).

    Args:
        d_model: width D of the residual stream.
        alpha: initial slope; small embeddings need a large one, or tanh stays near zero.
    """

    def __init__(self, d_model: int, alpha: float = 0.5) -> None:
        super().__init__(d_model)
        self.initial_alpha = alpha
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.alpha, self.initial_alpha)
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def gain(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.tanh(self.alpha * x) + self.bias


class Unnormed(Norm):
    """y = x: nothing at all between the residual stream and the sublayer.

    Args:
        d_model: width D of the residual stream.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x


class NormSite(nn.Module):
    """A norm between the taps of its input and output; a third tap looks inside.

    Args:
        site: name of the place, e.g. `blocks.0.attention.norm`.
        norm: the norm that stands there.
    """

    def __init__(self, site: str, norm: Norm) -> None:
        super().__init__()
        self.input = Tap(f"{site}.input")
        self.norm = norm
        self.output = Tap(f"{site}.output")
        self.parts = Tap(f"{site}.parts")

    def forward(self, x: Tensor) -> Tensor:
        y = self.output(self.norm(self.input(x)))
        if self.parts.on:
            # Parameters are read here because FSDP2 has gathered them only while the forward runs.
            with torch.no_grad():
                self.parts.report({"input": x, "output": y} | self.norm.parts(x))
        return y
