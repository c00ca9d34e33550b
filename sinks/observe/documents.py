"""Where the documents of rows are, so that each can be read as a row of its own."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Documents:
    """The documents of rows [B, T]: each begins at the first token of a row or at a start, and ends before the next.

    Documents of one length are read together: an operation on all of them runs once for each length.

    Args:
        starts: whether a document starts at a token [B, T] bool; read on the host.
    """

    def __init__(self, starts: Tensor) -> None:
        self.shape = starts.shape
        begin = starts.cpu().clone()
        begin[:, 0] = True
        begins = begin.flatten().nonzero()[:, 0]
        bounds = torch.cat([begins, torch.tensor([begin.numel()])])
        lengths = bounds.diff()
        self.bounds: list[int] = bounds.tolist()  # where each begins in the flattened rows, and where the last ends
        # Places in the flattened rows [documents, length], for each length.
        places = [begins[lengths == size][:, None] + torch.arange(size) for size in lengths.unique().tolist()]
        self._order = torch.cat([p.flatten() for p in places]).argsort().to(starts.device)
        self._places = [p.to(starts.device) for p in places]

    def split(self, tensors: Mapping[str, Tensor], dim: int = 1) -> list[dict[str, Tensor]]:
        """Documents as rows: [B, ..., T, ...] -> for each length, the same names [documents, ..., length, ...].

        Args:
            tensors: of the rows.
            dim: that of the tokens.
        """
        flat = {name: x.movedim(dim, 1).flatten(0, 1) for name, x in tensors.items()}
        return [{name: x[places].movedim(1, dim) for name, x in flat.items()} for places in self._places]

    def join(self, parts: list[Tensor], dim: int = 1) -> Tensor:
        """The reverse of `split`, for one tensor; differentiable."""
        flat = torch.cat([part.movedim(dim, 1).flatten(0, 1) for part in parts])
        return flat[self._order].unflatten(0, self.shape).movedim(1, dim)


def documents_of_positions(positions: Tensor) -> Documents | None:
    """The documents of rows by the position of each token [B, T]: one begins where they start again at 0.

    Returns:
        None if every row is one document; read on the host.

    Raises:
        ValueError: if the positions of a document are not 0, 1, 2, ...
    """
    starts = positions == 0
    places = torch.arange(positions.shape[-1], device=positions.device).expand_as(positions)
    begin = places.where(starts, 0).cummax(-1).values
    ordinary, packed = torch.stack([(positions == places - begin).all(), starts[..., 1:].any()]).tolist()
    if not ordinary or (packed and positions.dim() != 2):
        raise ValueError("the positions of a document are not 0, 1, 2, ...")
    return Documents(starts) if packed else None
