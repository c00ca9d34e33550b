"""A run of the suite in Python, without its command line: the same callbacks around the same run folder."""

from typing import Any

import lightning
import yaml
from lightning.pytorch.callbacks import Callback

from benchmarks.gpu_report.recipe import build
from sinks.callbacks import (
    Divergence,
    HealthNotes,
    LineProgress,
    Preemption,
    RunRecorder,
    SinkStatistics,
    Stability,
    Throughput,
)
from sinks.callbacks.divergence import Diverged
from sinks.data.module import TokenData
from sinks.models.execution import Execution
from sinks.record import RunFolder
from sinks.record.logger import RunFolderLogger
from sinks.record.provenance import config_fingerprint, provenance


def fit(
    folder: RunFolder,
    sections: dict[str, Any],
    data: TokenData,
    seed: int,
    compile: bool,
    callbacks: list[Callback],
    strategy: Any = "auto",
) -> dict[str, Any]:
    """Train into a run folder, validate at the end, and give the summary. Not resumed, no checkpoints.

    Args:
        folder: of the run.
        sections: `model` and `trainer` of a configuration.
        data: rows.
        seed: of initialisation.
        compile: whether blocks are compiled.
        callbacks: beside the suite's own.
        strategy: Lightning's.
    """
    lightning.seed_everything(seed, verbose=False)
    model = build(sections["model"], data.vocab_size, data.context_length, execution=Execution(compile=compile))
    recorder = RunRecorder(str(folder.path), folder.path.name)
    recorder.identity = {
        "variant": folder.path.name,
        "seed": seed,
        "config_fingerprint": config_fingerprint(sections, data.fingerprint()),
        "data_fingerprint": data.fingerprint(),
    }
    own = [recorder, SinkStatistics(), Stability(), Throughput(), Divergence(), Preemption()]
    trainer = lightning.Trainer(
        **sections["trainer"],
        strategy=strategy,
        logger=RunFolderLogger(str(folder.path)),
        callbacks=[*own, LineProgress(), HealthNotes(), *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
    )
    if trainer.is_global_zero:
        folder.write_config(yaml.safe_dump(sections))
        folder.write_provenance(provenance() | recorder.identity)
    try:
        trainer.fit(model, datamodule=data)
    except Diverged:
        recorder.diverged = True
    else:
        if recorder.validated_at != trainer.global_step:
            trainer.validate(model, datamodule=data, verbose=False)
    for logger in trainer.loggers:
        logger.finalize("success")
    return recorder.finish(trainer, model)
