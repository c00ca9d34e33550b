"""Tensor parallelism reads the weights it splits: what wraps a layer is an error, never passed over."""

import pytest
import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.parallel.tensor_parallel import check_divisible
from tests.families.variants import build


class Doubled(nn.Module):
    """Twice what a layer gives."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


@pytest.mark.parametrize("place", ["attention.query", "attention.out", "feed_forward.down"])
def test_a_wrapped_layer_cannot_be_split(place: str) -> None:
    decoder = build("baseline").decoder
    assert decoder is not None
    before = decoder(torch.zeros(1, 12, dtype=torch.int64))
    block = decoder.blocks[1]
    owner, _, name = place.rpartition(".")
    setattr(block.get_submodule(owner), name, Doubled(block.get_submodule(place)))
    assert not torch.equal(decoder(torch.zeros(1, 12, dtype=torch.int64)), before)
    with pytest.raises(UserError, match=rf"{place}.inner.weight"):
        check_divisible(decoder, 2)
