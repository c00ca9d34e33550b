"""When the callback reads, and what it rejects."""

from collections.abc import Iterator
from typing import Any, get_args

import lightning
import pytest
import torch

from sinks.callbacks import SinkStatistics
from sinks.callbacks.statistics import GroupName
from sinks.errors import UserError
from sinks.models.taps import Report, Tap
from sinks.observe.groups import GROUPS
from tests.families.variants import build


def listening(module: torch.nn.Module) -> Iterator[bool]:
    """Whether each tap and report of a model is on."""
    return (m.listener is not None for m in module.modules() if isinstance(m, (Tap, Report)))


def test_reports_are_off_before_backward_and_sampled_at_the_interval() -> None:
    model = build("baseline")
    seen: list[tuple[int, bool, bool]] = []

    class Watch(lightning.Callback):
        def on_before_backward(
            self, trainer: lightning.Trainer, module: lightning.LightningModule, loss: object
        ) -> None:
            seen.append((trainer.global_step + 1, callback.sampling, any(listening(module))))

    callback = SinkStatistics(interval=3)
    rows = torch.randint(0, 11, (40, 13))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=7,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, Watch()],
        limit_val_batches=0,
    )
    trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=2))  # type: ignore[arg-type]
    assert not any(on for _, _, on in seen)
    assert [sampling for _, sampling, _ in seen] == [
        step == 1 or step % 3 == 0 for step in range(1, 8) for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval is 0, but must be at least 1"),
        ({"start": 0}, "start is 0"),
        ({"start": 10, "stop": 5}, "stop is 5, but must be at least 10"),
        ({"document_start": -1}, r"statistics.document_start is -1, but must be at least 0"),
        ({"leave_out": ["nothing"]}, "'nothing', but groups are residual"),
    ],
)
def test_bad_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SinkStatistics(**options)


def test_group_names_on_the_command_line_are_the_groups() -> None:
    assert set(get_args(GroupName)) == set(GROUPS)


def test_sink_dimensions_survive_a_resume() -> None:
    callback, resumed = SinkStatistics(), SinkStatistics()
    state = {"dimensions": {"blocks.0.attention.norm": [3]}, "latest": {"residual/sink_score": 2.0}}
    callback.load_state_dict(state)
    resumed.load_state_dict(callback.state_dict())
    assert resumed.state_dict() == state
