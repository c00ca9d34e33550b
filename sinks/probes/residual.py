"""The residual side: edits of the sink dimensions at norm sites, beside as many random dimensions."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from sinks.errors import UserError
from sinks.probes.cuts import EDITS, Cut
from sinks.probes.moments import Moments
from sinks.probes.places import Norm, NormPlace
from sinks.probes.tokens import TOKENS

ALL, BLOCKS, EACH = "all", "blocks", "each"
KINDS = ("attention", "feed_forward", "head")
SINK = "sink"  # the dimensions of the sink, beside those of a random control


@dataclass(frozen=True)
class Residual:
    """Calibrated norm sites of a model.

    Args:
        norms: that can be edited.
        moments: of each, by name.
        dimensions: by "sink" and by number of a random control: of each site that has some, by name.
        limit: of `clamp`, in RMS of the other dimensions.
    """

    norms: Sequence[NormPlace]
    moments: Mapping[str, Moments]
    dimensions: Mapping[str, Mapping[str, list[int]]]
    limit: float

    def without_sink(self, norms: Sequence[NormPlace]) -> list[NormPlace]:
        """Those of the given sites that have no sink dimension."""
        return [norm for norm in norms if norm.name not in self.dimensions[SINK]]

    @contextmanager
    def edited(self, edit: str, norms: Collection[NormPlace], tokens: str, of: str = SINK) -> Iterator[None]:
        """One edit at sites inside the `with` block; sites without sink dimensions are left as they are.

        Args:
            edit: a key of `EDITS`.
            norms: the sites.
            tokens: a key of `TOKENS`.
            of: whose dimensions: "sink", or the number of a random control.
        """
        with ExitStack() as stack:
            for norm in norms:
                if norm.name in self.dimensions[of]:
                    stack.enter_context(norm.edited(self._edit(edit, norm.name, tokens, of)))
            yield

    def _edit(self, edit: str, name: str, tokens: str, of: str) -> Callable[[Tensor, Tensor, Norm], Tensor]:
        moments, chosen, cut = self.moments[name], self.dimensions[of][name], EDITS[edit]

        def apply(h: Tensor, y: Tensor, norm: Norm) -> Tensor:
            dimensions = torch.tensor(chosen, dtype=torch.long, device=h.device)
            constants, edited = moments.constants(h, TOKENS[tokens], dimensions)
            return torch.where(edited.unsqueeze(-1), cut(Cut(h, y, norm, dimensions, constants, self.limit)), y)

        return apply


def calibrate(norms: Sequence[NormPlace], run: Callable[[], object]) -> dict[str, Moments]:
    """Moments of every site.

    Args:
        norms: to read.
        run: runs the model over calibration rows.
    """
    moments = {norm.name: Moments() for norm in norms}

    def reader(name: str) -> Callable[[Tensor, Tensor, Norm], Tensor]:
        def read(h: Tensor, y: Tensor, norm: Norm) -> Tensor:
            moments[name].add(h, y)
            return y

        return read

    with ExitStack() as stack, torch.no_grad():
        for norm in norms:
            stack.enter_context(norm.edited(reader(norm.name)))
        run()
    return moments


def residual(
    norms: Sequence[NormPlace],
    moments: Mapping[str, Moments],
    threshold: float,
    dimensions: Sequence[int] | Mapping[str, Sequence[int]] | None,
    controls: int,
    seed: int,
    limit: float,
) -> Residual:
    """Choose the sink dimensions of every site, and as many others at random.

    Args:
        norms: the sites.
        moments: of each.
        threshold: m_j / median m_j from which on a dimension is a sink of a site.
        dimensions: in place of those that reach the threshold: the same at every site, or by site.
        controls: number of random controls.
        seed: of these.
        limit: of `clamp`.

    Raises:
        UserError: if a dimension is none of the model, or given twice, or there are too many for a control.
    """
    if isinstance(dimensions, Mapping):
        found = {name: list(dimensions[name]) for name in moments}
    else:
        if dimensions is not None:
            _check(dimensions, len(next(iter(moments.values())).scores))
        found = {name: list(dimensions or own.sink_dimensions(threshold)) for name, own in moments.items()}
    sinks = {name: own for name, own in found.items() if own}
    generator = torch.Generator().manual_seed(seed)
    random = {
        str(number): {name: moments[name].random_dimensions(own, generator) for name, own in sinks.items()}
        for number in range(controls)
    }
    return Residual(norms, moments, {SINK: sinks} | random, limit)


def _check(dimensions: Sequence[int], width: int) -> None:
    for dimension in dimensions:
        if not 0 <= dimension < width or dimensions.count(dimension) > 1:
            raise UserError(
                f"dimensions is {list(dimensions)}, but must be different numbers from 0 to {width - 1}: correct it"
            )
    if 2 * len(dimensions) > width:
        raise UserError(
            f"dimensions has {len(dimensions)} of {width}, which leaves fewer for the random control: give less"
        )


def places_of(where: str, places: Sequence[Any], from_layer: int) -> list[Any]:
    """The sites that a user names, from a layer on.

    Args:
        where: "all", "blocks" (all but the head's), a kind of norm, or a name or pattern.
        places: all that there are, with `name` and `layer`, and norms with `kind`.
        from_layer: the first layer; the head's is the number of blocks.

    Raises:
        UserError: if there is none.
    """
    kinds = {ALL: KINDS, BLOCKS: KINDS[:2]} | {kind: (kind,) for kind in KINDS}
    found = [
        place
        for place in places
        if place.layer >= from_layer
        and (getattr(place, "kind", "attention") in kinds[where] if where in kinds else fnmatchcase(place.name, where))
    ]
    if not found:
        raise UserError(
            f"{where!r} from layer {from_layer} on is none of the model's {len(places)} sites: "
            f"give {ALL}, {EACH} or a name, e.g. {places[0].name}"
        )
    return found
