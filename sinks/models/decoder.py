"""The decoder: embedding, pre-norm blocks, head."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sinks.errors import UserError, require
from sinks.models.attention import Attention
from sinks.models.attention_config import AttentionConfig
from sinks.models.clips import ResidualClip
from sinks.models.counting import Flops, linear_flops
from sinks.models.cross_entropy import cross_entropy, linear_cross_entropy
from sinks.models.feed_forward import FeedForwardConfig
from sinks.models.layers import Embedding, Linear, is_bare
from sinks.models.mixers import FeedForward, SequenceMixer, Sublayer
from sinks.models.norms import IdentityNorm, Norm, NormSite, OutputNormSite, output_norm_site
from sinks.models.positions import LearnedPositions, Position, Rope
from sinks.models.residual import ResidualAdd
from sinks.models.rope import Frequencies
from sinks.models.taps import Report, Tap

# Which projections have biases: all, none, or those to queries, keys and values, of attention, of the feed-forward.
Biases = bool | Literal["qkv", "attention", "feed_forward"]
LARGEST = 2**24  # no matrix of this width and height has a size that overflows


@dataclass(frozen=True)
class LayerOptions:
    """What may differ between the attention of layers.

    Args:
        window: number of keys a query sees, its own included; all if not given.
        rope: whether queries and keys get the architecture's rotary positions.
    """

    window: int | None = None
    rope: bool = True

    def __post_init__(self) -> None:
        if self.window is not None:
            require("window", self.window, at_least=1, remedy="leave it out for no window")


@dataclass(frozen=True)
class Architecture:
    """Widths, positions and initialization.

    All projections start from N(0, init_std); those that write to the residual stream from
    N(0, init_std / sqrt(2 * n_layers)); embeddings and learned positions from N(0, embedding_std); gains at one.

    Args:
        d_model: width of the residual stream.
        n_layers: number of blocks.
        n_heads: query heads.
        n_kv_heads: key and value heads; as many as query heads if not given.
        head_dim: width of a head; d_model / n_heads if not given.
        ffn_hidden: width of the feed-forward hidden layer.
        position: rotary, learned absolute, or no positions.
        rope_base: wavelength base of rotary positions.
        rope_fraction: of each head that rotates: its first channels.
        rope_frequencies: of the rotation, plain or stretched for a longer context.
        layer_pattern: options of the first layers' attention, repeated over all layers; without it all have the same.
        attention_scale: factor of the logits q . k; head_dim ** -0.5 if not given.
        qk_norm: whether queries and keys are normed per head.
        qk_norm_eps: eps of these norms; the eps of other norms is an option of theirs.
        tied_embeddings: whether the head is the embedding.
        bias: which projections have biases: all, none, or only some of them.
        init_std: standard deviation of initial projections.
        embedding_std: standard deviation of initial embeddings.
    """

    d_model: int = 128
    n_layers: int = 2
    n_heads: int = 1
    n_kv_heads: int | None = None
    head_dim: int | None = None
    ffn_hidden: int = 480
    position: Position = "rope"
    rope_base: float = 10000.0
    rope_fraction: float = 1.0
    rope_frequencies: Callable[[int, float], Frequencies] = Frequencies
    layer_pattern: tuple[LayerOptions, ...] = ()
    attention_scale: float | None = None
    qk_norm: bool = False
    qk_norm_eps: float = 1e-6
    tied_embeddings: bool = False
    bias: Biases = False
    init_std: float = 0.02
    embedding_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "ffn_hidden"):
            require(f"architecture.{name}", getattr(self, name), at_least=1, at_most=LARGEST, remedy="give e.g. 128")
        for name in ("n_kv_heads", "head_dim"):
            value, remedy = getattr(self, name), "leave it out for the default"
            if value is not None:
                require(f"architecture.{name}", value, at_least=1, at_most=LARGEST, remedy=remedy)
        for name in ("init_std", "embedding_std"):
            require(f"architecture.{name}", getattr(self, name), at_least=0, remedy="give e.g. 0.02")
        require("architecture.rope_base", self.rope_base, above=0, remedy="give e.g. 10000")
        require("architecture.rope_fraction", self.rope_fraction, above=0, at_most=1, remedy="give 1 for whole heads")
        require("architecture.qk_norm_eps", self.qk_norm_eps, at_least=0, remedy="give e.g. 1e-6")
        if self.attention_scale is not None:
            remedy = "leave it out for the default"
            require("architecture.attention_scale", self.attention_scale, above=0, remedy=remedy)
        if self.head_dim is None and self.d_model % self.n_heads:
            raise UserError(
                f"d_model is {self.d_model}, which n_heads = {self.n_heads} does not divide: "
                "change one of them or give head_dim"
            )

    @property
    def output_std(self) -> float:
        return self.init_std / (2 * self.n_layers) ** 0.5

    def layer(self, index: int) -> LayerOptions:
        """Options of a layer's attention."""
        return self.layer_pattern[index % len(self.layer_pattern)] if self.layer_pattern else LayerOptions()

    def attention_config(self, site: str, context_length: int, layer: int = 0) -> AttentionConfig:
        options = self.layer(layer)
        rope = Rope(self.rope_base, self.rope_fraction, self.rope_frequencies)
        return AttentionConfig(
            site=site,
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads or self.n_heads,
            head_dim=self.head_dim or self.d_model // self.n_heads,
            context_length=context_length,
            init_std=self.init_std,
            output_std=self.output_std,
            bias=self.bias in (True, "attention", "qkv"),
            qk_norm=self.qk_norm,
            rope=rope if self.position == "rope" and options.rope else None,
            out_bias=self.bias in (True, "attention"),
            qk_norm_eps=self.qk_norm_eps,
            scale=self.attention_scale,
            window=options.window,
        )

    def feed_forward_config(self, site: str) -> FeedForwardConfig:
        bias = self.bias in (True, "feed_forward")
        return FeedForwardConfig(site, self.d_model, self.ffn_hidden, self.init_std, self.output_std, bias)


