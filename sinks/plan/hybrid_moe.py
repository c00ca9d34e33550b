"""Hybrid mixtures of experts as in arXiv:2601.22966 (Table 5), counted by formula: they can be planned, not trained.

The paper says that its hybrids follow Qwen3-Next, and gives the fields of Table 5; what it leaves open is taken from
Qwen3-Next's published configuration and from Gated DeltaNet (arXiv:2412.06464), each an option with its default here:

- Softmax layers have queries and keys normed per head, and an element-wise output gate as wide as the queries.
- A Gated DeltaNet layer has projections to queries, keys, values and an output gate as wide as the values; two scalars
  per value head and token, for decay and writing strength, each with a projection, and for the decay a bias and a rate
  per head; a causal depthwise convolution of width 4 over queries, keys and values; a norm of each head's output; and a
  projection back.
- Every layer has SwiGLU experts without biases, a linear router, and shared experts of the same width behind a sigmoid
  gate with a projection to one number.
- Vocabulary and context come from the data section, as for any model.
"""

import dataclasses
from dataclasses import dataclass

from sinks.errors import UserError
from sinks.models.counting import SCORES, Flops
from sinks.plan.memory import Pieces


@dataclass(frozen=True)
class HybridMoE:
    """Widths of a hybrid mixture of experts.

    Args:
        n_layers: number of layers.
        d_model: width of the residual stream.
        softmax_every: every so many layers one has softmax attention; the others are Gated DeltaNet.
        n_heads: query heads of softmax attention.
        n_kv_heads: its key and value heads.
        head_dim: width of a head of softmax attention; not stated in the paper for its mixtures of experts.
        linear_qk_heads: query and key heads of Gated DeltaNet.
        linear_v_heads: its value heads.
        linear_head_dim: width of its heads.
        convolution: width of its causal convolution.
        n_experts: experts of a layer.
        experts_per_token: of which a token meets so many.
        shared_experts: experts that every token meets.
        expert_hidden: hidden width of an expert.
        attention_gate: whether softmax attention has an element-wise output gate.
        norm_rank: rank of a GatedNorm at the two norms of each layer; 0 for none.
        tied_embeddings: whether the head is the embedding.
    """

    n_layers: int
    d_model: int
    softmax_every: int
    n_heads: int
    n_kv_heads: int
    linear_qk_heads: int
    linear_v_heads: int
    n_experts: int
    experts_per_token: int
    expert_hidden: int
    head_dim: int = 256
    linear_head_dim: int = 128
    convolution: int = 4
    shared_experts: int = 1
    attention_gate: bool = True
    norm_rank: int = 0
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name in ("shared_experts", "norm_rank") else 1
            if not isinstance(value, bool) and value < least:
                raise UserError(f"hybrid_moe.{field.name} is {value}, but must be at least {least}: give a larger one")
        if self.experts_per_token > self.n_experts:
            raise UserError(
                f"hybrid_moe.experts_per_token is {self.experts_per_token}, but there are only {self.n_experts} "
                "experts: give fewer"
            )

    # -- matrices of one layer, as numbers of weights ------------------------------------------------------------

    @property
    def softmax_layers(self) -> int:
        return self.n_layers // self.softmax_every

    @property
    def softmax_projections(self) -> int:
        """Queries, keys, values and output of softmax attention."""
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return self.d_model * (2 * queries + 2 * keys)

    @property
    def gate_projection(self) -> int:
        return self.d_model * self.n_heads * self.head_dim if self.attention_gate else 0

    @property
    def linear_widths(self) -> tuple[int, int]:
        """All query heads together (and all key heads), and all value heads."""
        return self.linear_qk_heads * self.linear_head_dim, self.linear_v_heads * self.linear_head_dim

    @property
    def linear_projections(self) -> int:
        """Queries, keys, values, output gate, the two scalars per value head, and the output of Gated DeltaNet."""
        keys, values = self.linear_widths
        return self.d_model * (2 * keys + 3 * values + 2 * self.linear_v_heads)

    @property
    def convolution_weights(self) -> int:
        keys, values = self.linear_widths
        return self.convolution * (2 * keys + values)

    @property
    def expert(self) -> int:
        return 3 * self.d_model * self.expert_hidden

    @property
    def router(self) -> int:
        """To the experts, and the gate of the shared ones."""
        return self.d_model * (self.n_experts + (1 if self.shared_experts else 0))

    @property
    def norm_gate(self) -> int:
        return 2 * 2 * self.d_model * self.norm_rank

    # -- totals --------------------------------------------------------------------------------------------------

    def parameters_by_kind(self, vocab_size: int) -> dict[str, int]:
        """Number of parameters of each kind."""
        linear_layers = self.n_layers - self.softmax_layers
        # Per layer two norms; per head those of queries and keys, or that of the outputs; one before the head.
        norms = self.d_model * (2 * self.n_layers + 1)
        norms += 2 * self.head_dim * self.softmax_layers + self.linear_head_dim * linear_layers
        decays = 2 * self.linear_v_heads
        counts = {
            "embedding": vocab_size * self.d_model,
            "attention": self.softmax_layers * self.softmax_projections,
            "attention gates": self.softmax_layers * self.gate_projection,
            "linear attention": linear_layers * (self.linear_projections + self.convolution_weights + decays),
            "router": self.n_layers * self.router,
            "experts": self.n_layers * self.n_experts * self.expert,
            "shared experts": self.n_layers * self.shared_experts * self.expert,
            "norms": norms,
            "norm gates": self.n_layers * self.norm_gate,
            "head": 0 if self.tied_embeddings else vocab_size * self.d_model,
        }
        return {kind: count for kind, count in counts.items() if count}

    def active_parameters(self, vocab_size: int) -> int:
        """Parameters a token meets: all but the experts it is not sent to."""
        idle = self.n_layers * (self.n_experts - self.experts_per_token) * self.expert
        return sum(self.parameters_by_kind(vocab_size).values()) - idle

    def flops(self, vocab_size: int, tokens: int) -> Flops:
        """Operations per token of texts of a given length.

        Gated DeltaNet is counted as its recurrence: per value head a state of head_dim x head_dim is read at the key,
        written by an outer product, and read at the query, 2 operations an entry each. Chunked kernels do more.
        """
        linear_layers = self.n_layers - self.softmax_layers
        met = self.experts_per_token
        weights = {
            "attention": self.softmax_layers * self.softmax_projections,
            "attention gates": self.softmax_layers * self.gate_projection,
            "linear attention": linear_layers * (self.linear_projections + self.convolution_weights),
            "linear attention state": linear_layers * 3 * self.linear_v_heads * self.linear_head_dim**2,
            "router": self.n_layers * self.router,
            "experts": self.n_layers * met * self.expert,
            "shared experts": self.n_layers * self.shared_experts * self.expert,
            "norm gates": self.n_layers * self.norm_gate,
            "head": vocab_size * self.d_model,
            SCORES: self.softmax_layers * self.n_heads * self.head_dim * tokens,
        }
        return Flops({kind: 2.0 * count for kind, count in weights.items() if count})

    def pieces(self, vocab_size: int) -> Pieces:
        """Parameters layer by layer, each as the average layer, and of what stands outside the layers."""
        counts = self.parameters_by_kind(vocab_size)
        rest = counts["embedding"] + counts.get("head", 0) + self.d_model
        each = -(-(sum(counts.values()) - rest) // self.n_layers)
        return Pieces([each] * self.n_layers, rest)
