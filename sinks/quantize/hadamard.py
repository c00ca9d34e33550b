"""Hadamard matrices: rotations that spread an outlier over all channels."""

import functools

import torch
from torch import Tensor

from sinks.errors import UserError

SYLVESTER = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)


@functools.cache
def hadamard(size: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None) -> Tensor:
    """An orthogonal matrix [size, size] with entries +-size ** -0.5, computed in float64.

    A Kronecker product of Paley's matrices of q + 1, for primes q = 3 mod 4, and Sylvester's of 2.

    Args:
        size: of the matrix.
        dtype: that it is converted to.
        device: that it is moved to.

    Raises:
        UserError: if the size has no such product.
    """
    orders = _orders(size)
    if orders is None:
        raise UserError(
            f"no Hadamard matrix of {size} is known here: rotate blocks, with hadamard-16, or choose smooth"
        )
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for order in orders:
        matrix = torch.kron(matrix, SYLVESTER if order == 2 else _paley(order - 1))
    return (matrix / size**0.5).to(device, dtype)


def _orders(size: int) -> list[int] | None:
    """The sizes of the factors, Paley's first and small ones before large ones; None if there are none."""
    if size & (size - 1) == 0:
        return [2] * (size.bit_length() - 1)
    for order in range(12, size + 1, 4):
        if size % order == 0 and _is_prime(order - 1):
            rest = _orders(size // order)
            if rest is not None:
                return [order, *rest]
    return None


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _paley(prime: int) -> Tensor:
    """Of prime + 1: the identity plus a skew matrix of quadratic residues."""
    residues = {i * i % prime for i in range(1, prime)}
    character = torch.tensor([0.0] + [1.0 if i in residues else -1.0 for i in range(1, prime)], dtype=torch.float64)
    index = torch.arange(prime)
    matrix = torch.eye(prime + 1, dtype=torch.float64)
    matrix[0, 1:] = 1
    matrix[1:, 0] = -1
    matrix[1:, 1:] += character[(index[:, None] - index) % prime]
    return matrix
