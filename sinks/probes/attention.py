"""The attention side: sinks as detection finds them, what is cut of them, and where they go."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sinks.observe import AttentionRecord
from sinks.observe.detection import EPSILON, Detection, received_mass
from sinks.probes.places import Attended, AttentionEdit, AttentionPlace
from sinks.probes.removals import (
    CONTROLS,
    EDITS,
    GATE_MEAN,
    GATE_ONE,
    LEARNED,
    RESCALING,
    Removal,
    as_much,
    mass_on,
    mass_on_own,
    order_of_keys,
)

DETECTED, FIRST, OWN = "detected", "first", "own"
SINKS = (DETECTED, FIRST, OWN)
NO_OP, BROADCAST, BETWEEN = "no-op", "broadcast", "between"
# Of the sink's value after the output projection over the others' median, and of the stable rank of what a head writes.
NO_OP_AT_MOST, BROADCAST_AT_LEAST, ONE_DIRECTION = 0.2, 0.5, 1.5


def sinks_of(attended: Attended, which: str) -> Tensor:
    """Which keys are sinks of a head [B, H, T] bool; for "own", the same for all keys of a head.

    Args:
        attended: the attention of whole rows.
        which: "detected": keys of the first half whose mean received mass exceeds 0.3 (arXiv:2410.10781); "first":
            position 0; "own": the query's own token, in rows and heads where its mean weight exceeds 0.3.
    """
    weights = attended.weights
    found = torch.zeros(weights.shape[:3], dtype=torch.bool, device=weights.device)
    if which == FIRST:
        found[..., 0] = True
    elif which == OWN:
        own = weights.diagonal(dim1=-2, dim2=-1)[..., 1:].mean(-1)
        found |= (own > EPSILON).unsqueeze(-1)
    else:
        alpha = received_mass(_key_mass(attended, weights))
        found[..., : alpha.shape[-1]] = alpha > EPSILON
    return found


def _key_mass(attended: Attended, weights: Tensor) -> Tensor:
    if not attended.row_normalized:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return weights.sum(2)


def taken_of(weights: Tensor, sinks: Tensor, which: str) -> Tensor:
    """The part of weights [B, H, T, T] on sinks [B, H, T], as `sinks_of` gives them."""
    return mass_on_own(weights, sinks[..., 0]) if which == OWN else mass_on(weights, sinks)


def _queries(sinks: Tensor, which: str) -> Tensor:
    """Which queries see a sink that is not their own token, or for "own" are not the first [B, H, T] bool."""
    if which == OWN:
        return sinks & (torch.arange(sinks.shape[-1], device=sinks.device) > 0)
    return (sinks.cumsum(-1) - sinks.to(torch.long)) > 0


@dataclass
class Calibration:
    """Means of one layer over calibration rows.

    Args:
        queries: that see a sink [H].
        mass: sum of their mass on it [H]; and of what a control takes instead, by kind of control.
        learned_queries, learned_mass: all queries, and sum of their mass on learned sinks [H].
        gate, gate_tokens: sum of the output gate's values over tokens [H] or [H, d], and number of tokens.
        ratios, ranks: of each (row, head) whose mean mass on its sink exceeds 0.3: |W_O v| of it over the median of the
            others, and the stable rank of what the head writes; by head.
    """

    queries: Tensor | None = None
    mass: dict[str | None, Tensor] = field(default_factory=dict)
    learned_queries: int = 0
    learned_mass: Tensor | None = None
    gate: Tensor | None = None
    gate_tokens: int = 0
    ratios: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    ranks: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(
        self, attended: Attended, which: str, out_weight: Tensor | None, seed: int, controls: Sequence[str]
    ) -> None:
        """Count the attention of rows.

        Args:
            attended: the attention.
            which: keys that count as sinks; see `sinks_of`.
            out_weight: of the output projection [D, H * d].
            seed: of the random control.
            controls: kinds of controls.
        """
        sinks = sinks_of(attended, which)
        taken = taken_of(attended.weights, sinks, which)
        chosen = _queries(sinks, which)
        for control in (None, *controls):
            instead = taken if control is None else as_much(attended.weights, taken, _order(control, taken, seed))
            self.mass[control] = self.mass.get(control, 0) + (instead.sum(-1) * chosen).double().sum((0, 2))
        learned = attended.learned_mass.double().sum((0, 2))
        self.queries = chosen.sum((0, 2)) + (0 if self.queries is None else self.queries)
        self.learned_mass = learned + (0 if self.learned_mass is None else self.learned_mass)
        self.learned_queries += attended.weights.shape[0] * attended.weights.shape[2]
        if out_weight is not None:
            self._add_updates(attended, sinks, taken, which, out_weight)

    def _add_updates(self, attended: Attended, sinks: Tensor, taken: Tensor, which: str, out_weight: Tensor) -> None:
        width = attended.values.shape[-1]
        output = attended.weights @ attended.values + attended.learned_output
        queries = _queries(sinks, which).sum(-1).clamp_min(1)
        for row, head in (taken.sum((-2, -1)) / queries > EPSILON).nonzero().tolist():
            projection = out_weight[:, head * width : (head + 1) * width].to(attended.values.dtype)
            norms = (attended.values[row, head] @ projection.T).norm(dim=-1)  # [T]
            received = taken[row, head].sum(0)
            others = norms if which == OWN else norms[~sinks[row, head]]
            size = (received * norms).sum() / received.sum()
            ratio = size / others.median().clamp_min(torch.finfo(size.dtype).tiny)
            self.ratios[head].append(ratio.item())
            self.ranks[head].append(stable_rank(output[row, head], projection))

    def add_gate(self, values: Tensor) -> None:
        """Count the values of the output gate [B, H, T] or [B, H, T, d]."""
        total = values.double().sum((0, 2))
        self.gate = total + (0 if self.gate is None else self.gate)
        self.gate_tokens += values.shape[0] * values.shape[2]

    def mean_mass(self, control: str | None = None) -> Tensor:
        """w of each head, or of its control, mean over queries that see a sink [H]; 0 without one."""
        assert self.queries is not None
        return self.mass[control] / self.queries.clamp_min(1)

    @property
    def mean_learned_mass(self) -> Tensor:
        """m_l of each head, mean over all queries [H]."""
        assert self.learned_mass is not None
        return self.learned_mass / self.learned_queries

    def how(self, head: int) -> dict[str, Any]:
        """What a head writes where it attends to its sink, by medians over rows.

        "no-op" if |W_O v| of the sink is at most 0.2 of the median of the other keys; "broadcast" if at least 0.5, and
        the stable rank of all that the head writes is at most 1.5, i.e. nearly one vector; else "between". After
        arXiv:2606.08105. For a head's own token, that of all its keys weighted by what they get from their own query.
        """
        ratio, rank = _median(self.ratios[head]), _median(self.ranks[head])
        broadcast = ratio >= BROADCAST_AT_LEAST and rank <= ONE_DIRECTION
        name = NO_OP if ratio <= NO_OP_AT_MOST else BROADCAST if broadcast else BETWEEN
        return {"head": head, "rows": len(self.ratios[head]), "ratio": ratio, "stable_rank": rank, "how": name}


def stable_rank(output: Tensor, projection: Tensor) -> float:
    """||U||_F^2 / ||U||_2^2 of U = output projection^T, from [T, d] and [D, d]; 1 if U is zero."""
    root = torch.linalg.qr(projection.double(), mode="r").R  # U has the singular values of output root^T
    gram = root @ (output.double().T @ output.double()) @ root.T
    largest = torch.linalg.eigvalsh(gram)[-1]
    return (gram.trace() / largest).item() if largest > 0 else 1.0


def _median(values: list[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).median().item()


@dataclass
class AttentionSide:
    """Calibrated attention layers of a model, and the sinks of the rows to score.

    Args:
        layers: that can be edited.
        which: keys that count as sinks; see `sinks_of`.
        calibrations: of each layer, by name.
        seed: of the random control.
    """

    layers: Sequence[AttentionPlace]
    which: str
    calibrations: dict[str, Calibration]
    seed: int
    sinks: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # by layer and batch
    batch: int = 0

    @contextmanager
    def finding(self, detection: Detection) -> Iterator[None]:
        """The sinks of the rows that are scored inside the `with` block are those of later edits; each batch once.

        Args:
            detection: takes the mass that keys receive.
        """

        def reader(name: str) -> AttentionEdit:
            def read(attended: Attended) -> tuple[Tensor, Tensor]:
                if (name, self.batch) not in self.sinks:
                    self.sinks[name, self.batch] = sinks_of(attended, self.which)
                    detection.take(name, AttentionRecord(key_mass=_key_mass(attended, attended.weights)))
                return _nothing(attended)

            return read

        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(layer.edited(reader(layer.name)))
            yield

    @contextmanager
    def edited(
        self,
        edit: str,
        layers: Sequence[AttentionPlace],
        control: str | None = None,
        detection: Detection | None = None,
    ) -> Iterator[None]:
        """One edit in layers inside the `with` block.

        Args:
            edit: a key of `EDITS`, "learned-constant", "gate-mean" or "gate-one".
            layers: to edit.
            control: "random", "recent" or "middle": as much mass of other keys instead.
            detection: takes the mass that keys receive after the edit.
        """
        with ExitStack() as stack:
            for layer in layers:
                if edit not in (GATE_MEAN, GATE_ONE):
                    stack.enter_context(layer.edited(self._edit(edit, layer, control, detection)))
                elif layer.gated:
                    stack.enter_context(layer.gate_edited(self._gate_edit(edit, layer)))
            yield

    def _edit(
        self, edit: str, layer: AttentionPlace, control: str | None, detection: Detection | None
    ) -> AttentionEdit:
        own = self.calibrations[layer.name]

        def apply(attended: Attended) -> tuple[Tensor, Tensor]:
            weights, sinks = attended.weights, self.sinks[layer.name, self.batch]
            taken = taken_of(weights, sinks, self.which)
            queries = _queries(sinks, self.which)
            if control is not None:
                taken = as_much(weights, taken, _order(control, taken, self.seed + layer.layer))
            removal = Removal(attended, taken, own.mean_mass(control), own.mean_learned_mass)
            if detection is not None:
                used = removal.kept_weights / removal.left if edit == "masked" else weights
                used = torch.where(queries.unsqueeze(-1), used, weights)
                detection.take(layer.name, AttentionRecord(key_mass=_key_mass(attended, used)))
            if edit == LEARNED:
                return removal.learned_constant(), (attended.learned_mass > 0)
            if edit.startswith("constant"):  # heads without a sink in calibration have no constant
                assert own.queries is not None
                queries = queries & (own.queries > 0).to(queries.device)[None, :, None]
            if edit in RESCALING and not attended.row_normalized:
                return _nothing(attended)
            return EDITS[edit](removal), queries

        return apply

    def _gate_edit(self, edit: str, layer: AttentionPlace) -> Callable[[Tensor], Tensor]:
        own = self.calibrations[layer.name]

        def apply(values: Tensor) -> Tensor:
            if edit == GATE_ONE:
                return torch.ones_like(values)
            assert own.gate is not None
            return (own.gate / own.gate_tokens).to(values).unsqueeze(1).expand_as(values)

        return apply


def calibrate_attention(
    layers: Sequence[AttentionPlace],
    which: str,
    run: Callable[[], object],
    seed: int = 0,
    controls: Sequence[str] = CONTROLS,
) -> dict[str, Calibration]:
    """Means of every layer.

    Args:
        layers: to read.
        which: keys that count as sinks; see `sinks_of`.
        run: runs the model over calibration rows; twice where a layer has an output gate.
        seed: of the random control.
        controls: kinds of controls whose means are needed.
    """
    found = {layer.name: Calibration() for layer in layers}

    def reader(layer: AttentionPlace) -> AttentionEdit:
        def read(attended: Attended) -> tuple[Tensor, Tensor]:
            found[layer.name].add(attended, which, layer.out_weight(), seed + layer.layer, controls)
            return _nothing(attended)

        return read

    def gate_reader(layer: AttentionPlace) -> Callable[[Tensor], Tensor]:
        def read(values: Tensor) -> Tensor:
            found[layer.name].add_gate(values)
            return values

        return read

    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.enter_context(layer.edited(reader(layer)))
        run()
    gated = [layer for layer in layers if layer.gated]
    with ExitStack() as stack, torch.no_grad():
        for layer in gated:
            stack.enter_context(layer.gate_edited(gate_reader(layer)))
        if gated:
            run()
    return found


def _order(control: str, weights: Tensor, seed: int) -> Tensor:
    order = order_of_keys(control, weights.shape[-1], torch.Generator().manual_seed(seed))
    return order.to(weights.device)


def _nothing(attended: Attended) -> tuple[Tensor, Tensor]:
    """The output as it is."""
    none = torch.zeros(attended.weights.shape[:3], dtype=torch.bool, device=attended.weights.device)
    return torch.zeros_like(attended.values), none
