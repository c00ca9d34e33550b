"""What training minimizes. Validation always measures cross-entropy."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.errors import UserError, require
from sinks.families.stored import stored_model
from sinks.models.cross_entropy import cross_entropy
from sinks.models.norms import NormSite, OutputNormSite
from sinks.models.taps import editing

if TYPE_CHECKING:
    from sinks.families.causal_lm import CausalLM


class Objective:
    """Base: a scalar loss of a batch, and what it needs before the first one."""

    def check(self, model: "CausalLM") -> None:
        """Reject a model that this objective cannot train, at construction.

        Raises:
            UserError: naming what is missing.
        """

    def prepare(self, model: "CausalLM") -> None:
        """Called once the model is on its device, before a run starts or resumes."""

    def loss(self, model: "CausalLM", rows: Tensor) -> Tensor:
        """Of rows of token ids [B, T + 1]."""
        raise NotImplementedError


class NextToken(Objective):
    """Mean next-token cross-entropy."""

    def loss(self, model: "CausalLM", rows: Tensor) -> Tensor:
        return model.loss(rows)


class Distillation(Objective):
    """(1 - weight) * cross-entropy + weight * KL(original || model), means over tokens, in nats (arXiv:1503.02531).

    The original is the model of `start_from`, frozen, whole on every process, and not part of checkpoints.

    Args:
        weight: of the divergence; at 1 the targets do not count.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = require("distillation weight", weight, above=0, at_most=1, remedy="give e.g. 1")
        self.original: torch.nn.Module | None = None

    def check(self, model: "CausalLM") -> None:
        if model.start_from is None:
            raise UserError("Distillation needs the original model: give its run folder as model.start_from")

    def prepare(self, model: "CausalLM") -> None:
        assert model.start_from is not None
        self.original = stored_model(model.start_from)[0].requires_grad_(False).to(model.device)

    def loss(self, model: "CausalLM", rows: Tensor) -> Tensor:
        assert self.original is not None, "prepare() comes first"
        logits = model(rows[:, :-1]).flatten(0, 1)
        with torch.no_grad():
            original = self.original(rows[:, :-1]).flatten(0, 1)
        targets = cross_entropy(logits, rows[:, 1:].flatten())
        return (1 - self.weight) * targets + self.weight * divergence(original, logits)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax(p) || softmax(q)) in nats, mean over rows of logits [N, V], computed in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    log_p, log_q = (F.log_softmax(logits, dim=-1, dtype=wide) for logits in (p, q))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


class OutlierPenalty(Objective):
    """Another objective plus weight * the largest |h| of each row at each norm's input, mean over rows and norms.

    The norms are those that read the residual stream, not those of a sublayer's output: a sublayer can lower what such
    a norm reads without changing the model. Blocks run uncompiled.

    Args:
        weight: of the penalty; |h| of outliers is in the thousands.
        objective: to which it is added.
    """

    def __init__(self, weight: float = 1e-4, objective: Callable[[], Objective] = NextToken) -> None:
        self.weight = require("outlier penalty weight", weight, above=0, remedy="leave the penalty out for none")
        self.objective = objective()

    def check(self, model: "CausalLM") -> None:
        self.objective.check(model)

    def prepare(self, model: "CausalLM") -> None:
        self.objective.prepare(model)

    def loss(self, model: "CausalLM", rows: Tensor) -> Tensor:
        inputs: list[Tensor] = []

        def keep(h: Tensor) -> Tensor:
            inputs.append(h)
            return h

        norms = [m for m in model.modules() if isinstance(m, NormSite) and not isinstance(m, OutputNormSite)]
        with editing(model, dict.fromkeys((norm.input.site for norm in norms), keep)):
            loss = self.objective.loss(model, rows)
        # Outside the blocks: one that is checkpointed must save the same tensors when it is run again.
        peaks = [h.abs().amax(dim=(1, 2)).mean() for h in inputs]
        return loss + self.weight * torch.stack(peaks).mean()
