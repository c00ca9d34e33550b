"""What TensorBoard shows: the tags of numbers, the overview, and hyperparameters out of a configuration."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from sinks.callbacks.maps import by_layer
from sinks.families import CausalLM
from sinks.record import RunFolder, board
from sinks.record.board import tag_of
from tests.report.synthetic import Levels, write_run


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        ("train/loss", "1_overview/loss/train"),
        ("validation/residual/sink_score", "1_overview/residual_sink_score_R/validation"),
        ("validation/attention/entropy", "attention/entropy/validation"),
        ("train/norm/gain_at_sink_attention", "norm/gain_at_sink_attention/train"),
        ("train/gradient_norm", "5_training/gradient_norm"),
        ("wall_s", "5_training/wall_s"),
    ],
)
def test_tags(key: str, tag: str) -> None:
    assert tag_of(key) == tag


def test_no_two_numbers_share_a_tag_and_every_chart_has_one(tmp_path: Path) -> None:
    from sinks.observe.summary import SCALARS
    from sinks.record.board import BY_LAYER

    keys = [f"{stage}/{name}" for stage in ("train", "validation") for name in (*SCALARS, "loss")]
    # `derived` adds numbers that are no reduction of one array.
    keys += [f"validation/{name}" for name in (*board.CHARTS, *board.PARTS) if f"validation/{name}" not in keys]
    keys += ["train/learning_rate", "train/gradient_norm", "train/tokens_per_second", "tokens"]
    tags = [tag_of(key) for key in keys]
    assert len(set(tags)) == len(tags)
    statistics = write_run(tmp_path / "run", "baseline", 0, Levels()).statistics()
    statistics.arrays["residual/max_abs"] = statistics.arrays["residual/sink_score"][..., None].repeat(2, -1)
    tags += by_layer(statistics)
    for charts in board.layout().values():
        for kind, patterns in charts.values():
            assert kind == "Multiline"
            assert all(any(re.fullmatch(pattern, tag) for tag in tags) for pattern in patterns)
    assert sum(tag.startswith(BY_LAYER) for tag in tags) == 2 + 5 + 5


def test_hyperparameters_are_options_of_the_model_and_of_the_configuration() -> None:
    assert set(board.AXES) <= set(inspect.signature(CausalLM).parameters)
    recipe = yaml.safe_load(Path("experiments/recipes/backcopy-baseline.yaml").read_text())
    config = recipe | {"run": {"variant": "mine"}, "seed_everything": 3}
    found = board.hyperparameters(config)
    assert (found["1_variant"], found["seed"], found["n_layers"]) == ("mine", 3.0, 2.0)
    assert found.keys() <= {"family", *board.WORDS, *board.AXES, *board.NUMBERS}
    axis = {"class_path": "my.parts.Gate", "init_args": {"rank": 8}}
    assert board.hyperparameters({"model": {"class_path": "A.B", "init_args": {"norm": axis}}}) == {
        "family": "B",
        "norm": "Gate",
    }
    assert board.hyperparameters({}) == {}


def test_a_run_describes_itself_in_its_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    board.describe(writer, {"seed_everything": 3, "trainer": {"max_steps": 60}}, "seed_everything: 3")
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert b"seed_everything: 3" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert b"Residual sink score R" in events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    content = events._plugin_to_tag_to_content["hparams"]
    started = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert {name: value.number_value for name, value in started.hparams.items()} == {"seed": 3.0, "steps": 60.0}
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert "1_overview/loss/validation" in [info.name.tag for info in experiment.metric_infos]
    assert {"1_variant", "norm", "lr"} <= {info.name for info in experiment.hparam_infos}


def test_run_folders_keep_their_own_names(tmp_path: Path) -> None:
    assert "validation/residual/sink_score" in write_run(tmp_path, "baseline", 0, Levels()).metrics()[-1]
    assert RunFolder(tmp_path).series("validation/residual/sink_score")[0].size
