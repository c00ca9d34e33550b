"""What training minimizes. Validation always measures cross-entropy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.errors import UserError, require
from sinks.families.stored import stored_model
from sinks.models.cross_entropy import cross_entropy
from sinks.models.norms import NormSite, OutputNormSite
from sinks.models.taps import editing, taps_of

if TYPE_CHECKING:
    from sinks.families.causal_lm import CausalLM


class Objective:
    """Base: a scalar loss of a batch, and what it needs before the first one."""

    whole_logits = False  # whether it reads the model's logits, and not its loss alone

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

    def terms(self, model: "CausalLM", rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The loss of the task, which is logged as train/loss, and what is added to it; None if nothing is."""
        return self.loss(model, rows), None


class WithAuxiliary(Objective):
    """Base: another objective plus an auxiliary loss. A subclass writes `terms`.

    Args:
        objective: to which it is added.
    """

    def __init__(self, objective: Callable[[], Objective]) -> None:
        self.objective = objective()
        self.whole_logits = self.objective.whole_logits

    def check(self, model: "CausalLM") -> None:
        self.objective.check(model)

    def prepare(self, model: "CausalLM") -> None:
        self.objective.prepare(model)

    def loss(self, model: "CausalLM", rows: Tensor) -> Tensor:
        task, auxiliary = self.terms(model, rows)
        return task if auxiliary is None else task + auxiliary


def added(auxiliary: Tensor | None, own: Tensor) -> Tensor:
    """An auxiliary loss beside those of the objective that it is added to."""
    return own if auxiliary is None else auxiliary + own


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

    whole_logits = True

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


class OutlierPenalty(WithAuxiliary):
    """Another objective plus weight * the largest |h| of each row at each norm's input, mean over rows and norms.

    Not the loss of TWEO (`PowerPenalty`), which is on every value of the blocks' outputs.

    The norms are those that read the residual stream, not those of a sublayer's output: a sublayer can lower what such
    a norm reads without changing the model. Blocks run uncompiled.

    Args:
        weight: of the penalty; |h| of outliers is in the thousands.
        objective: to which it is added.
    """

    def __init__(self, weight: float = 1e-4, objective: Callable[[], Objective] = NextToken) -> None:
        super().__init__(objective)
        self.weight = require("outlier penalty weight", weight, above=0, remedy="leave the penalty out for none")

    def terms(self, model: "CausalLM", rows: Tensor) -> tuple[Tensor, Tensor | None]:
        norms = [m for m in model.modules() if isinstance(m, NormSite) and not isinstance(m, OutputNormSite)]
        with keeping(model, [norm.input.site for norm in norms]) as inputs:
            task, auxiliary = self.objective.terms(model, rows)
        # Outside the blocks: one that is checkpointed must save the same tensors when it is run again.
        peaks = [h.abs().amax(dim=(1, 2)).mean() for h in inputs]
        return task, added(auxiliary, self.weight * torch.stack(peaks).mean())


class PowerPenalty(WithAuxiliary):
    """Another objective plus weight * mean over blocks of E[(|h| / scale)^power], h all values of a block's output.

    TWEO (Liang et al. 2025, arXiv:2511.23225), whose numbers are the defaults: values below the scale cost next to
    nothing, one of ten times the scale 10,000 times what one of the scale costs. Its weight may also be annealed there;
    here it is constant. Powers are computed in float32 or wider. Blocks run uncompiled.

    Args:
        weight: of the penalty.
        scale: tau, below which values are ordinary.
        power: p.
        objective: to which it is added.
    """

    def __init__(
        self,
        weight: float = 0.01,
        scale: float = 3.0,
        power: float = 4.0,
        objective: Callable[[], Objective] = NextToken,
    ) -> None:
        super().__init__(objective)
        self.weight = require("power penalty weight", weight, above=0, remedy="leave the penalty out for none")
        self.scale = require("power penalty scale", scale, above=0, remedy="give e.g. 3")
        self.power = require("power penalty power", power, at_least=1, remedy="give e.g. 4")

    def terms(self, model: "CausalLM", rows: Tensor) -> tuple[Tensor, Tensor | None]:
        sites = [tap.site for tap in taps_of(model) if tap.site.endswith(".residual.out")]
        with keeping(model, sites) as outputs:
            task, auxiliary = self.objective.terms(model, rows)
        wide = [h.to(torch.promote_types(h.dtype, torch.float32)) for h in outputs]
        powers = [(h.abs() / self.scale).pow(self.power).mean() for h in wide]
        return task, added(auxiliary, self.weight * torch.stack(powers).mean())


@contextmanager
def keeping(model: torch.nn.Module, sites: Sequence[str]) -> Iterator[list[Tensor]]:
    """What passes the taps at these sites inside the `with` block, with gradients; compiled blocks run eagerly."""
    found: list[Tensor] = []

    def keep(h: Tensor) -> Tensor:
        found.append(h)
        return h

    with editing(model, dict.fromkeys(sites, keep)):
        yield found
