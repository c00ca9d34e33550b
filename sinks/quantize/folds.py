"""Whether a transform could be folded into the modules around a linear map, so that it costs nothing in deployment.

Nothing is folded here: transforms run inside the maps, which is exact for every model. The table was found on float64
outputs, and a test folds what it calls exact.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import nn

from sinks.models.attention_gates import ActivatedGate, AttentionGate
from sinks.models.clips import ClippedNorm
from sinks.models.gated_norm import GatedNorm
from sinks.models.norms import Norm
from sinks.quantize.inputs import SharedInput
from sinks.quantize.transforms import Name


@dataclass(frozen=True)
class Fold:
    """Whether a fold leaves the model's outputs as they are, and how it is done or why not; None: not known."""

    exact: bool | None
    how: str


@dataclass(frozen=True)
class Surroundings:
    """What is between the linear maps of a model, by names of the table; None for what is not known.

    Args:
        attention_norms, feed_forward_norms: of every block.
        head_norm: before the head.
        gates: on the output of attention, of every block.
        head_widths: of attention's values, of every block.
        clamped: whether the residual stream, or what joins it, is clamped or normed.
        truncated: whether a gate reads some channels of the stream alone, in any block.
        exclusive: whether outputs of heads lose their part along the query's own value in any block.
    """

    attention_norms: Sequence[str | None]
    feed_forward_norms: Sequence[str | None]
    head_norm: str | None
    gates: Sequence[str | None]
    head_widths: Sequence[int | None]
    clamped: bool
    truncated: bool = False
    exclusive: bool = False


# Of a norm before a map: factors of each channel folded into it, and the stream before it rotated.
NORMS = {
    "RMSNorm": (Fold(True, "weight / s"), Fold(True, "the gain goes into the maps that read the norm")),
    "LayerNorm": (Fold(True, "weight / s and bias / s"), Fold(False, "it subtracts the mean over channels")),
    "PreAffine": (Fold(True, "weight / s, not pre"), Fold(False, "pre multiplies channels before the norm")),
    "DyT": (Fold(True, "weight / s and bias / s"), Fold(False, "tanh acts on channels")),
    "IdentityNorm": (Fold(False, "no module to fold into"), Fold(True, "no gain")),
}
# Of what wraps a norm, where that norm can be folded: the same.
WRAPPERS = {
    "GatedNorm": (Fold(True, "also the gate's down.weight * s"), Fold(False, "a gate for each channel")),
    "tensorwise GatedNorm": (Fold(True, "also the gate's down.weight * s"), Fold(True, "the gain goes into down too")),
    "ClippedNorm": (Fold(True, "in the inner norm"), Fold(False, "channels are clipped")),
}
# Of a gate between attention and its output projection: the heads' outputs rotated.
GATES = {
    "none": Fold(True, "within heads: value rows and output columns"),
    "headwise": Fold(True, "within heads: value rows and output columns"),
    "elementwise": Fold(False, "a gate for each channel"),
    "unconditional": Fold(False, "a gate for each channel"),
}
UNKNOWN = Fold(None, "not known of this model")
SMOOTHING, ROTATION = 0, 1


def norm_name(norm: Norm) -> str | None:
    """A norm in the words of the table, what wraps first: "GatedNorm of PreAffine"."""
    if isinstance(norm, GatedNorm | ClippedNorm):
        inner = norm_name(norm.norm)
        outer = "ClippedNorm" if isinstance(norm, ClippedNorm) else "GatedNorm"
        if isinstance(norm, GatedNorm) and norm.up.out_features == 1:
            outer = f"tensorwise {outer}"
        return None if inner is None else f"{outer} of {inner}"
    return type(norm).__name__ if type(norm).__name__ in NORMS else None


