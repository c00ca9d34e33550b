"""The numbers of SmolLM2-135M-Instruct out of the functions of `sinks analyze`.

golden.json was written by another program: transformers' eager attention and plain torch, float32 on a CPU, on the same
weights and rows. Numbers are as they were printed, so that a tolerance is never finer than their last digit.
"""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from sinks.interop.analyze import Measured, measure
from sinks.interop.load import Pretrained, load_pretrained
from sinks.interop.rows import read_rows
from sinks.interop.sites import huggingface_sites

ROOT = Path(__file__).parents[2]
TEXT = ROOT.parent / "shared/data/wikitext-2-valid.txt"
pytestmark = [pytest.mark.models, pytest.mark.skipif(not TEXT.is_file(), reason=f"there is no {TEXT}")]
GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
POLICIES = ("none", "1")  # without BOS, and with it


@pytest.fixture(scope="module")
def smollm2() -> Pretrained:
    return load_pretrained("smollm2", cache=ROOT / "data")


def measured(smollm2: Pretrained, rows: int, tokens: int, bos: str) -> Measured:
    found = read_rows(smollm2, str(TEXT), rows, tokens, bos).tokens
    return measure(smollm2.model, huggingface_sites(smollm2.model), smollm2, found, batch_size=4, progress=False)


def agrees(value: Any, printed: str, absolute: float = 0.0) -> bool:
    """Whether a value is a printed number, within 1e-3 of it, half of its last digit, or an absolute tolerance."""
    last_digit = 10.0 ** int(Decimal(printed).as_tuple().exponent)
    return abs(float(value) - float(printed)) <= max(1e-3 * abs(float(printed)), 0.5 * last_digit, absolute)


@pytest.mark.parametrize("bos", POLICIES)
def test_attention_on_100_rows_of_64(smollm2: Pretrained, bos: str) -> None:
    result = measured(smollm2, 100, 64, bos)
    golden = GOLDEN["attention"][bos]
    arrays = {name.removeprefix("attention/"): array[0] for name, array in result.statistics.arrays.items()}
    mass, ratio = arrays["first_token_mass"], arrays["value_norm_ratio"]  # [30, 9], [30, 3]
    found = {
        "first_token_mass": mass.mean(),
        "first_token_mass_with_first_row": arrays["first_token_mass_with_first_row"].mean(),
        "strongest": mass.max(),
        "weakest": mass.min(),
        "value_norm_ratio": ratio.mean(),
        "least_value_norm_ratio": ratio.min(),
        "largest_value_norm_ratio": ratio.max(),
    }
    wrong = [(name, value, golden[name]) for name, value in found.items() if not agrees(value, golden[name])]
    sinks = {name: arrays[name].mean() for name in ("sink_ratio_0.3", "sink_ratio_0.8", "sink_nyu")}
    wrong += [(name, value, golden[name]) for name, value in sinks.items() if not agrees(value, golden[name], 5e-4)]
    by_key = zip(arrays["sink_gu_0.3"].mean((0, 1)), golden["sink_gu_0.3"], strict=True)
    wrong += [("keys", value, printed) for value, printed in by_key if not agrees(value, printed, 5e-4)]
    assert wrong == []
    assert divmod(int(mass.argmax()), 9) == tuple(map(int, golden["strongest_layer_head"]))
    for name, tolerance in (("sink_ratio_0.3", 5e-4), ("value_norm_ratio", 0.0)):
        layers = zip(arrays[name].mean(1), golden.get(f"{name}_by_layer", ()), strict=False)
        assert [pair for pair in layers if not agrees(*pair, tolerance)] == []


@pytest.mark.parametrize("bos", POLICIES)
def test_residual_stream_on_16_rows_of_512(smollm2: Pretrained, bos: str) -> None:
    result = measured(smollm2, 16, 512, bos)
    arrays = {name: array[0] for name, array in result.statistics.arrays.items()}
    largest = arrays["residual/max_abs"]  # [61, 2]
    dimension = arrays["residual/sink_dimension"].astype(int)
    gain = torch.from_numpy(arrays["norm/gain"])
    at_sink = gain.gather(1, torch.from_numpy(dimension)[:, None])[:, 0]
    found = {
        "max_first": largest[:, 0],
        "max_others": largest[:, 1],
        "median_others": largest.max(1) / arrays["residual/max_over_median"],
        "sink_score": arrays["residual/sink_score"],
        "consistency": arrays["residual/sink_consistency"],
        "gain_ratio": (at_sink / gain.median(1).values).numpy(),
        "kurtosis": arrays["residual/kurtosis"],
    }
    sites = result.statistics.sites["residual"]
    assert len(sites) == 61
    golden = {f"{site}.input": numbers for site, numbers in GOLDEN["residual"][bos].items()}
    at = {site: sites.index(site) for site in golden}
    wrong = [
        (site, name, array[at[site]], numbers[name])
        for site, numbers in golden.items()
        for name, array in found.items()
        if not agrees(array[at[site]], numbers[name])
    ]
    assert wrong == []
    assert {site: str(dimension[i]) for site, i in at.items()} == {s: n["sink_dimension"] for s, n in golden.items()}
    assert agrees(result.loss, GOLDEN["loss"][bos])
    votes = np.bincount(dimension)
    if bos == "none":
        assert {d: n for d, n in enumerate(votes) if n} == {507: 26, 247: 21, 17: 12, 260: 1, 199: 1}


def test_gains_at_the_massive_and_the_sink_dimensions(smollm2: Pretrained) -> None:
    """|gain| over the median |gain| of its norm: the feed-forward norms shut out 507, and neither 247 nor 17."""
    arrays = measured(smollm2, 2, 64, "none").statistics
    gain = torch.from_numpy(arrays.arrays["norm/gain"][0]).abs()
    relative = gain / gain.median(1, keepdim=True).values
    sites = arrays.sites["norm"]
    of = {
        kind: torch.stack([relative[sites.index(f"blocks.{i}.{kind}.norm")] for i in range(30)])
        for kind in ("attention", "feed_forward")
    }
    wrong = []
    for dimension, golden in GOLDEN["gain"].items():
        at = {kind: of[kind][:, int(dimension)] for kind in of}
        found = {"head": relative[sites.index("head.norm"), int(dimension)]}
        for kind, values in at.items():
            found |= {f"{kind}_median": values.median(), f"{kind}_least": values.min(), f"{kind}_most": values.max()}
            found[f"{kind}_late_median"] = values[12:29].median()
        wrong += [(dimension, name, golden[name], x) for name, x in found.items() if not agrees(x, golden[name])]
    assert wrong == []
