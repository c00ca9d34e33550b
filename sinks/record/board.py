"""What TensorBoard shows of a run: names of tags, the overview it opens on, the configuration and hyperparameters.

Only TensorBoard renames: metrics.jsonl and other loggers keep the names of docs/statistics.md. Groups are sorted by
name there, so those to look at first begin with a digit.
"""

from collections.abc import Mapping
from typing import Any

OVERVIEW, BY_LAYER, MAPS, HISTOGRAMS, TRAINING = (
    "1_overview", "2_by_layer", "3_maps", "4_histograms", "5_training",
)  # fmt: skip
# Statistics of the overview with their names there, and the heading of their chart.
CHARTS = {
    "loss": ("loss", "Loss (nats per token)"),
    "attention/first_token_mass_max_head": ("first_token_mass_strongest_head", "First-token mass, strongest head"),
    "residual/sink_score": ("residual_sink_score_R", "Residual sink score R"),
    "residual/max_abs": ("largest_abs_h", "Largest |h|, all tokens but the first"),
    "residual/max_abs_first_token": ("largest_abs_h_first_token", "Largest |h| of the first token"),
    "attention/effective_weight": ("effective_weight", "Effective weight: attention that is used"),
    "attention/value_norm_ratio_max_head": ("first_token_value_norm", "First token's value norm over the median"),
    "norm/gain_at_sink": ("norm_gain_at_sink", "Norm's gain at the sink dimension"),
}
# The same of what only some models have, on a page of its own.
PARTS = {
    "attention/learned_sink_mass": ("learned_sink_mass", "Mass on learned sinks"),
    "attention/gate_mean": ("attention_gate", "Mean of the attention gate"),
    "norm/gate_mean": ("norm_gate", "Mean of the norm's gate"),
    "residual/clipped_share": ("clipped", "Fraction of values that are clipped"),
}
# Charts of another page: everything below a tag of the group, a line per layer or site.
LAYER_CHARTS = {
    "first_token_mass": "First-token mass of each layer's strongest head",
    "residual_sink_score_R": "R of each norm's input",
    "largest_abs_h": "Largest |h| of each norm's input, all tokens but the first",
}
TRAINING_CHARTS = {
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm, before clipping",
    "tokens_per_second": "Tokens per second",
}
# Hyperparameters: where the configuration has them. Axes of a model are the names of their classes.
AXES = (
    "normalizer", "attention_gate", "norm", "feed_forward_norm", "head_norm", "output_norm", "residual_clip",
    "feed_forward", "mixer", "exclusion", "key_gate", "optimizer", "objective", "averaging",
)  # fmt: skip
NUMBERS = {
    "seed": "seed_everything",
    "steps": "trainer.max_steps",
    "lr": "model.init_args.optimization.lr",
    "batch_size": "data.init_args.batch_size",
    "context_length": "data.init_args.context_length",
    **{
        name: f"model.init_args.architecture.{name}"
        for name in ("d_model", "n_layers", "n_heads", "head_dim", "ffn_hidden")
    },
}
WORDS = {"1_variant": "run.variant", "precision": "trainer.precision"}


def tag_of(key: str) -> str:
    """The tag of a logged number, e.g. `attention/entropy/validation` of `validation/attention/entropy`."""
    stage, _, name = key.partition("/")
    if stage not in ("train", "validation"):
        return f"{TRAINING}/{key}"
    if named := CHARTS.get(name) or PARTS.get(name):
        return f"{OVERVIEW}/{named[0]}/{stage}"
    return f"{name}/{stage}" if "/" in name else f"{TRAINING}/{name}"


def layout() -> dict[str, dict[str, tuple[str, list[str]]]]:
    """Of the custom scalars dashboard, as `SummaryWriter.add_custom_scalars` takes it; tags are patterns."""

    def lines(pattern: str) -> tuple[str, list[str]]:
        return "Multiline", [pattern]

    return {
        "Sinks": {title: lines(f"{OVERVIEW}/{name}/.*") for name, title in CHARTS.values()},
        "Gates, learned sinks and clips": {title: lines(f"{OVERVIEW}/{name}/.*") for name, title in PARTS.values()},
        "By layer": {title: lines(f"{BY_LAYER}/{name}/.*") for name, title in LAYER_CHARTS.items()},
        "Training": {title: lines(f"{TRAINING}/{name}") for name, title in TRAINING_CHARTS.items()},
    }


def hyperparameters(config: Mapping[str, Any]) -> dict[str, str | float]:
    """What tells runs apart, of those names that the configuration has."""
    model = config.get("model") or {}
    found: dict[str, str | float] = {"family": _class_name(model)} if model.get("class_path") else {}
    for name, place in WORDS.items():
        if (value := _at(config, place)) is not None:
            found[name] = str(value)
    for name in AXES:
        if (value := _at(model, f"init_args.{name}")) is not None:
            found[name] = _class_name(value)
    for name, place in NUMBERS.items():
        if isinstance(value := _at(config, place), (int, float)):
            found[name] = float(value)
    return found


def _class_name(value: Any) -> str:
    return str(value.get("class_path") if isinstance(value, Mapping) else value).rpartition(".")[2]


def _at(config: Any, place: str) -> Any:
    for key in place.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def describe(writer: Any, config: Mapping[str, Any], text: str) -> None:
    """Write the overview's layout, the configuration, and the hyperparameters, which are in every run the same ones.

    Args:
        writer: torch's SummaryWriter.
        config: of the run.
        text: of config.yaml.
    """
    from torch.utils.tensorboard.summary import hparams

    writer.add_custom_scalars(layout())
    writer.add_text("config", f"```yaml\n{text}\n```")
    columns = dict.fromkeys(("family", *WORDS, *AXES), "") | dict.fromkeys(NUMBERS, 0.0)
    metrics = {f"{OVERVIEW}/{name}/validation": None for name, _ in CHARTS.values()}
    writer.file_writer.add_summary(hparams(columns, metrics)[0])
    writer.file_writer.add_summary(hparams(hyperparameters(config), {})[1])
