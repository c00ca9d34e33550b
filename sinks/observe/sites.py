"""The sites of a model at which statistics are read, and how each fills its record."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Literal, Protocol

import torch
from sink_kernels import Statistic
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.models.attention import Attention
from sinks.models.clips import ResidualClip
from sinks.models.norms import NormSite, OutputNormSite
from sinks.models.residual import ResidualAdd
from sinks.observe.key_numbers import KeyNumbers
from sinks.observe.records import AttentionRecord, ClipRecord, NormRecord, UpdateRecord
from sinks.stats.functional import gate_gain

Kind = Literal["norm", "attention", "output_norm", "update", "clip"]
Listener = Callable[[Any], None]  # of a record of the site's kind
# Statistics of `sink_kernels.attention`, by the field they fill.
ROW_STATISTICS = {
    "first_token_mass": "first_key_mass",
    "learned_sink_mass": "sink_mass",
    "own_token_mass": "own_key_mass",
    "previous_token_mass": "previous_key_mass",
    "row_mass": "row_mass",
    "lse": "lse",
    "entropy": "entropy",
    "max_logit": "max_logit",
    "key_mass": "key_mass",
}


class Site(Protocol):
    """A place that reports a record of every forward pass, or several of its documents, while there is a listener.

    One that may leave a pass unread on one rank and not on another says so with an attribute `may_skip`.

    Args:
        name: stable, e.g. `blocks.0.attention`.
        kind: of its records.
    """

    name: str
    kind: Kind

    def listen(self, listener: Listener | None, fields: Collection[str] = ()) -> None:
        """Pass every record to a listener, None to stop; costly fields are filled only if named."""


class _ReportSite:
    def __init__(self, kind: Kind, module: NormSite | ResidualAdd | ResidualClip, record: type) -> None:
        self.kind, self.name, self._report, self._record = kind, module.site, module.report, record

    def listen(self, listener: Listener | None, fields: Collection[str] = ()) -> None:
        self._report.listener = listener and (lambda tensors: listener(self._checked(tensors)))

    def _checked(self, tensors: dict[str, Any]) -> Any:
        """The record, of tensors whose shapes it can have: parts may be a user's own."""
        known = {field.name for field in dataclasses.fields(self._record)}
        for name in tensors.keys() - known:
            raise UserError(
                f"{self.name}: the norm's internals have {name!r}, but statistics read {', '.join(sorted(known))}: "
                "leave it out, or give it one of these names"
            )
        stream = tensors.get("residual" if self.kind == "update" else "input")
        if isinstance(stream, Tensor):
            for name, value in tensors.items():
                if value is None:
                    continue
                _require_shape(f"{self.name}: {name}", value, _shapes(name, stream.shape))
        return self._record(**tensors)


def _shapes(name: str, stream: torch.Size) -> list[tuple[int, ...]]:
    """What a field of a record [B, T, D] may be."""
    batch, tokens, width = stream
    if name in ("gain", "weight"):
        return [(width,)]
    return [(batch, tokens, width), *([(batch, tokens, 1)] if name == "gate" else [])]


def _require_shape(name: str, value: Any, allowed: list[tuple[int, ...]]) -> None:
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if found not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise UserError(f"{name} is {found}, but must be a tensor {wanted}: return or report one of that shape")


class _AttentionSite:
    kind: Kind = "attention"

    def __init__(self, module: Attention) -> None:
        self.name, self._module = module.config.site, module

    def listen(self, listener: Listener | None, fields: Collection[str] = ()) -> None:
        module, learned = self._module, self._module.normalizer.learned_values
        # Where a learned key is one of the keys, what a token's key receives is not defined.
        module.row_statistics = row_statistics({*fields} - ({"key_mass"} if learned else set()))
        numbers = KeyNumbers(fields, module.out_weight is not None, learned)
        module.key_numbers = (lambda q, v: numbers.of(v, q.shape[1], module.out_weight)) if numbers else None
        gain = "gate_gain" in fields
        module.report.listener = listener and (lambda tensors: listener(self._record(tensors, numbers, gain)))

    def _record(self, tensors: dict[str, Any], numbers: KeyNumbers, gain: bool) -> AttentionRecord:
        module, normalizer, gate = self._module, self._module.normalizer, tensors.get("gate")
        found: dict[str, Tensor | None] = {}
        if numbers:
            found |= numbers.fields(tensors["numbers"], tensors["weighted_sum"])
        norms = found.get("relative_value_norms")
        if norms is not None:
            found["own_value_norms"] = module.exclusion.own_norms(norms)
        if gain and gate is not None:
            found["gate_gain"] = gate_gain(gate, module.gating.ungated(tensors["before"], tensors["output"], gate))
        return AttentionRecord(
            **found,
            **{name: tensors.get(name) for name in ("q", "k", "v", "gate")},
            **{name: tensors.get(at) for name, at in ROW_STATISTICS.items()},
            learned_sinks=normalizer.learned_sinks,
            out_weight=module.out_weight,
            row_normalized=normalizer.row_normalized,
            masses=normalizer.key_mass,
            within=normalizer.first_token_within if normalizer.separable else None,
        )


def row_statistics(fields: Collection[str]) -> tuple[Statistic, ...]:
    """The statistics of `sink_kernels.attention` that fill fields of a record."""
    return tuple(at for name, at in ROW_STATISTICS.items() if name in fields)  # type: ignore[misc]


def sites_of(model: nn.Module) -> list[Site]:
    """The sites of a model built from sinks.models, in order of definition."""
    found: list[Site] = []
    for module in model.modules():
        if isinstance(module, OutputNormSite):
            found.append(_ReportSite("output_norm", module, NormRecord))
        elif isinstance(module, NormSite):
            found.append(_ReportSite("norm", module, NormRecord))
        elif isinstance(module, Attention):
            found.append(_AttentionSite(module))
        elif isinstance(module, ResidualAdd):
            found.append(_ReportSite("update", module, UpdateRecord))
        elif isinstance(module, ResidualClip) and module.cuts:
            found.append(_ReportSite("clip", module, ClipRecord))
    return found
