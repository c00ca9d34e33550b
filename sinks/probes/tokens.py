"""Kinds of tokens at a norm site, by the residual stream there: token 0, massive ones, ordinary ones."""

import torch
from torch import Tensor

MASSIVE = 3.0  # times the median norm of a row's tokens but token 0
# What is edited -> kinds of tokens, each with means of its own.
TOKENS = {
    "ordinary": ("ordinary",),
    "later": ("later",),
    "all": ("first", "later"),
    "first": ("first",),
    "massive": ("massive",),
}
KINDS = ("ordinary", "later", "first", "massive")


def kinds_of_tokens(h: Tensor) -> dict[str, Tensor]:
    """Which tokens of a stream h [B, T, D], T >= 2, are of a kind: [B, T] bool each.

    Returns:
        first: token 0. later: all others. massive: those of them whose norm exceeds 3 times the (lower) median norm of
        the row's later tokens. ordinary: those whose norm does not.
    """
    norm = h.norm(dim=-1)
    first = torch.zeros_like(norm, dtype=torch.bool)
    first[:, 0] = True
    large = norm > MASSIVE * norm[:, 1:].median(dim=1, keepdim=True).values
    return {"ordinary": ~large & ~first, "later": ~first, "first": first, "massive": large & ~first}
