"""Trains a LightningModule that holds a transformers model: `python -m tests.interop.held_training FOLDER STRATEGY`."""

import sys
from pathlib import Path

import lightning
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from sinks.callbacks import SinkStatistics
from sinks.parallel.strategy import Sharded
from sinks.record.logger import RunFolderLogger
from tests.interop.families import build, tokens

ROWS = tokens(12, 12)  # 3 steps of 4
STRATEGIES = {"one": (1, "auto"), "ddp": (2, "ddp"), "fsdp2": (2, Sharded())}  # processes


class Held(lightning.LightningModule):
    """A user's own module; it shards its model as torch's documentation does, if the strategy has a mesh."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build("gpt-oss").train()

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            for block in self.model.model.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(self.model, mesh=mesh)

    def train_dataloader(self) -> DataLoader[Tensor]:
        processes = self.trainer.world_size
        return DataLoader(ROWS[self.global_rank :: processes], batch_size=4 // processes)  # type: ignore[arg-type]

    val_dataloader = train_dataloader

    def _loss(self, rows: Tensor, stage: str) -> Tensor:
        loss = self.model(rows, labels=rows, use_cache=False).loss
        self.log(f"{stage}/loss", loss, on_epoch=stage == "validation", sync_dist=True)
        return loss

    def training_step(self, rows: Tensor) -> Tensor:
        return self._loss(rows, "train")

    def validation_step(self, rows: Tensor) -> None:
        self._loss(rows, "validation")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Next to nothing, so that rounding in the gradients' sum cannot feed back into what is measured.
        return torch.optim.SGD(self.parameters(), lr=1e-12)


def train(folder: Path, strategy: str) -> None:
    processes, given = STRATEGIES[strategy]
    trainer = lightning.Trainer(
        accelerator="cpu", devices=processes, strategy=given, max_steps=3, logger=RunFolderLogger(str(folder)),
        callbacks=[SinkStatistics(interval=2, maps=False)], log_every_n_steps=1, num_sanity_val_steps=0,
        use_distributed_sampler=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Held())


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2])
