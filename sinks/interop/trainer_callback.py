"""The suite's statistics in a run of transformers' own Trainer."""

from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sinks.errors import require
from sinks.interop.find import find_sites
from sinks.observe import Reader


class TrainerStatistics(TrainerCallback):
    """Reads sampled training steps and logs their statistics under `train/`, as `SinkStatistics` does in Lightning.

        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.add_callback(TrainerStatistics(trainer))

    A sampled step is read as a whole, each of the batches that are accumulated for it; ranks are summed exactly. Rows
    that are packed without showing where documents start, by a mask or by `cu_seq_lens_q` alone, have no statistics.

    Args:
        trainer: whose `log` gets the statistics.
        interval: optimizer steps between sampled steps; the first is sampled too.
        groups: names of the groups to read; all by default.
        sink_dimensions: how many dimensions count as the residual sink of a site.
        document_start: id of the first token of every document, where rows hold several and attention runs across them:
            each is then read on its own. Rows that `DataCollatorWithFlattening` packs need none.
    """

    def __init__(
        self,
        trainer: Trainer,
        interval: int = 50,
        groups: list[str] | None = None,
        sink_dimensions: int = 1,
        document_start: int | None = None,
    ) -> None:
        self.interval = require("interval", interval, at_least=1, remedy="give a positive number")
        self._trainer, self._groups, self._sink_dimensions = trainer, groups, sink_dimensions
        self._document_start = document_start
        self._reader: Reader | None = None
        self._sampling = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        sites = find_sites(kwargs["model"], self._document_start, skip_unknown_documents=True)
        self._reader = Reader(sites, self._groups, self._sink_dimensions)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = state.global_step + 1  # this step's number once it is done
        self._sampling = step == 1 or step % self.interval == 0
        if self._sampling and self._reader is not None:
            torch.compiler.set_stance("force_eager")
            self._reader.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._sampling and self._reader is not None:
            self._sampling = False
            self._reader.stop()
            torch.compiler.set_stance("default")
            scalars, _ = self._reader.summarize(state.global_step)
            if scalars:
                self._trainer.log({f"train/{name}": value for name, value in scalars.items()})
