"""A user's own normalizer, norm or mixer: its statistics, or one line that names what it does wrong."""

import math
from collections.abc import Callable
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from sinks.callbacks import SinkStatistics
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.models.attention_config import AttentionConfig
from sinks.models.layers import Linear
from sinks.models.mixers import SequenceMixer
from sinks.models.normalizers import Normalizer
from sinks.models.norms import RMSNorm
from sinks.runs.failures import users_mistake
from tests.families.variants import SMALL


def normalizer(options: Callable[[], Any]) -> type[Normalizer]:
    class Own(Normalizer):
        def options(self) -> Any:
            return options()

    return Own


def weighing(weigh: Callable[[Tensor], Any]) -> dict[str, Any]:
    return {"normalizer": normalizer(lambda: {"normalizer": weigh})}


def norm(internals: Callable[[Tensor], dict[str, Any]]) -> dict[str, Any]:
    class Own(RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if self.internals is not None:
                self.internals |= internals(y)
            return y

    return {"norm": Own}


def mixer(change: Callable[[Tensor], Any]) -> dict[str, Any]:
    class Mean(SequenceMixer):
        def __init__(self, config: AttentionConfig) -> None:
            super().__init__()
            self.config = config
            self.out = Linear(config.d_model, config.d_model, config.init_std)

        def forward(self, x: Tensor) -> Any:
            return change(self.out(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]))

    return {"mixer": Mean}


def recency(scores: Tensor) -> Tensor:
    """Softmax with a penalty on distance, as in ALiBi."""
    places = torch.arange(scores.shape[-1])
    return (scores - 0.5 * (places[:, None] - places)).softmax(-1)


def train(parts: dict[str, Any]) -> tuple[CausalLM, dict[str, float]]:
    """One step under the callback, and its statistics."""
    model, found = CausalLM(11, 12, architecture=SMALL, **parts), {}

    class Statistics(SinkStatistics):
        def _log(self, trainer: lightning.Trainer, stage: str) -> None:
            found.update(self.reader.summarize()[0])

    lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Statistics()],
    ).fit(model, torch.utils.data.DataLoader(torch.randint(0, 11, (2, 13)), batch_size=2))  # type: ignore[arg-type]  # fmt: skip
    return model, found


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no such option": (
        {"normalizer": normalizer(lambda: {"temperature": 2.0})},
        r"Own\.options\(\) has 'temperature', but must be of normalizer, sink, .*: leave it out",
    ),
    "no dict": ({"normalizer": normalizer(lambda: None)}, r"Own\.options\(\) is None, but must be a dict of"),
    "no such normalizer": (
        {"normalizer": normalizer(lambda: {"normalizer": "softmax1"})},
        "unknown normalizer 'softmax1': choose among softmax, ",
    ),
    "a sink of other heads": (
        {"normalizer": normalizer(lambda: {"normalizer": "learnable_sink", "sink": torch.zeros(3)})},
        r"sink has shape \(3,\), q has 4 heads: the sink needs one logit per head",
    ),
    "two results": (weighing(lambda s: (s.softmax(-1), 1)), "the normalizer gave a tuple: .*; return a tensor"),
    "fewer keys": (weighing(lambda s: s.softmax(-1)[..., 1:]), r"gave \(2, 4, 12, 11\) torch.float32 for scores"),
    "negative weights": (weighing(lambda s: s.softmax(-1) - 0.25), "gave weights down to -0.25, .*: clamp them"),
    "unknown internals": (
        norm(lambda y: {"rms": y}),
        r"blocks\.0\.attention\.norm: the norm's internals have 'rms', but statistics read clipped, divided, ",
    ),
    "a gain of other channels": (
        norm(lambda y: {"gain": y[0, 0, :3]}),
        r"blocks\.0\.attention\.norm: gain is \(3,\), but must be a tensor \(16,\): ",
    ),
    "a gate per token without its dimension": (
        norm(lambda y: {"gate": y[..., 0], "normed": y}),
        r"norm: gate is \(2, 12\), but must be a tensor \(2, 12, 16\) or \(2, 12, 1\)",
    ),
    "a mixer of two results": (
        mixer(lambda y: (y, None)),
        r"blocks\.0\.attention\.update: update is tuple, but must be",
    ),
    "a mixer of fewer channels": (
        mixer(lambda y: y[..., :3]),
        r"update is \(2, 12, 3\), but must be a tensor \(2, 12,",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str) -> None:
    parts, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message) as found:
        train(parts)
    assert "\n" not in str(found.value)
    assert isinstance(users_mistake(found.value), UserError), "the command line would print a traceback"


def test_an_error_inside_a_normalizer_keeps_its_traceback() -> None:
    def broken(scores: Tensor) -> Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as found:
        train(weighing(broken))
    assert users_mistake(found.value) is None


def test_own_parts_have_the_statistics_that_are_defined_for_them() -> None:
    model, found = train(weighing(recency))
    assert 0 < found["attention/first_token_mass"] < 1
    assert 0 < found["attention/entropy"] < math.log(12)
    tokens = torch.randint(0, 11, (2, 12))
    maps = model.decoder.attention_maps(tokens)  # type: ignore[union-attr]
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    _, found = train(mixer(lambda y: y))
    assert not [key for key in found if key.startswith("attention/")]
    assert found["update/ratio"] > 0


def test_weights_that_are_not_finite_make_the_statistics_so() -> None:
    _, found = train(weighing(lambda s: s.softmax(-1) * torch.nan))
    assert math.isnan(found["attention/first_token_mass"])
    assert math.isnan(found["attention/entropy"])
