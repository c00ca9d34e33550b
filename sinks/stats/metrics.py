"""The statistics as torchmetrics: one state a moment, exact over batches and ranks.

Each class stands for one pair `*_moments`, `*_statistics` of `sinks.stats.functional`; its update takes the tensors of
the former, its compute returns the dictionary of the latter, and its constructor takes the sizes that states need.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from sinks.stats import functional
from sinks.stats.moments import COMBINE, NEUTRAL, Moments, combination


class MomentMetric(Metric):
    """Any pair of `moments(*tensors)` and `statistics(moments)`.

    States take their shapes from the moments of an example, so these must not depend on the batch size or the length.

    Args:
        moments: pure function of a batch, whose values add up (`sinks.stats.moments`).
        statistics: pure function of the totals.
        example: small tensors that `moments` accepts, by position.
        options: torchmetrics' own (`sync_on_compute`, `process_group`, ...).
    """

    is_differentiable = False
    full_state_update = False

    def __init__(
        self,
        moments: Callable[..., Moments],
        statistics: Callable[[Moments], dict[str, Tensor]],
        example: tuple[Tensor, ...],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._moments = moments
        self._statistics = statistics
        with torch.no_grad():
            template = moments(*example)
        self._names = tuple(template)
        for name, moment in template.items():
            how = combination(name)
            neutral = torch.full_like(moment, NEUTRAL[how])
            self.add_state(self._state(name), neutral, dist_reduce_fx=how)

    @staticmethod
    def _state(name: str) -> str:
        """torchmetrics wants state names that are identifiers: `sink_count_0.3` is not."""
        return f"moment_{name.replace('.', '_')}"

    def update(self, *tensors: Tensor) -> None:
        """Add a batch: the tensors that `moments` takes."""
        for name, moment in self._moments(*tensors).items():
            state = self._state(name)
            setattr(self, state, COMBINE[combination(name)](getattr(self, state), moment))

    def moments(self) -> Moments:
        """The totals so far, of this rank alone unless synchronised."""
        return {name: getattr(self, self._state(name)) for name in self._names}

    def compute(self) -> dict[str, Tensor]:
        return self._statistics(self.moments())


class AttentionMass(MomentMetric):
    """`attention_moments`: update(first_token_mass [B, H, T], learned_sink_mass [B, H, T]).

    Args:
        n_heads: H.
        thresholds: every eps of Sink^eps.
    """

    def __init__(
        self, n_heads: int, thresholds: tuple[float, ...] = functional.SINK_THRESHOLDS, **options: Any
    ) -> None:
        moments = partial(functional.attention_moments, thresholds=thresholds)
        rows = torch.zeros(1, n_heads, 2)
        super().__init__(moments, functional.attention_statistics, (rows, rows), **options)


class KeyMass(MomentMetric):
    """`key_mass_moments`: update(key_mass [B, H, T]).

    Args:
        n_heads: H.
        positions: number of first keys whose alpha_k is kept.
        thresholds: every eps of Sink^eps.
    """

    def __init__(
        self,
        n_heads: int,
        positions: int = 4,
        thresholds: tuple[float, ...] = functional.SINK_THRESHOLDS,
        **options: Any,
    ) -> None:
        moments = partial(functional.key_mass_moments, positions=positions, thresholds=thresholds)
        super().__init__(moments, functional.key_mass_statistics, (torch.zeros(1, n_heads, 2),), **options)


class AttentionRows(MomentMetric):
    """`attention_row_moments`: update(entropy [B, H, T], max_logit [B, H, T]).

    Args:
        n_heads: H.
        window: number of keys a query sees, all by default.
        sinks: number of learned sinks that count as keys in the entropy.
    """

    def __init__(self, n_heads: int, window: int | None = None, sinks: int = 0, **options: Any) -> None:
        moments = partial(functional.attention_row_moments, window=window, sinks=sinks)
        rows = torch.zeros(1, n_heads, 2)
        super().__init__(moments, functional.attention_row_statistics, (rows, rows), **options)


class ValueNormRatio(MomentMetric):
    """`value_moments`: update(v [B, n_kv_heads, T, head_dim]).

    Args:
        n_kv_heads: number of value heads.
    """

    def __init__(self, n_kv_heads: int, **options: Any) -> None:
        example = torch.ones(1, n_kv_heads, 2, 1)
        super().__init__(functional.value_moments, functional.value_statistics, (example,), **options)


class ContributionShare(MomentMetric):
    """`contribution_moments`: update(first_token_mass, norms, totals), each [B, H, T], and signed if `signed`.

    Args:
        n_heads: H.
        signed: whether updates also bring `signed_contribution`.
    """

    def __init__(self, n_heads: int, signed: bool = False, **options: Any) -> None:
        example = (torch.ones(1, n_heads, 2),) * (4 if signed else 3)
        super().__init__(functional.contribution_moments, functional.contribution_statistics, example, **options)


class AttentionGateValues(MomentMetric):
    """`attention_gate_moments`: update(gate [B, H, T] or [B, H, T, head_dim]).

    Args:
        n_heads: H.
    """

    def __init__(self, n_heads: int, **options: Any) -> None:
        example = torch.zeros(1, n_heads, 2)
        super().__init__(functional.attention_gate_moments, functional.attention_gate_statistics, (example,), **options)


class ResidualStream(MomentMetric):
    """`residual_moments`: update(h [B, T, D]).

    Args:
        d_model: D.
    """

    def __init__(self, d_model: int, **options: Any) -> None:
        example = torch.ones(1, 2, d_model)
        super().__init__(functional.residual_moments, functional.residual_statistics, (example,), **options)


class ResidualExtremes(MomentMetric):
    """`extreme_moments`: update(h [B, T, D]), or update(h, delimiters [B, T] bool)."""

    def __init__(self, **options: Any) -> None:
        example = torch.ones(1, 2, 1)
        super().__init__(functional.extreme_moments, functional.extreme_statistics, (example,), **options)


class MassiveActivations(MomentMetric):
    """`massive_moments`: update(h [B, T, D])."""

    def __init__(self, **options: Any) -> None:
        example = torch.ones(1, 2, 2)
        super().__init__(functional.massive_moments, functional.massive_statistics, (example,), **options)


class KurtosisFamily(MomentMetric):
    """`kurtosis_moments`: update(h [B, T, D]).

    Args:
        d_model: D.
    """

    def __init__(self, d_model: int, **options: Any) -> None:
        example = torch.ones(1, 2, d_model)
        super().__init__(functional.kurtosis_moments, functional.kurtosis_statistics, (example,), **options)


class EnergyShare(MomentMetric):
    """`energy_moments`: update(h [B, T, D]).

    Args:
        top: every k of the top-k energy share.
    """

    def __init__(self, top: tuple[int, ...] = functional.TOP_CHANNELS, **options: Any) -> None:
        moments = partial(functional.energy_moments, top=top)
        super().__init__(moments, functional.energy_statistics, (torch.ones(1, 2, 2),), **options)


class SinkDimensions(MomentMetric):
    """`sink_dimension_moments`: update(h [B, T, D], dimensions [K]), the same set S in every update until reset."""

    def __init__(self, **options: Any) -> None:
        example = (torch.ones(1, 2, 2), torch.zeros(1, dtype=torch.int64))
        super().__init__(functional.sink_dimension_moments, functional.sink_dimension_statistics, example, **options)


class OutputShare(MomentMetric):
    """`output_share_moments`: update(output [B, T, D], dimensions [K]), or update(h, dimensions, gain [D])."""

    def __init__(self, **options: Any) -> None:
        example = (torch.ones(1, 2, 2), torch.zeros(1, dtype=torch.int64))
        super().__init__(functional.output_share_moments, functional.output_share_statistics, example, **options)


class NormBound(MomentMetric):
    """`bound_moments`: update(h [B, T, D], output [B, T, D], gain [D], dimensions [K])."""

    def __init__(self, **options: Any) -> None:
        h = torch.ones(1, 2, 2)
        example = (h, h, torch.ones(2), torch.zeros(1, dtype=torch.int64))
        super().__init__(functional.bound_moments, functional.bound_statistics, example, **options)


class NormGate(MomentMetric):
    """`norm_gate_moments`: update(gate [B, T, D] or [B, T, 1]).

    Args:
        d_model: D.
    """

    def __init__(self, d_model: int, **options: Any) -> None:
        moments = partial(functional.norm_gate_moments, channels=d_model)
        super().__init__(moments, functional.norm_gate_statistics, (torch.ones(1, 2, d_model),), **options)


class GateAgainstMagnitude(MomentMetric):
    """`gate_magnitude_moments`: update(gate [B, T, D] or [B, T, 1], y [B, T, D])."""

    def __init__(self, **options: Any) -> None:
        example = (torch.ones(1, 2, 2), torch.ones(1, 2, 2))
        super().__init__(functional.gate_magnitude_moments, functional.gate_magnitude_statistics, example, **options)
