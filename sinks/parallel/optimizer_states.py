"""Optimizer states by index, as in torch.optim, and by name, as in torch.distributed.checkpoint."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer


def _members(state: Mapping[str, Any]) -> list[Any]:
    return [member for group in state["param_groups"] for member in group["params"]]


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    groups = [group | {"params": [names[member] for member in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[member]: value for member, value in state["state"].items()}, "param_groups": groups}


def state_by_index(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state, by name, with its parameters numbered in the order of their groups."""
    return _renamed(state, {name: number for number, name in enumerate(_members(state))})


def state_by_name(state: Mapping[str, Any], model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """A state with its parameters named.

    Only the position within the groups identifies a numbered parameter: one process counts group by group, Lightning's
    sharded strategies count in the order of the model.

    Args:
        state: `state` and `param_groups`, by number or by name.
        model: whose names are given.
        optimizer: of that model, with the groups that the state has.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    own = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return _renamed(state, dict(zip(_members(state), own, strict=True)))
