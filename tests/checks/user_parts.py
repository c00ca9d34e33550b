"""What users write: parts that are right, and parts that are wrong in one way each."""

from typing import Any

import torch
from torch import Tensor, nn

from sinks.families import CausalLM
from sinks.models.attention_config import AttentionConfig
from sinks.models.attention_gates import HeadwiseGate
from sinks.models.gated_norm import GatedNorm
from sinks.models.layers import Linear
from sinks.models.mixers import SequenceMixer
from sinks.models.normalizers import Normalizer, OffByOne
from sinks.models.norms import Norm, RMSNorm

# -- right ------------------------------------------------------------------------------------------------------


def rectified(scores: Tensor) -> Tensor:
    """relu(s) / sum relu(s) over the keys a query sees; a row may be empty."""
    positive = scores.relu()
    return positive / positive.sum(-1, keepdim=True).clamp_min(1e-6)


class Rectified(Normalizer):
    """Rectified scores.

    Args:
        config: widths and names of the attention sublayer.
    """

    def options(self) -> dict[str, Any]:
        return {"normalizer": rectified}


class TemperedNorm(RMSNorm):
    """RMSNorm times one learned number, of no dimension.

    Args:
        d_model: width of the residual stream.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.temperature = nn.Parameter(torch.ones(()))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.temperature)

    def forward(self, x: Tensor) -> Tensor:
        return self.temperature * super().forward(x)


class SquashedNorm(RMSNorm):
    """RMSNorm of a squashed input.

    Args:
        d_model: width of the residual stream.
        scale: where squashing sets in.
    """

    def __init__(self, d_model: int, scale: float = 0.5) -> None:
        super().__init__(d_model)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.scale * torch.tanh(x / self.scale))


class DoubledGate(GatedNorm):
    """A gate between 0 and 2.

    Args:
        d_model: width of the residual stream.
        rank: width of the bottleneck.
    """

    def __init__(self, d_model: int, rank: int = 3) -> None:
        super().__init__(d_model, rank)

    def gate(self, y: Tensor) -> Tensor:
        return 2 * super().gate(y)


class RunningMean(SequenceMixer):
    """The mean of all tokens so far, projected: it has no attention weights to report.

    Args:
        config: widths and names of the sublayer.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.out = Linear(config.d_model, config.d_model, config.output_std)

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
        return self.out(x.cumsum(1) / count[:, None])


# -- wrong in one way each --------------------------------------------------------------------------------------


class LeakingMean(RunningMean):
    """Attends to all tokens, future ones too.

    Args:
        config: widths and names of the sublayer.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.mean(1, keepdim=True).expand_as(x))


class LengthScaled(RunningMean):
    """Scales by the length of the sequence, so that a prefix alone gives something else.

    Args:
        config: widths and names of the sublayer.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.shape[1]


class IdleNorm(RMSNorm):
    """Has a parameter that it does not use.

    Args:
        d_model: width of the residual stream.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.unused = nn.Parameter(torch.ones(d_model))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.unused)


class ForgetfulAdamW(torch.optim.AdamW):
    """Leaves out the last group it is given.

    Args:
        groups: of parameters.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups[:-1])


class MisreportingNorm(Norm):
    """Says that it divides its input, and divides something else.

    Args:
        d_model: width of the residual stream.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = nn.Parameter(torch.ones(d_model))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.rms_norm(x.clamp(-0.5, 0.5), (self.d_model,), self.weight)
        if self.internals is not None:
            self.internals |= {"divided": x, "weight": self.weight, "normalized": y, "gain": self.weight}
        return y


class EagerNorm(RMSNorm):
    """Fills a parameter of its own in the constructor alone, so that the meta device leaves it empty.

    Args:
        d_model: width of the residual stream.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class UnsavedNorm(RMSNorm):
    """Counts its training steps in no buffer, and depends on the count.

    Args:
        d_model: width of the residual stream.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        return super().forward(x) * (1 + self.steps)


class ExplodingGate(HeadwiseGate):
    """Gives NaN.

    Args:
        config: widths, names and initialization of the attention sublayer.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0.0 * 0.0


class SoftmaxBehindOptions(Normalizer):
    """Overrides what statistics would not follow.

    Args:
        config: widths and names of the attention sublayer.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, stats: Any = ()) -> Any:  # type: ignore[override, misc]
        return v.cumsum(2), {}


class UncountedSink(OffByOne):
    """A sink that takes mass, and is not declared.

    Args:
        config: widths and names of the attention sublayer.
    """

    learned_sinks = 0


def small(**options: Any) -> CausalLM:
    """A model of a user's parts, not configured."""
    from tests.families.variants import SMALL

    return CausalLM(11, 12, **{"architecture": SMALL} | options)
