"""What quantization costs a model: loss and accuracy, token by token on the same text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.errors import UserError
from sinks.quantize.inputs import KINDS
from sinks.quantize.linear import Kept, Replacement, quantized
from sinks.quantize.replacements import replacements_of
from sinks.quantize.rounding import Method
from sinks.quantize.schemes import Scheme
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
def score(logits: Logits, batches: Sequence[Tensor], kept: Kept | None = None) -> Scores:
    """Score rows of token ids [B, T].

    Args:
        logits: of the model.
        batches: of rows.
        kept: of a quantized model, whose first token of each row is then left in high precision.
    """
    losses, correct = [], []
    for batch in batches:
        inputs = batch[:, :-1]
        if kept is not None:
            kept.mask = torch.zeros_like(inputs, dtype=torch.bool)
            kept.mask[:, 0] = True
        for scores, targets in zip(logits(inputs), batch[:, 1:].to(inputs.device), strict=True):
            targets = targets.to(scores.device)
            losses.append(F.cross_entropy(scores.float(), targets, reduction="none").double().cpu())
            correct.append((scores.argmax(-1) == targets).double().cpu())
    return Scores(torch.stack(losses), torch.stack(correct))


def paired_change(before: Tensor, after: Tensor, seed: int) -> dict[str, float]:
    """Mean change over tokens [N, T], with the 95 % interval of a bootstrap over the rows.

    Args:
        before: of each token.
        after: of the same tokens.
        seed: of the bootstrap.
    """
    rows = (after - before).mean(1)
    drawn = torch.randint(len(rows), (RESAMPLES, len(rows)), generator=torch.Generator().manual_seed(seed))
    low, high = rows[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=rows.dtype)).tolist()
    return {"mean": rows.mean().item(), "low": low, "high": high}


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


def measure(subject: Subject, options: Options, before: Scores | None = None) -> dict[str, Any]:
    """The cost of a scheme: all at once, each kind of input alone, and with the first token of each row kept.

    Args:
        subject: model and text.
        options: what is quantized, and how.
        before: scores of the model as it is, if they are known.

    Raises:
        UserError: if there is no input of these kinds, a transform has no matrix, or an activation is not finite.
    """
    found = subject.inputs()
    chosen = [each for each in found if each.kind in options.kinds]
    if not chosen:
        there = ", ".join(dict.fromkeys(each.kind for each in found))
        raise UserError(f"{subject.name} has no input of kind {', '.join(options.kinds)}: give one of {there}")
    activations = options.scheme.activations
    # Where a scale spans tokens, those that are kept would still set it.
    can_keep = activations is not None and activations.reach == "row" and all(each.per_token for each in chosen)
    rows, calibration = subject.rows.split(options.batch_size), subject.calibration.split(options.batch_size)
    replacements = replacements_of(
        chosen, options.scheme, options.transform, subject.logits, calibration, options.method
    )
    before = before or score(subject.logits, rows)

    def change(replaced: Sequence[Replacement], keep_first: bool = False) -> dict[str, Any]:
        with quantized(subject.model, replaced) as kept:
            after = score(subject.logits, rows, kept if keep_first else None)
        return {
            "loss": after.loss.mean().item(),
            "change": paired_change(before.loss, after.loss, options.seed),
            "accuracy_change": paired_change(before.correct, after.correct, options.seed),
        }

    noise = output_noise(replacements, subject.logits, [row[:, :-1] for row in rows])
    kinds = {
        kind: [each for each in replacements if each.input.kind == kind]
        for kind in options.kinds
        if any(each.kind == kind for each in chosen)
    }
    by_kind = {
        kind: [noise[each.input.name] for each in those if each.input.name in noise] for kind, those in kinds.items()
    }
    return {
        "loss": before.loss.mean().item(),
        "accuracy": before.correct.mean().item(),
        "quantized": change(replacements),
        "first_token_kept": change(replacements, keep_first=True) if can_keep else None,
        "kinds_alone": {kind: change(those) for kind, those in kinds.items()} if len(kinds) > 1 else {},
        "output_sqnr": {kind: decibels(mean(ratios)) for kind, ratios in by_kind.items() if ratios},
        "output_sqnr_by_input": {name: decibels(ratio) for name, ratio in noise.items()},
    }
