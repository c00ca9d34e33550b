"""Models that are built to have a sink of one role, on text that they generate themselves: any change costs loss."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.models.decoder import Architecture, Decoder
from sinks.models.norms import IdentityNorm, RMSNorm
from sinks.probes.effects import windows
from sinks.probes.own_places import own_places
from sinks.probes.probe import Options, Results, Text, probe

WIDTH, IDS, ROWS, LENGTH = 32, 40, 48, 41


def empty(position: Any = "none", **parts: Any) -> Decoder:
    """One block that adds nothing, in float64; the head's norm has no effect but what is planted."""
    sizes = Architecture(d_model=WIDTH, n_layers=1, n_heads=1, head_dim=8, ffn_hidden=8, position=position)
    given = {"norm": IdentityNorm, "head_norm": IdentityNorm} | parts
    model = CausalLM(IDS, LENGTH, sizes, **given)
    model.configure_model()
    assert model.decoder is not None
    decoder = model.double().eval().decoder
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() > 1:
                parameter.zero_()
    return decoder


@torch.no_grad()
def generated(decoder: Decoder, generator: torch.Generator) -> Tensor:
    """Rows that begin with id 0, each token drawn from what the model predicts."""
    rows = torch.zeros(ROWS, 1, dtype=torch.long)
    for _ in range(LENGTH):
        likely = decoder(rows)[:, -1].softmax(-1)
        rows = torch.cat([rows, torch.multinomial(likely, 1, generator=generator)], dim=1)
    return rows[:, :LENGTH]


def probed(decoder: Decoder, **options: Any) -> Results:
    generator = torch.Generator().manual_seed(0)
    scored, calibration = (generated(decoder, generator) for _ in range(2))
    text = Text(decoder, scored, calibration, windows(ROWS, LENGTH - 1), str)
    results = Results({})
    probe(own_places(decoder), text, Options(**({"batch_size": ROWS} | options)), results)
    return results


# -- the residual side: dimension 0 ---------------------------------------------------------------------------------


def drawn(*shape: int, std: float = 1.0, seed: int = 1) -> Tensor:
    return std * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rescales() -> Decoder:
    """Acts through the denominator alone, and is large for one id in five."""
    decoder = empty(head_norm=RMSNorm)
    with torch.no_grad():
        decoder.embedding.weight.copy_(drawn(IDS, WIDTH))
        decoder.embedding.weight[:, 0] = torch.where(torch.arange(IDS) % 5 == 3, 80.0, 2.0)
        decoder.head.weight.copy_(drawn(IDS, WIDTH, std=0.25, seed=2))
        decoder.head_norm.norm.weight[0] = 0
    return decoder


def constant_scale() -> Decoder:
    """The same, but equally large for every token."""
    decoder = rescales()
    with torch.no_grad():
        decoder.embedding.weight[:, 0] = 30.0
        decoder.head.weight.mul_(4)
    return decoder


def contributes() -> Decoder:
    """Its sign is all that the head reads."""
    decoder = rescales()
    with torch.no_grad():
        decoder.embedding.weight[:, 0] = torch.where(torch.arange(IDS) % 2 == 0, 30.0, -30.0)
        decoder.head.weight[:, 1:] = 0
        decoder.head_norm.norm.weight[0] = 1
    return decoder


def bias() -> Decoder:
    """The head reads it alone, and it is the same for every token."""
    decoder = contributes()
    with torch.no_grad():
        decoder.embedding.weight[:, 0] = 30.0
    return decoder


def nothing() -> Decoder:
    """Nobody reads it, and without a norm nobody is divided by it."""
    decoder = empty()
    with torch.no_grad():
        decoder.embedding.weight.copy_(drawn(IDS, WIDTH))
        decoder.embedding.weight[:, 0] = 30.0
        decoder.head.weight.copy_(drawn(IDS, WIDTH, std=0.25, seed=2))
        decoder.head.weight[:, 0] = 0
    return decoder


@pytest.mark.parametrize("plant", [rescales, constant_scale, contributes, bias, nothing])
def test_a_planted_dimension_has_its_role(plant: Callable[[], Decoder]) -> None:
    results = probed(plant(), side="residual", where=("head",), tokens=("all",))["residual"]
    assert results["sites"]["head.norm"]["dimensions"]["sink"] == [0]
    role = results["roles"]["head|all"]
    assert role["named"] == [plant.__name__.replace("_", " ")], role


# -- the attention side ---------------------------------------------------------------------------------------------
# The stream: 0 what a query asks of the first key, 1 whether a token is id 0, 0-7 a code of ids that attend to
# themselves, 24-31 the same where they do, 8-15 values, 16-23 what the head writes.


def attending(ask: Tensor, values: Tensor) -> Decoder:
    """A head that attends to id 0 as each query asks [IDS], else to all keys alike; its output is all that is read."""
    decoder = empty()
    mixer: Any = decoder.blocks[0].attention
    with torch.no_grad():
        decoder.embedding.weight[:, 0] = ask
        decoder.embedding.weight[0, 1] = 1.0
        decoder.embedding.weight[:, 8:16] = values
        mixer.query.weight[0, 0] = 8.0**0.5
        mixer.key.weight[0, 1] = 1.0
        mixer.value.weight[:, 8:16] = torch.eye(8)
        mixer.out.weight[16:24] = torch.eye(8)
        decoder.head.weight[:, 16:24] = drawn(IDS, 8, std=0.5, seed=2)
    return decoder


