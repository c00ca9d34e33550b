"""Number formats against ml_dtypes and against tables of the numbers that they hold."""

import numpy as np
import pytest
import torch

from sinks.quantize.formats import FP8, MXFP4, NVFP4, Blocks, Format, Integer, e2m1, e4m3, in_blocks
from sinks.quantize.schemes import SCHEMES, Quantizer, scheme_of

ml_dtypes = pytest.importorskip("ml_dtypes")
TYPES = {e2m1: (ml_dtypes.float4_e2m1fn, 16), e4m3: (ml_dtypes.float8_e4m3fn, 256)}


def representable(number_type: type, codes: int) -> np.ndarray:
    values = np.arange(codes, dtype=np.uint8).view(number_type).astype(np.float32)
    return np.unique(values[np.isfinite(values)])


def probes(values: np.ndarray) -> np.ndarray:
    """All numbers, all ties, their neighbors in float32, subnormals, zeros, and many at random; none saturates."""
    middle = (values[1:] + values[:-1]) / 2
    exact = np.concatenate([values, middle])
    near = [np.nextafter(exact, np.float32(way)) for way in (-np.inf, np.inf)]
    generator = np.random.default_rng(0)
    random = generator.standard_normal(200_000) * np.exp2(generator.integers(-14, 10, 200_000))
    small = np.array([1e-45, -1e-45, 1e-40, 1e-38, 0.0, -0.0])
    every = np.concatenate([exact, *near, random, small]).astype(np.float32)
    return every[np.abs(every) <= values.max()]


@pytest.mark.parametrize("rounding", TYPES, ids=lambda f: f.__name__)
def test_rounding_is_that_of_ml_dtypes_bit_for_bit(rounding: object) -> None:
    number_type, codes = TYPES[rounding]  # type: ignore[index]
    x = probes(representable(number_type, codes))
    ours = rounding(torch.from_numpy(x)).numpy()  # type: ignore[operator]
    theirs = x.astype(number_type).astype(np.float32)
    assert len(x) > 100_000
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("rounding", TYPES, ids=lambda f: f.__name__)
def test_what_is_too_large_saturates(rounding: object) -> None:
    largest = float(representable(*TYPES[rounding]).max())  # type: ignore[index]
    x = torch.tensor([1.0, 1.01, 1.03, 1.04, 1.1, 2.0, 1e6]) * largest
    assert torch.equal(rounding(x), torch.full_like(x, largest))  # type: ignore[operator]
    assert torch.equal(rounding(-x), torch.full_like(x, -largest))  # type: ignore[operator]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_are_the_nearest_of_a_table(bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    x = torch.cat([torch.randn(2000, generator=torch.Generator().manual_seed(0)), torch.arange(-top, top) + 0.5])
    x = x.clamp(-top, top)
    found = Integer(bits)(x, torch.tensor(float(top)))  # scale 1
    codes = torch.arange(-top, top + 1, dtype=torch.float64)
    distance = (x.double()[:, None] - codes).abs()
    nearest = distance == distance.amin(1, keepdim=True)
    even = nearest & (codes % 2 == 0)
    expected = codes[torch.where(even.any(1, keepdim=True), even, nearest).double().argmax(1)]
    assert torch.equal(found.double(), expected)


