"""A mean per token that is exact over uneven batches and ranks, and that keeps NaN.

torchmetrics' MeanMetric either removes NaN or, if set to keep it, ignores the weights (1.9.0).
"""

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenMean(Metric):
    """Sum of losses over number of tokens."""

    full_state_update = False
    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, tokens: int) -> None:
        """Add a batch's mean loss over its number of tokens."""
        # Under bf16-true the module is converted with these sums.
        self.total = self.total.double() + mean.detach() * tokens
        self.tokens = self.tokens.double() + tokens

    def compute(self) -> Tensor:
        return (self.total / self.tokens).float()
