"""Parameter groups by the modules that own the parameters, and optimizers over these groups."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from sinks.errors import UserError, require
from sinks.models.counting import modules_by_kind

Groups = list[dict[str, Any]]
OptimizerFactory = Callable[[Groups], Optimizer]


@dataclass(frozen=True)
class Optimization:
    """Hyperparameters of the optimizer, and the learning-rate schedule.

    Args:
        lr: peak learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: of parameters with two or more dimensions.
        scale_weight_decay: of gains, biases and sinks; decay on gains is a first-order confound.
        scale_lr_multiplier: factor on the learning rate of gains, biases and sinks.
        warmup_steps: steps of linear warm-up.
        schedule: after the warm-up: constant, or a cosine or straight line down to `final_lr_ratio` at the last step;
            `wsd` (warmup-stable-decay, arXiv:2404.06395) is constant, and the straight line only at the end.
        final_lr_ratio: last learning rate over the peak.
        decay_fraction: of all steps, the last ones in which `wsd` decays.
    """

    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    scale_weight_decay: float = 0.0
    scale_lr_multiplier: float = 1.0
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    final_lr_ratio: float = 0.1
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        require("optimization.lr", self.lr, above=0, remedy="give e.g. 3e-3")
        require("optimization.eps", self.eps, above=0, remedy="give e.g. 1e-8")
        for beta in self.betas:
            require("one of optimization.betas", beta, at_least=0, below=1, remedy="give e.g. [0.9, 0.95]")
        for name in ("weight_decay", "scale_weight_decay", "scale_lr_multiplier", "warmup_steps"):
            require(f"optimization.{name}", getattr(self, name), at_least=0, remedy="give 0 for none")
        require("optimization.final_lr_ratio", self.final_lr_ratio, at_least=0, at_most=1, remedy="give 1 for no decay")
        require("optimization.decay_fraction", self.decay_fraction, above=0, at_most=1, remedy="give e.g. 0.2")

    def factor(self, step: int, max_steps: int) -> float:
        """Learning rate of optimizer step `step` (from 0) over the peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps))
        decayed = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": (1 + math.cos(math.pi * progress)) / 2,
            "wsd": min(1.0, max(0, max_steps - step) / max(1.0, self.decay_fraction * max_steps)),
        }
        return self.final_lr_ratio + (1 - self.final_lr_ratio) * decayed[self.schedule]


def parameter_groups(model: nn.Module, optimization: Optimization) -> Groups:
    """Every trained parameter of a model in exactly one group.

    Scales (gains, biases, sinks: fewer than two dimensions, or named in their module's `no_decay`) are separate
    from weights. Weights are `hidden` matrices, `gates` (matrices of gates), and `embeddings` with everything else:
    head, routers of experts, and what has more dimensions.

    Args:
        model: on any device.
        optimization: learning rates, decay, moments.

    Returns:
        Groups as torch.optim takes them, each with a `name`; empty ones are left out.

    Raises:
        UserError: if a module names a parameter in `no_decay` that it does not have.
    """
    named: dict[str, list[nn.Parameter]] = {"hidden": [], "gates": [], "embeddings": [], "scales": []}
    seen: set[nn.Parameter] = set()
    for kind, module in modules_by_kind(model):
        own = dict(module.named_parameters(recurse=False))
        no_decay = getattr(module, "no_decay", ())
        for name in no_decay:
            if name not in own:
                raise UserError(
                    f"{type(module).__name__}.no_decay has {name!r}, but its parameters are "
                    f"{', '.join(own) or 'none'}: name one of them"
                )
        for name, parameter in own.items():
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            named[_group_of(kind, parameter, name in no_decay)].append(parameter)
    shared = {"betas": optimization.betas, "eps": optimization.eps}
    weights = shared | {"lr": optimization.lr, "weight_decay": optimization.weight_decay}
    scale_lr = optimization.lr * optimization.scale_lr_multiplier
    scales = shared | {"lr": scale_lr, "weight_decay": optimization.scale_weight_decay}
    return [
        {"params": members, "name": name} | (scales if name == "scales" else weights)
        for name, members in named.items()
        if members
    ]


def _group_of(kind: str, parameter: nn.Parameter, no_decay: bool) -> str:
    if parameter.dim() < 2 or no_decay:
        return "scales"
    if kind in ("embedding", "head", "routers") or parameter.dim() > 2:
        return "embeddings"
    return "gates" if kind.endswith("gates") else "hidden"