def role_of(results: Results, which: str) -> list[str]:
    return results["attention"]["roles"][f"all|{which}"]["named"]


def hows(results: Results) -> set[str]:
    return {how["how"] for how in results["attention"]["layers"]["blocks.0.attention"]["how"]}


def rescaling_head() -> Decoder:
    """Its sink has no value, and two ids in five attend to it."""
    values = drawn(8, std=1.2, seed=3) + drawn(IDS, 8, std=0.3)
    values[0] = 0
    ask = torch.where(torch.arange(IDS) % 5 < 2, 8.0, -8.0)
    return attending(ask.double(), values)


def test_a_head_whose_sink_only_rescales() -> None:
    results = probed(rescaling_head(), side="attention")
    named = role_of(results, "detected")
    assert named[0] == "rescales"
    assert set(named) <= {"rescales", "constant scale"}
    assert hows(results) == {"no-op"}
    assert results["attention"]["sinks"]["positions"][0]["position"] == 0


def test_batches_change_nothing() -> None:
    """Some rows have a sink and others none, so that each batch needs its own."""
    whole, parts = (probed(rescaling_head(), side="attention", batch_size=size)["attention"] for size in (ROWS, 10))
    assert whole["edits"].keys() == parts["edits"].keys()
    for key, expected in whole["edits"].items():
        torch.testing.assert_close(parts["edits"][key]["sums"], expected["sums"], rtol=0, atol=1e-10)
        assert parts["edits"][key]["sinks_afterward"]["positions"] == expected["sinks_afterward"]["positions"]
    assert parts["sinks"] == whole["sinks"]


def test_a_head_whose_sink_broadcasts() -> None:
    values = drawn(IDS, 8, std=0.05)
    values[0] = drawn(8, std=1.5, seed=3)
    results = probed(attending(torch.full((IDS,), 6.0).double(), values), side="attention")
    assert role_of(results, "detected") == ["bias"]
    assert hows(results) == {"broadcast"}


def test_a_head_whose_sink_is_its_own_token() -> None:
    """A third of the ids attend to themselves, where nearly nothing is; no key gets much from other queries."""
    decoder = empty()
    mixer: Any = decoder.blocks[0].attention
    idle = torch.arange(IDS) % 5 < 2
    codes = drawn(IDS, 8)
    codes = codes / codes.norm(dim=1, keepdim=True)
    with torch.no_grad():
        decoder.embedding.weight[:, 0:8] = codes
        decoder.embedding.weight[:, 8:16] = (drawn(8, std=1.2, seed=3) + drawn(IDS, 8, std=0.3)) * torch.where(
            idle, 0.02, 1.0
        )[:, None]
        decoder.embedding.weight[:, 24:32] = codes * torch.where(idle, 1.0, 0.0)[:, None]
        mixer.query.weight[:8, 24:32] = 70.0 * torch.eye(8)
        mixer.key.weight[:8, 0:8] = torch.eye(8)
        mixer.value.weight[:8, 8:16] = torch.eye(8)
        mixer.out.weight[16:24, :8] = torch.eye(8)
        decoder.head.weight[:, 16:24] = drawn(IDS, 8, std=0.5, seed=2)
    results = probed(decoder, side="attention", sinks="own")
    named = role_of(results, "own")
    assert set(named) <= {"rescales", "constant scale"}
    assert hows(results) == {"no-op"}
    assert probed(decoder, side="attention")["attention"]["edits"] == {"all|none": None}


def test_a_model_without_attention_weights_has_no_attention_side() -> None:
    decoder = rescales()
    places = replace(own_places(decoder), attention=[])
    rows = generated(decoder, torch.Generator().manual_seed(0))
    text, results = Text(decoder, rows, rows, windows(ROWS, LENGTH - 1), str), Results({})
    probe(places, text, Options(where=("head",), edits=("direct", "masked")), results)
    assert list(results) == ["residual"]
    with pytest.raises(UserError, match="no layer with attention weights to edit: give --side residual"):
        probe(places, text, Options(side="attention"), Results({}))


def test_a_sink_that_is_masked_moves_to_the_next_position() -> None:
    """A head that prefers the earliest key that it sees."""
    decoder = empty(position="learned")
    mixer: Any = decoder.blocks[0].attention
    positions: Any = decoder.positions
    with torch.no_grad():
        decoder.embedding.weight[:, 1] = 1.0
        decoder.embedding.weight[:, 8:16] = drawn(IDS, 8)
        positions.rows.weight[:, 0] = -3.0 * torch.arange(LENGTH)
        mixer.query.weight[0, 1] = 8.0**0.5
        mixer.key.weight[0, 0] = 1.0
        mixer.value.weight[:, 8:16] = torch.eye(8)
        mixer.out.weight[16:24] = torch.eye(8)
        decoder.head.weight[:, 16:24] = drawn(IDS, 8, std=0.5, seed=2)
    found = probed(decoder, side="attention")["attention"]
    assert [place["position"] for place in found["sinks"]["positions"]] == [0]
    for edit, expected in (("masked", [1]), ("value", [0]), ("rescaling", [0])):
        afterward = found["edits"][f"all|detected|{edit}|sink"]["sinks_afterward"]
        assert [place["position"] for place in afterward["positions"]] == expected