def reference_nvfp4(row: np.ndarray) -> np.ndarray:
    """One token, block by block, with the number types of ml_dtypes."""
    outer = np.float32(np.abs(row).max() / np.float32(2688))
    blocks = []
    for at in range(0, len(row), 16):
        block = row[at : at + 16]
        ratio = np.float32(np.abs(block).max() / np.float32(6) / outer)
        scale = np.float32(min(ratio, 448)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * outer
        codes = np.clip(block / (scale or 1), -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
        blocks.append(codes * scale if scale > 0 else np.zeros_like(block))
    return np.concatenate(blocks)


def reference_mxfp4(row: np.ndarray) -> np.ndarray:
    blocks = []
    for at in range(0, len(row), 32):
        block = row[at : at + 32]
        largest = np.abs(block).max()
        scale = np.float32(2.0 ** (np.floor(np.log2(largest)) - 2)) if largest > 0 else np.float32(2.0**-127)
        blocks.append(np.clip(block / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale)
    return np.concatenate(blocks)


@pytest.mark.parametrize(("number_format", "reference"), [(NVFP4(), reference_nvfp4), (MXFP4(), reference_mxfp4)])
@pytest.mark.parametrize("width", [64, 43 * 16, 40])
def test_block_formats_are_those_of_a_loop_over_blocks(number_format: Format, reference: object, width: int) -> None:
    x = torch.randn(20, width, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 6, 20)[:, None]
    x[:, 3] *= 100  # an outlier channel
    x[4, :16] = 0
    found = number_format(x, x.abs().amax(-1, keepdim=True))
    expected = np.stack([reference(row) for row in x.numpy()])  # type: ignore[operator]
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("name", SCHEMES)
def test_values_of_the_format_pass_a_second_time_unchanged(name: str) -> None:
    x = torch.randn(16, 96, generator=torch.Generator().manual_seed(2))
    for quantizer in (SCHEMES[name].weights, SCHEMES[name].activations):
        if quantizer is not None:
            once = quantizer(x)
            assert not torch.equal(once, x)
            # NVFP4 per token: the largest value moves the scale of its scales by a rounding.
            tolerance = 3e-7 if isinstance(quantizer.format, NVFP4) and quantizer.reach == "row" else 0.0
            torch.testing.assert_close(quantizer(once), once, rtol=tolerance, atol=0)


def test_a_short_last_block_is_a_block_of_its_own() -> None:
    x = torch.randn(3, 576, generator=torch.Generator().manual_seed(3))
    found = Blocks(Integer(4), 128)(x, torch.tensor(0.0))
    parts = [Quantizer(Integer(4))(part) for part in x.split(128, dim=-1)]
    assert [part.shape[-1] for part in parts] == [128, 128, 128, 128, 64]
    assert torch.equal(found, torch.cat(parts, -1))
    assert torch.equal(in_blocks(x, 1000, lambda block: block), x)


@pytest.mark.parametrize("name", SCHEMES)
def test_zeros_stay_zeros(name: str) -> None:
    for quantizer in (SCHEMES[name].weights, SCHEMES[name].activations):
        if quantizer is not None:
            assert torch.equal(quantizer(torch.zeros(4, 64)), torch.zeros(4, 64))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_one_line(value: float) -> None:
    x = torch.ones(2, 32)
    x[1, 5] = value
    with pytest.raises(Exception, match="is NaN or infinite"):
        Quantizer(FP8())(x)


def test_reach_of_a_scale() -> None:
    x = torch.tensor([[1.0, 0.3], [100.0, 30.0]])
    by_row, whole = Quantizer(Integer(4))(x), Quantizer(Integer(4), "tensor")(x)
    assert torch.equal(by_row[0], Integer(4)(x[0], torch.tensor(1.0)))
    assert torch.equal(whole[0], torch.zeros(2))  # a step is 100 / 7
    static = Quantizer(Integer(4), "static").calibrated(torch.tensor(10.0))
    assert static(x)[1, 0] == 10.0  # saturates
    assert torch.equal(static(x[:1]), Integer(4)(x[:1], torch.tensor(10.0)))


def test_dtypes_stay() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert Quantizer(NVFP4())(torch.ones(2, 32, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("int3",), "scheme is 'int3', which is none: give one of w8a8"),
        (("w4a16", "row", "activations"), "has no quantized activations"),
        (("mxfp4", "tensor"), "has scales for blocks only: leave --activation_scale out"),
    ],
)
def test_schemes_that_are_not_there_are_one_line(arguments: tuple[str, ...], reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        scheme_of(*arguments)  # type: ignore[arg-type]
