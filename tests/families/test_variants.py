"""What every variant's attention maps are; that all properties of `sinks check` hold is tested in tests/checks."""

import pytest
import torch

from sinks.models.norms import NormSite
from tests.families.variants import VARIANTS, build

every_variant = pytest.mark.parametrize("name", VARIANTS)


def tokens(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(5))


@every_variant
@torch.no_grad()
def test_attention_maps_are_causal_and_give_the_layers_output(name: str) -> None:
    model = build(name).double().eval()
    maps = model.attention_maps(tokens(batch=1))
    assert maps.shape == (2, 4, 12, 12)
    assert maps.triu(1).abs().max() < 1e-12
    assert maps.min() > -1e-12
    block = model.decoder.blocks[0]  # type: ignore[union-attr]
    x = block.attention_norm(model.decoder.positions(model.decoder.embedding(tokens(batch=1))))  # type: ignore[union-attr]
    q, k, v = block.attention.project(x)
    if name != "key-value-bias":
        expected = block.attention.normalizer.attend(q, k, v, None)[0][0]
        torch.testing.assert_close(maps[0] @ v[0].repeat_interleave(2, dim=0).float(), expected.float())
    totals = maps.sum(-1)
    if name in ("baseline", "pre-affine", "gated", "soft-cap", "dyt"):
        torch.testing.assert_close(totals, torch.ones_like(totals))
    if name in ("off-by-one", "learnable-sink", "key-bias"):
        assert (totals < 1).all()


def test_gated_norm_is_at_the_blocks_norms_and_not_before_the_head() -> None:
    model = build("gated-norm")
    kinds = {m.input.site: type(m.norm).__name__ for m in model.modules() if isinstance(m, NormSite)}
    assert kinds.pop("head.norm.input") == "RMSNorm"
    assert set(kinds.values()) == {"GatedNorm"}
    assert len(kinds) == 4
