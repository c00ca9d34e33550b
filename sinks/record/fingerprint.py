"""What distinguishes runs: sixteen hex digits of everything in a configuration that the results depend on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sinks.errors import UserError
from sinks.record.folder import RunFolder
from sinks.record.formats import FORMAT

# Where a run is stored and how it is observed, not what it computes.
NOT_FINGERPRINTED = (
    "run", "statistics", "progress", "notes", "checkpoints", "config", "ckpt_path", "weights_only", "verbose",
)  # fmt: skip
TRAINER_NOT_FINGERPRINTED = (
    "accelerator", "devices", "num_nodes", "strategy", "accumulate_grad_batches", "logger", "log_every_n_steps",
    "callbacks", "default_root_dir", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "profiler",
)  # fmt: skip
# How long one sitting of a run lasts; their defaults stand for them.
HOW_LONG_A_SITTING_LASTS = ("max_time", "max_epochs", "min_epochs", "min_steps")
# How a step's rows are distributed and read, and how a block is run, may change when a run resumes.
HOW_ROWS_ARE_READ = ("batch_size", "validation_batch_size", "num_workers")
# What the data's own fingerprint states already.
IN_THE_DATA = ("tokenizer",)
HOW_BLOCKS_ARE_RUN = ("execution",)

# Options of `model.architecture` that were added later, and the value that stands for what was there before: at it a
# run is the same run as before.
PLAIN_FREQUENCIES = {"class_path": "sinks.models.rope.Frequencies"}
ADDED_TO_ARCHITECTURE = {
    "rope_fraction": 1.0,
    "rope_frequencies": PLAIN_FREQUENCIES,
    "layer_pattern": [],
    "attention_scale": None,
    "qk_norm_eps": 1e-6,
}
# The same of `model` itself, of its optimization, of its normalizer and of its output gate.
ADDED_TO_MODEL = {
    "start_from": None,
    "objective": {"class_path": "sinks.families.objectives.NextToken"},
    "averaging": {"class_path": "sinks.families.averaging.NoAveraging"},
    "feed_forward_norm": None,
    "output_norm": {"class_path": "sinks.models.norms.IdentityNorm"},
    "exclusion": {"class_path": "sinks.models.exclusion.NoExclusion"},
    "key_gate": {"class_path": "sinks.models.key_gates.NoKeyGate"},
}
ADDED_TO_OPTIMIZATION = {"decay_fraction": 0.2}
ADDED_TO_NORMALIZER = {"initial": 0.0}
ADDED_TO_GATE = {"dimensions": None}


def config_fingerprint(config: Mapping[str, Any], data_fingerprint: str) -> str:
    """Sixteen hex digits of everything in a resolved configuration that the results depend on."""
    relevant = {k: v for k, v in config.items() if k not in NOT_FINGERPRINTED}
    trainer = relevant.get("trainer") or {}
    relevant["trainer"] = {k: v for k, v in trainer.items() if k not in TRAINER_NOT_FINGERPRINTED}
    relevant["trainer"] |= dict.fromkeys(HOW_LONG_A_SITTING_LASTS)
    if "model" in relevant:
        relevant["model"] = _as_before(relevant["model"])
    relevant["data_fingerprint"] = data_fingerprint
    return hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _as_before(model: Any) -> Any:
    """A model section without later options at their defaults."""
    if not isinstance(model, Mapping) or not isinstance(model.get("init_args"), Mapping):
        return model
    options = _kept(model["init_args"], ADDED_TO_MODEL)
    for section, added in (("architecture", ADDED_TO_ARCHITECTURE), ("optimization", ADDED_TO_OPTIMIZATION)):
        if isinstance(options.get(section), Mapping):
            options[section] = _kept(options[section], added)
    for name, later in (("normalizer", ADDED_TO_NORMALIZER), ("attention_gate", ADDED_TO_GATE)):
        part = options.get(name)
        if isinstance(part, Mapping) and isinstance(part.get("init_args"), Mapping):
            options[name] = {**part, "init_args": _kept(part["init_args"], later)}
    return {**model, "init_args": options}


def _kept(options: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in added or value != added[key]}


@dataclass(frozen=True)
class DataIdentity:
    """What names the data of a run.

    Args:
        fingerprint: of the rows in their order.
        content: of the rows apart from the data seed.
        places: options that say where the data is stored, which does not count: option -> default, standing for it.
    """

    fingerprint: str
    content: str
    places: Mapping[str, Any] = field(default_factory=dict)


def identity(
    config: Mapping[str, Any],
    variant: str,
    data: DataIdentity,
    rows_per_step: int,
    stopping: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What names a run, and distinguishes it from others.

    Args:
        config: resolved: `seed_everything`, and `model` and `data` as `class_path` and `init_args`.
        variant: name of the run in reports.
        data: identity of the rows.
        rows_per_step: over all processes.
        stopping: options of the rules by which the run may end before its last step.

    Returns:
        `variant`, `seed` (None without one), `config_fingerprint`, `data_fingerprint`, and what all seeds share:
        `variant_fingerprint` and `content_fingerprint`.
    """
    section = _without(config["data"], *HOW_ROWS_ARE_READ, *IN_THE_DATA)
    section["init_args"] |= {**data.places, "rows_per_step": rows_per_step}
    whole = {**config, "model": _without(config["model"], *HOW_BLOCKS_ARE_RUN), "data": section}
    whole |= {"stopping": list(stopping)} if stopping else {}
    seed = config["seed_everything"]
    return {
        "variant": variant,
        "seed": None if seed is False else seed,
        "config_fingerprint": config_fingerprint(whole, data.fingerprint),
        "variant_fingerprint": config_fingerprint(
            whole | {"seed_everything": None, "data": _without(section, "seed")}, ""
        ),
        "data_fingerprint": data.fingerprint,
        "content_fingerprint": data.content,
    }


def _without(section: Mapping[str, Any], *options: str) -> dict[str, Any]:
    return {**section, "init_args": {k: v for k, v in section["init_args"].items() if k not in options}}


def reject_another_run(folder: RunFolder, own: Mapping[str, Any], option: str = "--run.dir") -> None:
    """Reject a folder that holds a run of another configuration or format, or one that cannot be told.

    Args:
        folder: of the run.
        own: identity of the run that is to be written.
        option: of the command, by which another folder is chosen.
    """
    if not folder.has_provenance:
        if folder.begun:
            raise UserError(
                f"{folder.path} holds a run without provenance.json, which states of which configuration it is: "
                f"restore the file, or choose another {option}"
            )
        return
    if folder.format != FORMAT:
        raise UserError(
            f"{folder.path} holds a run of format {folder.format}, which can be reported and validated but not "
            f"resumed: choose another {option}"
        )
    fingerprint = folder.provenance().get("config_fingerprint")
    if fingerprint != own["config_fingerprint"]:
        raise UserError(
            f"{folder.path} holds a run of another configuration (fingerprint {fingerprint}, "
            f"not {own['config_fingerprint']}): choose another {option} or remove the folder"
        )
