"""Saves the state of every random generator in the checkpoint; Lightning does not."""

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

State = dict[str, Any]


def random_state() -> State:
    """State of this process's generators (Python, NumPy, torch on the CPU and on its GPU), as tensors and numbers."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: State = {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: State) -> None:
    """Inverse of `random_state`; a GPU's state is ignored without a GPU."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class RandomState(Callback):
    """Carries the generators of every rank through a checkpoint, so that a resumed run draws the same numbers.

    They are restored once the first batch after a resume is loaded, because loaders draw too. At another number of
    ranks every rank keeps its initial generators.
    """

    def __init__(self) -> None:
        self._resumed: list[State] | None = None

    def state_dict(self) -> dict[str, Any]:
        own = random_state()
        if not (dist.is_available() and dist.is_initialized()):
            return {"ranks": [own]}
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, own)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict["ranks"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._resumed is not None and len(self._resumed) == trainer.world_size:
            restore_random_state(self._resumed[trainer.global_rank])
        self._resumed = None
