"""The gated delta rule (Yang et al. 2024, arXiv:2412.06464): a state [K, V] per head that decays and is corrected.

With a query q_t, a key k_t, a value v_t, a log decay g_t <= 0 and a rate b_t at token t:

    S_t = exp(g_t) S_(t-1) + k_t (b_t (v_t - exp(g_t) S_(t-1)^T k_t))^T
    o_t = S_t^T q_t / sqrt(K)

Shapes of every form: q and k [B, H, T, K], v [B, H, T, V], log_decay and beta [B, H, T] -> o [B, H, T, V], computed in
float32 or wider and returned in the dtype of v.
"""

import functools
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sinks.models.precision import wide

CHUNK = 64  # tokens that the chunked form takes at once; flash-linear-attention's


def recurrent_delta_rule(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """The definition, one token at a time."""
    dtype = v.dtype
    q, k, v, log_decay, beta = (wide(x) for x in (q, k, v, log_decay, beta))
    q = q * q.shape[-1] ** -0.5
    state = torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1], dtype=k.dtype, device=k.device)
    outputs = []
    with torch.autocast(v.device.type, enabled=False):
        for t in range(q.shape[2]):
            state = state * log_decay[:, :, t, None, None].exp()
            recalled = (k[:, :, t, None] @ state).squeeze(2)
            written = beta[:, :, t, None] * (v[:, :, t] - recalled)
            state = state + k[:, :, t, :, None] @ written[:, :, None]
            outputs.append((q[:, :, t, None] @ state).squeeze(2))
    return torch.stack(outputs, 2).to(dtype)


def chunked_delta_rule(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, chunk: int = CHUNK) -> Tensor:
    """The same by chunks of tokens: products of matrices within a chunk, the recurrence between chunks.

    What a chunk writes solves a triangular system (arXiv:2406.06484, section 3.2; with decay arXiv:2412.06464,
    section 3.3).

    Args:
        q: queries, as above; so are k, v, log_decay and beta.
        k: keys.
        v: values.
        log_decay: g_t.
        beta: b_t.
        chunk: tokens of a chunk.
    """
    dtype, tokens, width = v.dtype, q.shape[2], v.shape[-1]
    chunk = min(chunk, tokens)
    q, k, v, log_decay, beta = (_chunks(wide(x), chunk) for x in (q, k, v, log_decay, beta))
    with torch.autocast(v.device.type, enabled=False):
        total = log_decay.cumsum(-1)  # [B, H, N, C], since the chunk's start
        future = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
        # Masked before the exponential, which would overflow for the future.
        between = (total[..., :, None] - total[..., None, :]).masked_fill(future, -torch.inf).exp()
        k_beta = k * beta[..., None]
        sources = torch.cat([v * beta[..., None], k_beta * total[..., None].exp()], -1)
        solved = torch.linalg.solve_triangular((k_beta @ k.mT) * between, sources, upper=False, unitriangular=True)
        written, recall = solved.split([width, k.shape[-1]], -1)
        q = q * q.shape[-1] ** -0.5
        within = (q @ k.mT) * between
        q = q * total[..., None].exp()
        k = k * (total[..., -1:] - total)[..., None].exp()
        kept = total[..., -1].exp()[..., None, None]
        state = torch.zeros(*k.shape[:2], k.shape[-1], width, dtype=k.dtype, device=k.device)
        outputs = []
        for n in range(q.shape[2]):
            new = written[:, :, n] - recall[:, :, n] @ state
            outputs.append(q[:, :, n] @ state + within[:, :, n] @ new)
            state = state * kept[:, :, n] + k[:, :, n].mT @ new
    return torch.cat(outputs, 2)[:, :, :tokens].to(dtype)


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """[B, H, T, ...] -> [B, H, N, chunk, ...], zeros after the end: they write nothing and decay nothing."""
    missing = -x.shape[2] % chunk
    return F.pad(x, (*([0, 0] * (x.dim() - 3)), 0, missing)).unflatten(2, (-1, chunk))


Kernel = Callable[..., tuple[Tensor, Tensor | None]]


@functools.cache
def fla_kernel() -> Kernel | None:
    """`chunk_gated_delta_rule` of flash-linear-attention; None where that is not installed."""
    if find_spec("fla") is None:
        return None
    kernel: Kernel = import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    return kernel


def by_kernel(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """The rule by a function of flash-linear-attention's signature, whose tensors are [B, T, H, ...].

    Not run on a GPU yet.
    """
    q, k, v, log_decay, beta = (x.transpose(1, 2) for x in (q, k, v, log_decay, beta))
    out, _ = kernel(q.to(v.dtype), k.to(v.dtype), v, g=log_decay.float(), beta=beta.to(v.dtype))
    return out.transpose(1, 2)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """The rule as it is trained with: flash-linear-attention's kernel on CUDA where installed, else by chunks."""
    # Tensors without memory cannot be given to a Triton kernel, and float64 is for tests.
    possible = v.is_cuda and v.dtype is not torch.float64 and not isinstance(v, FakeTensor)
    kernel = fla_kernel() if possible else None
    if kernel is not None:
        return by_kernel(kernel, q, k, v, log_decay, beta)
    return chunked_delta_rule(q, k, v, log_decay, beta)
