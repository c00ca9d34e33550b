"""Linear maps and embeddings with their own initialization, so that a meta-device model can be initialized in place."""

from torch import nn


class Linear(nn.Linear):
    """Linear map, weights drawn from N(0, init_std), bias zero.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        init_std: standard deviation of the initial weights.
        bias: whether to add a bias.
    """

    def __init__(self, in_features: int, out_features: int, init_std: float, bias: bool = False) -> None:
        self.init_std = init_std
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.init_std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """Embedding, rows drawn from N(0, init_std).

    Args:
        num_embeddings: number of rows.
        embedding_dim: width of a row.
        init_std: standard deviation of the initial weights.
    """

    kind = "embedding"

    def __init__(self, num_embeddings: int, embedding_dim: int, init_std: float) -> None:
        self.init_std = init_std
        super().__init__(num_embeddings, embedding_dim)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.init_std)


def is_bare(linear: nn.Module, kind: type[Linear] = Linear) -> bool:
    """Whether calling it is the product with its weight and nothing more, so that the weight may be read in its place:
    no wrapper or replacement, such as a quantizer, and no hook."""
    return type(linear) is kind and not (linear._forward_pre_hooks or linear._forward_hooks)
