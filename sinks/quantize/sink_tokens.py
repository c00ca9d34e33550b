"""Which tokens of rows are attention sinks, found by detection instead of by position."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.observe import AttentionRecord, Reader, Record, Site
from sinks.observe.detection import EPSILON, received_mass


@torch.no_grad()
def sink_tokens(
    sites: Sequence[Site], run: Callable[[Tensor], object], batches: Iterable[Tensor]
) -> list[Tensor] | None:
    """Tokens that are a sink of some head in some layer, [B, T] bool of every batch; none of the second half of a row.

    Args:
        sites: of the model.
        run: runs it over token ids [B, T].
        batches: of rows.

    Returns:
        None if the model has no attention in which the mass that a key receives is defined.
    """
    seen: list[Tensor] = []

    def take(site: str, record: Record) -> None:
        if isinstance(record, AttentionRecord) and record.key_mass is not None:
            seen.append((received_mass(record.key_mass) > EPSILON).any(1))

    masks = []
    reader = Reader(sites, groups=["keys"], listener=take)
    with reader.reading():
        for batch in batches:
            seen.clear()
            run(batch)
            if not seen:
                return None
            found = torch.stack(seen).any(0)
            masks.append(F.pad(found, (0, batch.shape[1] - found.shape[1])))
    return masks