class AdamW(torch.optim.AdamW):
    """AdamW (arXiv:1711.05101), in torch's fused form.

    Args:
        groups: of parameters, each with its learning rate, decay and moments.
    """

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups, fused=True)


class MuonAdamW(Optimizer):
    """Muon on matrices (torch.optim.Muon), AdamW on embedding, head, routers, scales and, by default, gates.

    Gates are those of attention's outputs and keys, and of norms. Stacks of experts and short convolutions, of three
    dimensions, are AdamW's too.

    Muon's update is scaled to the RMS of AdamW's, so that one learning rate and decay serve both.

    Args:
        groups: of parameters, each with its learning rate, decay and moments.
        momentum: of Muon.
        gates: what updates the matrices of gates.

    Raises:
        UserError: if parameters are sharded: orthogonalization needs unsharded matrices.
    """

    def __init__(self, groups: Groups, momentum: float = 0.95, gates: Literal["muon", "adamw"] = "adamw") -> None:
        if any(isinstance(p, DTensor) for group in groups for p in group["params"]):
            raise UserError("MuonAdamW needs unsharded matrices, but the strategy shards them: use ddp, or AdamW")
        require("optimizer momentum", momentum, at_least=0, below=1, remedy="give e.g. 0.95")
        matrices = {"hidden", "gates"} if gates == "muon" else {"hidden"}
        self._muon = torch.optim.Muon(
            [_without(group, "betas", "eps") for group in groups if group["name"] in matrices],
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = torch.optim.AdamW([group for group in groups if group["name"] not in matrices], fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner in (self._muon, self._adamw):
            # Loading a checkpoint replaces both.
            inner.param_groups = [g for g in self.param_groups if ("ns_steps" in g) == (inner is self._muon)]
            inner.state = self.state
            inner.step()
        return loss


def _without(group: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in names}


def make_optimizer(factory: OptimizerFactory, groups: Groups) -> Optimizer:
    """An optimizer that updates every parameter of the groups, each once.

    Raises:
        UserError: if it rejects one of its options, or a parameter is missing or duplicated.
    """
    try:
        optimizer = factory(groups)
    except ValueError as error:
        raise UserError(f"the optimizer cannot be built: {error}") from error
    check_coverage(optimizer, groups)
    return optimizer


def placeholders(groups: Groups) -> Groups:
    """The same groups over tiny parameters on the CPU, to try an optimizer before there is a model."""
    return [
        group
        | {"params": [nn.Parameter(torch.empty([1] * parameter.dim(), device="cpu")) for parameter in group["params"]]}
        for group in groups
    ]


def check_coverage(optimizer: Optimizer, groups: Groups) -> None:
    """Validate that an optimizer updates every parameter of the groups, each once.

    Raises:
        UserError: if one is missing or duplicated.
    """
    given = [p for group in groups for p in group["params"]]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if len(held) != len(given) or set(held) != set(given):
        raise UserError(
            f"{type(optimizer).__name__} updates {len(set(held))} of the model's {len(given)} parameters"
            f"{', some twice' if len(held) != len(set(held)) else ''}: let it take every group"
        )


class SkipGuard:
    """Lets an optimizer step leave the weights unchanged, decided on the device, without a host sync.

    torch's fused Adams support it. For any other optimizer the weights are copied before the update and restored after
    it; its states are not, so do not continue training after a failure.

    Args:
        optimizer: any.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._native = isinstance(optimizer, torch.optim.Adam) and all(g.get("fused") for g in optimizer.param_groups)
        self._failed: Tensor | None = None
        self._kept: list[Tensor] = []
        optimizer.register_step_post_hook(self._put_back)

    def arm(self, failed: Tensor) -> None:
        """Decide on the next update; call it when the gradients are computed.

        Args:
            failed: bool scalar on the parameters' device: whether to leave the weights unchanged.
        """
        if self._native:
            self._optimizer.found_inf = failed.float()  # type: ignore[attr-defined]  # as torch's gradient scaler does
        else:
            self._failed, self._kept = failed, [p.detach().clone() for p in self._updated()]

    def _updated(self) -> Iterable[Tensor]:
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    yield p.to_local() if isinstance(p, DTensor) else p

    @torch.no_grad()
    def _put_back(self, *_: Any) -> None:
        if self._failed is not None:
            for p, old in zip(self._updated(), self._kept, strict=True):
                p.copy_(torch.where(self._failed, old, p))
            self._failed, self._kept = None, []
