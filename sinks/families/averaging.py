"""Averages of the weights over optimizer steps, with which a run is validated and in which it ends."""

from collections.abc import Iterator

import lightning
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from sinks.errors import UserError, require

KEY = "average"  # of a parameter's state in the optimizer


class Averaging:
    """Base: validation and the end of a run use the current weights."""

    description: str | None = None
    copies = 0  # of the parameters, on top of the optimizer's moments

    def follow(self, optimizer: Optimizer, trainer: lightning.Trainer) -> None:
        """Called once, with the optimizer of a run that starts or resumes."""

    def exchange(self, model: nn.Module) -> None:
        """Exchange a model's weights with their averages; a second call undoes the first."""


class NoAveraging(Averaging):
    """The weights of the last step."""


class RunningAverage(Averaging):
    """Base: an average of the weights over optimizer steps; training itself never reads it.

    Validation within a run reads the average, and the last step ends in it, so that summary.json, the last checkpoint
    and whoever loads the run have the same weights. An earlier checkpoint holds both: the average is a part of the
    optimizer's state, sharded as its moments are.
    """

    copies = 1
    _optimizer: Optimizer | None = None

    def weight(self, step: int, max_steps: int) -> float:
        """Fraction of the current weights in the average.

        Args:
            step: optimizer step that has just been made, from 1.
            max_steps: last step of the run.
        """
        raise NotImplementedError

    def follow(self, optimizer: Optimizer, trainer: lightning.Trainer) -> None:
        """Average after every step of an optimizer, without a host sync.

        Raises:
            UserError: if the run may end before its last step, or has parameters below float32.
        """
        name = type(self).__name__
        if trainer.early_stopping_callbacks:
            raise UserError(
                f"model.averaging is {name}, which ends in the average at trainer.max_steps, but an EarlyStopping "
                "callback may end the run before: remove one of them"
            )
        dtypes = {parameter.dtype for group in optimizer.param_groups for parameter in group["params"]}
        for dtype in dtypes - {torch.float32, torch.float64}:
            raise UserError(
                f"model.averaging is {name}, but parameters are {dtype}, too coarse for small changes of an average: "
                "give --trainer.precision bf16-mixed or 32-true"
            )

        @torch.no_grad()
        def update(optimizer: Optimizer, *_: object) -> None:
            step, max_steps = trainer.global_step + 1, trainer.max_steps
            averages, current = [], []
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        state = optimizer.state[parameter]
                        if KEY not in state:
                            state[KEY] = parameter.detach().clone()
                        averages.append(_local(state[KEY]))
                        current.append(_local(parameter))
            torch._foreach_lerp_(averages, current, self.weight(step, max_steps))
            if step == max_steps:
                torch._foreach_copy_(current, averages)

        optimizer.register_step_post_hook(update)
        self._optimizer = optimizer

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the root keeps its whole weights after a forward pass without a backward pass
        for parameter, average in self._averages():
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def _averages(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._optimizer is not None:
            for parameter, state in self._optimizer.state.items():
                if KEY in state:
                    yield _local(parameter), _local(state[KEY])


class ExponentialAverage(RunningAverage):
    """a_t = sum_i d^(t - i) w_i / sum_i d^(t - i) over the steps i = 1 ... t: without a bias to the first weights.

    Args:
        decay: d of a step; the average spans about 1 / (1 - d) steps.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = require("averaging decay", decay, above=0, below=1, remedy="give e.g. 0.99")
        self.description = f"exponential average, decay {decay:g}"

    def weight(self, step: int, max_steps: int) -> float:
        return (1 - self.decay) / (1 - self.decay**step)


class MeanOfLast(RunningAverage):
    """The mean of the weights after each of the last steps; before these, the current weights.

    Args:
        fraction: of all steps that count as last.
    """

    def __init__(self, fraction: float = 0.2) -> None:
        self.fraction = require("averaging fraction", fraction, above=0, at_most=1, remedy="give e.g. 0.2")
        self.description = f"mean over the last {fraction:g} of the steps"

    def weight(self, step: int, max_steps: int) -> float:
        first = max_steps - max(1, round(self.fraction * max_steps)) + 1
        return 1 / max(1, step - first + 1)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
