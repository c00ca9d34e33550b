"""What quantization costs a model: loss and accuracy, token by token on the same text."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.errors import UserError
from sinks.quantize.folds import folds_of
from sinks.quantize.inputs import KINDS
from sinks.quantize.linear import Kept, Replacement, quantized
from sinks.quantize.replacements import replacements_of
from sinks.quantize.rounding import Method
from sinks.quantize.schemes import Scheme
from sinks.quantize.sink_tokens import sink_tokens
from sinks.quantize.sqnr import decibels, output_noise
from sinks.quantize.subject import Subject
from sinks.quantize.transforms import Name

RESAMPLES = 2000
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
        for scores, targets in zip(logits(inputs), batch[:, 1:].to(inputs.device), strict=True):
            targets = targets.to(scores.device)
            losses.append(F.cross_entropy(scores.float(), targets, reduction="none").double().cpu())
            correct.append((scores.argmax(-1) == targets).double().cpu())
    return Scores(torch.stack(losses), torch.stack(correct))


def paired_change(before: Tensor, after: Tensor, seed: int, where: Tensor | None = None) -> dict[str, float]:
    """Mean change over tokens, with the 95 % interval of a bootstrap over the rows.

    Args:
        before: of each token [N, T].
        after: of the same tokens.
        seed: of the bootstrap.
        where: which tokens count [N, T] bool, one at least; all if not given. Rows may have none.
    """
    counted = torch.ones_like(before) if where is None else where.to(before.dtype)
    sums, counts = ((after - before) * counted).sum(1), counted.sum(1)
    drawn = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=torch.Generator().manual_seed(seed))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)  # NaN where no row with such a token was drawn
    low, high = means.nanquantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return {"mean": (sums.sum() / counts.sum()).item(), "low": low, "high": high}


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
    """

    scheme: Scheme
    transform: Name = "none"
    method: Method = "nearest"
    kinds: Sequence[str] = KINDS
    batch_size: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Original:
    """The model as it is, on the rows that are scored.

    Args:
        scores: of it.
        sinks: tokens that are attention sinks, [B, T - 1] bool of every batch; None if its attention cannot be read.
    """

    scores: Scores
    sinks: Sequence[Tensor] | None


def measure_original(subject: Subject, batch_size: int) -> Original:
    """What every scheme is compared with.

    Args:
        subject: model and text.
        batch_size: rows at a time.
    """
    rows = subject.rows.split(batch_size)
    sinks = sink_tokens(subject.sites, subject.logits, [row[:, :-1] for row in rows]) if subject.sites else None
    return Original(score(subject.logits, rows), sinks)


def measure(subject: Subject, options: Options, original: Original | None = None) -> dict[str, Any]:
    """The cost of a scheme: all at once, each kind of input alone, and with the first or the sink tokens kept.

    Args:
        subject: model and text.
        options: what is quantized, and how.
        original: the model as it is on rows of this batch size, if that is known.

    Raises:
        UserError: if there is no input of these kinds, a transform has no matrix, or an activation is not finite.
    """
    inputs = subject.inputs()
    chosen = [each for each in inputs if each.kind in options.kinds]
    if not chosen:
        there = ", ".join(dict.fromkeys(each.kind for each in inputs))
        raise UserError(f"{subject.name} has no input of kind {', '.join(options.kinds)}: give one of {there}")
    original = original or measure_original(subject, options.batch_size)
    rows, calibration = subject.rows.split(options.batch_size), subject.calibration.split(options.batch_size)
    replacements = replacements_of(
        chosen, options.scheme, options.transform, subject.logits, calibration, options.method
    )
    noise = output_noise(replacements, subject.logits, [row[:, :-1] for row in rows])

    def scored(replaced: Sequence[Replacement], masks: Sequence[Tensor] = ()) -> Scores:
        with quantized(subject.model, replaced) as kept:
            return score(subject.logits, rows, kept if masks else None, masks)

    def cost(after: Scores) -> dict[str, Any]:
        return {
            "loss": after.loss.mean().item(),
            "change": paired_change(original.scores.loss, after.loss, options.seed),
            "accuracy_change": paired_change(original.scores.correct, after.correct, options.seed),
        }

    quantizer = options.scheme.activations
    # Where a scale spans tokens, those that are kept would still set it.
    can_keep = quantizer is not None and quantizer.reach == "row" and all(each.per_token for each in chosen)
    after = scored(replacements)
    first = [torch.arange(row.shape[1] - 1, device=row.device).expand(len(row), -1) == 0 for row in rows]
    kinds = {
        kind: those
        for kind in dict.fromkeys(options.kinds)
        if (those := [each for each in replacements if each.input.kind == kind])
    }
    ratios = {
        kind: [noise[each.input.name] for each in those if each.input.name in noise] for kind, those in kinds.items()
    }
    found = {
        "loss": original.scores.loss.mean().item(),
        "accuracy": original.scores.correct.mean().item(),
        "quantized": cost(after),
        "first_token_kept": cost(scored(replacements, first)) if can_keep else None,
        "sink_tokens": None,
        "kinds_alone": {kind: cost(scored(those)) for kind, those in kinds.items()} if len(kinds) > 1 else {},
        "output_sqnr": {kind: decibels(mean(those)) for kind, those in ratios.items() if those},
        "output_sqnr_by_input": {name: decibels(ratio) for name, ratio in noise.items()},
        "folds": {kind: asdict(fold) for kind, fold in folds_of(options.transform, chosen, subject.around).items()},
    }
    if original.sinks is not None:
        found["sink_tokens"] = {
            **_split(torch.cat(list(original.sinks)).cpu(), original.scores, after, options.seed),
            "kept": cost(scored(replacements, original.sinks)) if can_keep else None,
        }
    return found


def _split(sinks: Tensor, before: Scores, after: Scores, seed: int) -> dict[str, Any]:
    """How many tokens [N, T] are sinks, and the change of loss in what is predicted at these, and at others."""
    return {
        "fraction": sinks.double().mean().item(),
        "first_token_fraction": sinks[:, 0].double().mean().item(),
        "change_at_sinks": paired_change(before.loss, after.loss, seed, sinks) if sinks.any() else None,
        "change_elsewhere": paired_change(before.loss, after.loss, seed, ~sinks) if not sinks.all() else None,
    }
