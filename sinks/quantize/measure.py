"""What quantization costs a model: loss and accuracy, token by token on the same text."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from sinks.errors import UserError
from sinks.models.cross_entropy import token_losses
from sinks.quantize.folds import folds_of
from sinks.quantize.inputs import KINDS
from sinks.quantize.kv import KV, rounder
from sinks.quantize.linear import Kept, Replacement, quantized
from sinks.quantize.noise import Noise, decibels, noise_of
from sinks.quantize.replacements import replacements_of
from sinks.quantize.rounding import Method
from sinks.quantize.schemes import Scheme
from sinks.quantize.sink_tokens import sink_tokens
from sinks.quantize.subject import Subject
from sinks.quantize.transforms import Name
from sinks.stats.bootstrap import Interval, interval

DESTROYED = 0.25  # noise-to-signal ratio: the error is half as large as the output, 6 dB
Logits = Callable[[Tensor], Tensor]  # token ids [B, T] -> [B, T, V]


@dataclass(frozen=True)
class Scores:
    """Of every token of rows but the first [N, T - 1], float64: loss in nats, and whether it was the likeliest."""

    loss: Tensor
    correct: Tensor


@torch.no_grad()
def score(logits: Logits, batches: Sequence[Tensor], kept: Kept | None = None, masks: Sequence[Tensor] = ()) -> Scores:
    """Score rows of token ids [B, T].

    Args:
        logits: of the model.
        batches: of rows.
        kept: of a quantized model.
        masks: of every batch, which tokens' activations it leaves in high precision [B, T - 1].
    """
    losses, correct = [], []
    for at, batch in enumerate(batches):
        inputs = batch[:, :-1]
        if kept is not None:
            kept.mask = masks[at]
        scores = logits(inputs)
        losses.append(token_losses(scores, batch[:, 1:]))
        correct.append((scores.argmax(-1) == batch[:, 1:].to(scores.device)).double().cpu())
    return Scores(torch.cat(losses), torch.cat(correct))


def paired_change(before: Tensor, after: Tensor, seed: int, where: Tensor | None = None) -> Interval:
    """Mean change over tokens, with the 95 % interval of a bootstrap over the rows.

    Args:
        before: of each token [N, T].
        after: of the same tokens.
        seed: of the bootstrap.
        where: which tokens count [N, T] bool, one at least; all if not given. Rows may have none.
    """
    counted = torch.ones_like(before) if where is None else where.to(before.dtype)
    return interval(((after - before) * counted).sum(1), counted.sum(1), seed)


@dataclass(frozen=True)
class Options:
    """What is quantized, and how.

    Args:
        scheme: number formats.
        transform: of inputs and weights.
        method: by which weights are rounded.
        kinds: of inputs that are quantized, as `SharedInput` names them.
        batch_size: rows at a time.
        seed: of the bootstrap.
        kv: whether keys and values are rounded as activations are.
        breakdown: whether more is measured than the cost of all at once, which takes a tenth of the time.
    """

    scheme: Scheme
    transform: Name = "none"
    method: Method = "nearest"
    kinds: Sequence[str] = KINDS
    batch_size: int = 4
    seed: int = 0
    kv: bool = False
    breakdown: bool = True


@dataclass(frozen=True)
class Original:
    """The model as it is, on the rows that are scored.

    Args:
        scores: of it.
        sinks: tokens that are attention sinks, [B, T - 1] bool of every batch; None if its attention cannot be read, or
            was not.
    """

    scores: Scores
    sinks: Sequence[Tensor] | None


def measure_original(subject: Subject, options: Options) -> Original:
    """What every scheme is compared with.

    Args:
        subject: model and text.
        options: of these `batch_size` and `breakdown`.
    """
    rows, looked_for = subject.rows.split(options.batch_size), options.breakdown and subject.sites
    sinks = sink_tokens(subject.sites, subject.logits, [row[:, :-1] for row in rows]) if looked_for else None
    return Original(score(subject.logits, rows), sinks)


def rows_read(subject: Subject, options: Options, original: bool) -> int:
    """Rows over which `measure` runs the model, those of inputs that turn out to be destroyed left out.

    Args:
        subject: model and text.
        options: what is quantized, and how.
        original: whether the model as it is is measured as well.
    """
    activations = options.scheme.activations
    static = activations is not None and activations.reach == "static"
    readings = options.transform.startswith("smooth") + static + (options.method == "gptq")
    passes = 1 + original
    if options.breakdown:
        parts = len({each.kind for each in subject.inputs()} & {*options.kinds}) + options.kv
        kept = activations is not None and activations.reach == "row"
        sinks = bool(subject.sites)
        passes += 1 + parts * (parts > 1) + kept * (1 + sinks) + original * sinks
    return passes * len(subject.rows) + readings * len(subject.calibration)


def measure(subject: Subject, options: Options, original: Original | None = None) -> dict[str, Any]:
    """The cost of a scheme: all at once, each kind alone, with the first or the sink tokens kept, and without what it
    destroys; and what it does to every linear map. docs/quantize.md names the keys.

    Args:
        subject: model and text.
        options: what is quantized, and how.
        original: the model as it is, measured with the same `batch_size` and `breakdown`, if that is known.

    Raises:
        UserError: if there is no input of these kinds, a transform has no matrix, or an activation is not finite.
    """
    inputs = subject.inputs()
    chosen = [each for each in inputs if each.kind in options.kinds]
    if not chosen:
        there = ", ".join(dict.fromkeys(each.kind for each in inputs))
        raise UserError(f"{subject.name} has no input of kind {', '.join(options.kinds)}: give one of {there}")
    original = original or measure_original(subject, options)
    calibration = subject.calibration.split(options.batch_size)
    replaced = replacements_of(chosen, options.scheme, options.transform, subject.logits, calibration, options.method)
    trials = _Trials(subject, options, original)
    after = trials.score(replaced, options.kv)
    kinds, folds = {each.kind for each in chosen}, folds_of(options.transform, inputs, subject.around)
    found = {
        "loss": original.scores.loss.mean().item(),
        "accuracy": original.scores.correct.mean().item(),
        "quantized": trials.compared(after),
        "folds": {kind: asdict(fold) for kind, fold in folds.items() if kind in kinds},
    }
    return found | (_breakdown(trials, replaced, after) if options.breakdown else {})


def _breakdown(trials: "_Trials", replaced: Sequence[Replacement], after: Scores) -> dict[str, Any]:
    """Where the cost comes from."""
    subject, options, original = trials.subject, trials.options, trials.original
    kinds = {kind: those for kind in options.kinds if (those := [each for each in replaced if each.input.kind == kind])}
    read = [row[:, :-1] for row in trials.rows]
    noise = noise_of(replaced, subject.logits, read)
    quantizer = options.scheme.activations
    # Where a scale spans tokens, those that are kept would still set it.
    can_keep = quantizer is not None and quantizer.reach == "row" and all(each.input.per_token for each in replaced)
    first = [torch.arange(row.shape[1], device=row.device).expand_as(row) == 0 for row in read]
    parts = kinds | ({KV: []} if options.kv else {})
    alone = {part: trials.cost(those, kv=part == KV) for part, those in parts.items()} if len(parts) > 1 else {}
    sinks = original.sinks
    return {
        "first_token_kept": trials.cost(replaced, options.kv, first) if can_keep else None,
        "sink_tokens": None
        if sinks is None
        else _split(torch.cat(list(sinks)).cpu(), original.scores, after, options.seed)
        | {"kept": trials.cost(replaced, options.kv, sinks) if can_keep else None},
        "kinds_alone": alone,
        **_described(noise, kinds),
        "destroyed": _destroyed(noise, replaced, trials, options.kv),
    }


class _Trials:
    """The model with parts of it quantized, each time compared with the model as it is."""

    def __init__(self, subject: Subject, options: Options, original: Original) -> None:
        self.subject, self.options, self.original = subject, options, original
        self.rows = subject.rows.split(options.batch_size)

    def score(self, replaced: Sequence[Replacement], kv: bool, masks: Sequence[Tensor] = ()) -> Scores:
        """With some inputs, and keys and values, quantized; of every batch, the masks say which tokens are kept."""
        subject, quantizer = self.subject, self.options.scheme.activations
        with quantized(subject.model, replaced) as kept, ExitStack() as stack:
            if kv:
                assert subject.rounding_kv is not None and quantizer is not None, "the command checks both"  # noqa: PT018
                stack.enter_context(subject.rounding_kv(rounder(quantizer, kept)))
            return score(subject.logits, self.rows, kept if masks else None, masks)

    def cost(self, replaced: Sequence[Replacement], kv: bool, masks: Sequence[Tensor] = ()) -> dict[str, Any]:
        """The same, as JSON."""
        return self.compared(self.score(replaced, kv, masks))

    def compared(self, after: Scores) -> dict[str, Any]:
        """Scores beside those of the model as it is, as JSON."""
        before, seed = self.original.scores, self.options.seed
        return {
            "loss": after.loss.mean().item(),
            "change": paired_change(before.loss, after.loss, seed),
            "accuracy_change": paired_change(before.correct, after.correct, seed),
        }


def _described(noise: Mapping[str, Noise], kinds: Mapping[str, Sequence[Replacement]]) -> dict[str, Any]:
    """What rounding does to the maps: per kind means over inputs, of those for which it is defined."""

    def means(of: Callable[[Noise], float | None]) -> dict[str, float | None]:
        known = {
            kind: [x for each in those if (x := of(noise[each.input.name])) is not None]
            for kind, those in kinds.items()
        }
        return {kind: mean(values) if values else None for kind, values in known.items()}

    ratios = means(lambda each: each.output)
    peaks, transformed = means(lambda each: each.peak), means(lambda each: each.transformed_peak)
    inputs, weights = means(lambda each: each.input_underflow), means(lambda each: each.weight_underflow)
    return {
        "output_sqnr": {kind: decibels(ratio) for kind, ratio in ratios.items() if ratio is not None},
        "output_sqnr_by_input": {n: decibels(each.output) for n, each in noise.items() if each.output is not None},
        "outliers": {kind: {"input": peaks[kind], "transformed": transformed[kind]} for kind in kinds},
        "outliers_by_input": {n: {"input": e.peak, "transformed": e.transformed_peak} for n, e in noise.items()},
        "underflow": {kind: {"inputs": inputs[kind], "weights": weights[kind]} for kind in kinds},
    }


def _destroyed(
    noise: Mapping[str, Noise], replaced: Sequence[Replacement], trials: _Trials, kv: bool
) -> dict[str, Any]:
    """Inputs whose maps' outputs have a large error, and what is left when these stay in high precision."""
    names = [name for name, each in noise.items() if each.output is not None and each.output > DESTROYED]
    rest = [each for each in replaced if each.input.name not in names]
    return {
        "below_db": decibels(DESTROYED),
        "inputs": names,
        "rescued": trials.cost(rest, kv) if names else None,
    }


def _split(sinks: Tensor, before: Scores, after: Scores, seed: int) -> dict[str, Any]:
    """How many tokens [N, T] are sinks, and the change of loss in what is predicted at these, and at others."""
    return {
        "fraction": sinks.double().mean().item(),
        "first_token_fraction": sinks[:, 0].double().mean().item(),
        "change_at_sinks": paired_change(before.loss, after.loss, seed, sinks) if sinks.any() else None,
        "change_elsewhere": paired_change(before.loss, after.loss, seed, ~sinks) if not sinks.all() else None,
    }
