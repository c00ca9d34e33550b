"""What every variant's attention maps are; that all properties of `sinks check` hold is tested in tests/checks."""

import pytest
import torch

from sinks.models.attention import Attention
from sinks.models.norms import NormSite
from sinks.models.taps import editing
from tests.families.variants import ATTENTION, build


def tokens(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ATTENTION)
@torch.no_grad()
def test_attention_maps_are_causal_and_give_the_layers_output(name: str) -> None:
    model = build(name).double().eval()
    maps = model.attention_maps(tokens(batch=1))
    blocks = [block for block in model.decoder.blocks if isinstance(block.attention, Attention)]  # type: ignore[union-attr]
    assert maps.shape == (len(blocks), 4, 12, 12)
    assert maps.triu(1).abs().max() < 1e-12
    assert maps.min() > -1e-12
    read: list[torch.Tensor] = []
    with editing(model, {blocks[0].attention_norm.output.site: lambda x: read.append(x) or x}):
        model(tokens(batch=1))
    q, k, v = blocks[0].attention.project(read[0])
    if name != "key-value-bias":
        expected = blocks[0].attention.normalizer.attend(q, k, v, None)[0][0]
        torch.testing.assert_close(maps[0] @ v[0].repeat_interleave(2, dim=0).float(), expected.float())
    totals = maps.sum(-1)
    if name in ("baseline", "pre-affine", "gated", "soft-cap", "dyt", "hybrid", "hybrid-gated"):
        torch.testing.assert_close(totals, torch.ones_like(totals))
    if name in ("off-by-one", "learnable-sink", "key-bias"):
        assert (totals < 1).all()


def test_gated_norm_is_at_the_blocks_norms_and_not_before_the_head() -> None:
    model = build("gated-norm")
    kinds = {m.input.site: type(m.norm).__name__ for m in model.modules() if isinstance(m, NormSite)}
    assert kinds.pop("head.norm.input") == "RMSNorm"
    assert set(kinds.values()) == {"GatedNorm"}
    assert len(kinds) == 4
