"""numpy's selection gives what torch's does, bit for bit."""

import pytest
import torch
from torch import Tensor

from sinks.stats.functional import order
from sinks.stats.functional.order import largest, lower_median, median_and_largest


def cases() -> dict[str, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 16)
    broken = x.clone()
    broken[0, 1, 3], broken[2, 0, 7], broken[2, 2, 1] = torch.nan, torch.inf, -torch.inf
    return {
        "even": x,
        "odd": x[..., :15],
        "float64": x.double(),
        "one": x[..., :1],
        "ties": x.round(),
        "strided": x.transpose(0, 2),
        "requires grad": x.clone().requires_grad_(),
        "not finite": broken,
        "no rows": x[:, :0],
    }


@pytest.mark.parametrize("case", cases())
def test_the_median_is_torchs(case: str) -> None:
    x = cases()[case]
    torch.testing.assert_close(lower_median(x), x.detach().median(-1).values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("count", [1, 4, 16])
def test_the_largest_are_torchs(case: str, count: int) -> None:
    x = cases()[case].detach()
    count = min(count, x.shape[-1])
    expected = x.topk(count).values
    torch.testing.assert_close(largest(x, count), expected, rtol=0, atol=0, equal_nan=True)
    median, top = median_and_largest(x, count)
    torch.testing.assert_close(top, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(median, x.median(-1).values, rtol=0, atol=0, equal_nan=True)


def long_cases() -> dict[str, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 40_000)
    broken = x.clone()
    broken[0, 3], broken[1, 5], broken[1, 6] = torch.nan, torch.inf, -torch.inf
    misleading = torch.arange(40_000.0).expand(2, -1).clone()
    misleading[:, :: 40_000 // order.SAMPLE | 1] = -1.0  # what the sample takes
    return {"normal": x, "odd": x[:, 1:], "ties": x.round(), "equal": x * 0, "not finite": broken, "misled": misleading}


@pytest.mark.parametrize("case", long_cases())
def test_the_median_of_many_is_torchs(case: str) -> None:
    x = long_cases()[case]
    torch.testing.assert_close(lower_median(x), x.median(-1).values, rtol=0, atol=0, equal_nan=True)