@dataclass(frozen=True)
class Components:
    """The modules of one block, one factory each.

    Args:
        mixer: the sequence mixer, e.g. `Attention` with its normalizer and gate.
        norm: between the residual stream and a sublayer.
        residual_clip: applied to the residual stream after each addition.
        feed_forward: the feed-forward sublayer.
        output_norm: of each sublayer's output, before it joins the residual stream (sandwich).
        feed_forward_norm: between the residual stream and the feed-forward sublayer; `norm` if not given.
    """

    mixer: Callable[[AttentionConfig], SequenceMixer]
    norm: Callable[[int], Norm]
    residual_clip: Callable[[str], ResidualClip]
    feed_forward: Callable[[FeedForwardConfig], FeedForward]
    output_norm: Callable[[int], Norm] = IdentityNorm
    feed_forward_norm: Callable[[int], Norm] | None = None


class Block(nn.Module):
    """One pre-norm block.

    Args:
        layer: its index.
        architecture: widths and initialization.
        components: its modules.
        context_length: largest number of tokens.
    """

    def __init__(self, layer: int, architecture: Architecture, components: Components, context_length: int) -> None:
        super().__init__()
        site = f"blocks.{layer}"
        config = architecture.attention_config(f"{site}.attention", context_length, layer)
        self.attention_norm = NormSite(f"{site}.attention.norm", components.norm(architecture.d_model))
        self.attention = components.mixer(config)
        self.attention_output_norm = output_norm_site(
            f"{site}.attention.output_norm", components.output_norm(architecture.d_model)
        )
        self.attention_add = ResidualAdd(f"{site}.attention.update")
        self.attention_clip = components.residual_clip(f"{site}.residual.mid.clip")
        self.mid = Tap(f"{site}.residual.mid")
        feed_forward_norm = components.feed_forward_norm or components.norm
        self.feed_forward_norm = NormSite(f"{site}.feed_forward.norm", feed_forward_norm(architecture.d_model))
        self.feed_forward = components.feed_forward(architecture.feed_forward_config(f"{site}.feed_forward"))
        self.feed_forward_output_norm = output_norm_site(
            f"{site}.feed_forward.output_norm", components.output_norm(architecture.d_model)
        )
        self.feed_forward_add = ResidualAdd(f"{site}.feed_forward.update")
        self.feed_forward_clip = components.residual_clip(f"{site}.residual.out.clip")
        self.residual = Tap(f"{site}.residual.out")

    @property
    def output_norms(self) -> list[Norm]:
        """Of attention's and the feed-forward's output; empty without them."""
        sites = (self.attention_output_norm, self.feed_forward_output_norm)
        return [site.norm for site in sites if isinstance(site, OutputNormSite)]

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D].

        x --+--> attention_norm --> attention --> output_norm --(+)--> clip --+--> feed_forward_norm --> ... --> clip
            |                                                    |            |
            +----------------------------------------------------+            +-- ...
        """
        update = self.attention_output_norm(self.attention(self.attention_norm(x)))
        x = self.mid(self.attention_clip(self.attention_add(x, update)))
        update = self.feed_forward_output_norm(self.feed_forward(self.feed_forward_norm(x)))
        return self.residual(self.feed_forward_clip(self.feed_forward_add(x, update)))


class Head(Linear):
    """From the residual stream to logits."""

    kind = "head"


class Decoder(nn.Module):
    """Token ids [B, T] -> logits [B, T, V] or loss. With a listener, `report` passes on the `tokens` first.

    Args:
        vocab_size: number of token ids V.
        context_length: largest number of tokens T.
        architecture: widths and initialization.
        layers: components of each block, first to last; as many as `architecture.n_layers`.
        head_norm: norm before the head.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        architecture: Architecture,
        layers: Sequence[Components],
        head_norm: Callable[[int], Norm],
    ) -> None:
        super().__init__()
        if len(layers) != architecture.n_layers:
            raise UserError(f"{len(layers)} layers were given, but architecture.n_layers is {architecture.n_layers}")
        self.context_length = context_length
        self.report = Report()
        width, std = architecture.d_model, architecture.embedding_std
        self.embedding = Embedding(vocab_size, width, std)
        self.positions = (
            LearnedPositions(context_length, width, std) if architecture.position == "learned" else nn.Identity()
        )
        self.embedding_tap = Tap("embedding")
        self.blocks = nn.ModuleList(
            Block(i, architecture, components, context_length) for i, components in enumerate(layers)
        )
        self.head_norm = NormSite("head.norm", head_norm(width))
        self.head = Head(width, vocab_size, architecture.init_std)
        self.tied_embeddings = architecture.tied_embeddings
        self.tie()

    def tie(self) -> None:
        """Share the embedding's weight with the head if embeddings are tied; again after a move that separated them."""
        if self.tied_embeddings:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Token ids [B, T] -> logits [B, T, V], or with targets [B, T] their mean cross-entropy in nats."""
        self.report(tokens=tokens)
        x = self.embedding_tap(self.positions(self.embedding(tokens)))
        for block in self.blocks:
            x = block(x)
        x = self.head_norm(x)
        if targets is None:
            return self.head(x)
        if is_bare(self.head, Head):
            return linear_cross_entropy(x.flatten(0, 1), self.head.weight, targets.flatten())
        return cross_entropy(self.head(x).flatten(0, 1), targets.flatten())

    def attention_maps(self, tokens: Tensor) -> Tensor:
        """Attention weights of every layer with `Attention`, and every head, for token ids [B, T].

        Returns:
            [layers, B, H, T, T].

        Raises:
            UserError: if no layer has attention weights.
        """
        x = self.positions(self.embedding(tokens))
        maps = []
        for block in self.blocks:
            assert isinstance(block, Block)
            if isinstance(block.attention, Attention):
                maps.append(block.attention.weights(block.attention_norm(x)))
            x = block(x)
        if not maps:
            raise UserError("no layer of this model has attention weights: maps need sinks.models.attention.Attention")
        return torch.stack(maps)

    def idle_parameters(self) -> int:
        """Number of parameters that a token does not use: experts that are not chosen for it."""
        return sum(module.idle_parameters() for module in self.modules() if isinstance(module, Sublayer))

    def flops_per_token(self, tokens: int) -> Flops:
        """Operations per token of sequences of a given length."""
        counts: Counter[str] = Counter(linear_flops(self.head))
        for block in self.blocks:
            assert isinstance(block, Block)
            for sublayer in (block.attention, block.feed_forward):
                counts.update(sublayer.flops_per_token(tokens))
        for site in (m for m in self.modules() if isinstance(m, NormSite)):
            counts.update(linear_flops(site))
        return Flops(dict(counts))


def reset_parameters(module: nn.Module) -> None:
    """Fill every parameter and buffer in order of definition, as construction does: for a model built on `meta`."""
    for child in module.modules():
        reset = getattr(child, "reset_parameters", None)
        if callable(reset):
            reset()
    if isinstance(module, Decoder):
        module.tie()
