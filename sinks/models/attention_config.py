"""The widths and names from which an attention sublayer is built."""

from dataclasses import dataclass

from sinks.models.positions import Rope


@dataclass(frozen=True)
class AttentionConfig:
    """What an attention sublayer, its normalizer and its gate are built from.

    Args:
        site: name of the place, e.g. `blocks.0.attention`.
        d_model: width D of the residual stream.
        n_heads: query heads H.
        n_kv_heads: key and value heads; divides n_heads.
        head_dim: width of a head; free of d_model / n_heads.
        context_length: largest number of tokens.
        init_std: of the projections that read the stream.
        output_std: of the projection that writes to it.
        bias: whether the projections to queries, keys and values have biases.
        qk_norm: whether queries and keys are normed per head.
        rope: rotary positions, None for none.
        out_bias: whether the output projection has a bias.
        qk_norm_eps: eps of the norms of queries and keys.
        scale: factor of the logits q . k; head_dim ** -0.5 if None.
        window: number of keys a query sees, its own included; all if None.
    """

    site: str
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    context_length: int
    init_std: float
    output_std: float
    bias: bool = False
    qk_norm: bool = False
    rope: Rope | None = None
    out_bias: bool = False
    qk_norm_eps: float = 1e-6
    scale: float | None = None
    window: int | None = None