def gate_name(gate: nn.Module) -> str | None:
    """An output gate in the words of the table."""
    assert isinstance(gate, AttentionGate)
    if type(gate) is ActivatedGate:
        gate = gate.gate
    known = {
        "NoGate": "none", "TensorwiseGate": "headwise", "HeadwiseGate": "headwise", "ElementwiseGate": "elementwise",
        "AmplifyingHeadwiseGate": "headwise", "AmplifyingElementwiseGate": "elementwise",
        "IdentityHeadwiseGate": "headwise", "IdentityElementwiseGate": "elementwise",
        "UnconditionalGate": "unconditional",
    }  # fmt: skip
    return known.get(type(gate).__name__)


def folds_of(transform: Name, inputs: Sequence[SharedInput], around: Surroundings) -> dict[str, Fold]:
    """Of each kind of input that a transform changes, whether it could be folded.

    Args:
        transform: of the inputs.
        inputs: of the model.
        around: what is between its maps.
    """
    of_kind: dict[str, Callable[[], Fold]] = {
        "attention.in": lambda: _before(transform, around.attention_norms, around),
        "feed_forward.in": lambda: _before(transform, around.feed_forward_norms, around),
        "attention.out": lambda: _after_attention(transform, inputs, around),
        "feed_forward.out": lambda: _after_hidden(transform, inputs),
    }
    changed = {"none": (), "smooth": ("attention.in", "feed_forward.in")}.get(transform, tuple(of_kind))
    there = {each.kind for each in inputs}
    return {kind: of_kind[kind]() for kind in changed if kind in there}


def _before(transform: Name, read: Sequence[str | None], around: Surroundings) -> Fold:
    if transform.startswith("smooth"):
        return _worst([_norm_fold(name, SMOOTHING) for name in read])
    if around.clamped:
        return Fold(False, "the stream or what joins it is clamped or normed, channel by channel")
    if around.truncated:
        return Fold(False, "a gate of attention reads some channels alone")
    names = [*around.attention_norms, *around.feed_forward_norms, around.head_norm]
    return _worst([_norm_fold(name, ROTATION) for name in names])


def _norm_fold(name: str | None, what: int) -> Fold:
    if name is None:
        return UNKNOWN
    *wrappers, norm = name.split(" of ")
    parts = [NORMS[norm][what], *(WRAPPERS[wrapper][what] for wrapper in reversed(wrappers))]
    worst = _worst(parts)
    return Fold(True, ", ".join(part.how for part in parts)) if worst.exact else worst


def _after_attention(transform: Name, inputs: Sequence[SharedInput], around: Surroundings) -> Fold:
    if transform.startswith("smooth"):
        read = [[m.out_features for m in each.linears.values()] for each in inputs if each.kind == "attention.in"]
        if any(len(widths) != 3 for widths in read):  # queries, keys and values, which one map may make together
            return UNKNOWN
        if around.exclusive:
            return Fold(False, "exclusive self-attention measures lengths of values")
        if any(len(set(widths)) > 1 for widths in read):
            return Fold(False, "query heads that share a value have factors of their own")
        return Fold(True, "value rows / s, output columns * s")
    if None in around.head_widths:
        return UNKNOWN
    widths = {each.width if transform == "hadamard" else 16 for each in inputs if each.kind == "attention.out"}
    if any(head % width for head in around.head_widths if head is not None for width in widths):
        return Fold(False, "it mixes channels of heads that attend differently")
    return _worst([UNKNOWN if gate is None else GATES[gate] for gate in around.gates])


def _after_hidden(transform: Name, inputs: Sequence[SharedInput]) -> Fold:
    if not transform.startswith("smooth"):
        return Fold(False, "the activation acts on channels")
    hidden = sum(each.width for each in inputs if each.kind == "feed_forward.out")
    made = sum(m.out_features for each in inputs if each.kind == "feed_forward.in" for m in each.linears.values())
    if made == 2 * hidden:
        return Fold(True, "rows of up / s, with its bias, columns of down * s")
    return Fold(False, "the activation is not linear in what up makes")


def _worst(folds: Collection[Fold]) -> Fold:
    """One that is not exact, else one that is not known, else an exact one."""
    ranks = {False: 0, None: 1, True: 2}
    return min(folds, key=lambda fold: ranks[fold.exact], default=UNKNOWN)
