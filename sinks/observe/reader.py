"""The engine that reads sites: records into accumulators, accumulators of batches and ranks into statistics."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from sinks.errors import UserError
from sinks.observe.groups import GROUPS, Group
from sinks.observe.records import Record
from sinks.observe.sites import Kind, Site
from sinks.observe.summary import Key, summarize
from sinks.record import Statistics
from sinks.stats import functional
from sinks.stats.accumulators import Accumulators, add, part_of_heads, total_over_ranks


class Reader:
    """Reads statistics of a model while it runs.

        reader = Reader(sites_of(model))
        with reader.reading():
            model(tokens)
        scalars, arrays = reader.summarize()

    The groups `rescale` and `bound` use the sink dimensions of the previous summary: fixed before they are measured.

    Args:
        sites: of the model, e.g. `sites_of(model)`.
        groups: names of the groups to read; all by default.
        sink_dimensions: how many dimensions count as the residual sink of a site.
        patterns: of the names of the sites to read, e.g. "blocks.0.*"; all by default.
        listener: also gets the name of the site and the record, of every record that is read.

    Raises:
        UserError: if a group is unknown, a pattern matches no site, or the model has no site.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        groups: Collection[str] | None = None,
        sink_dimensions: int = 1,
        patterns: Sequence[str] = ("*",),
        listener: Callable[[str, Record], None] | None = None,
    ) -> None:
        for name in groups or ():
            if name not in GROUPS:
                raise UserError(f"unknown group of statistics {name!r}: groups are {', '.join(GROUPS)}")
        if not sites:
            raise UserError(
                "the model has no site to read: give sites_of a model built from sinks.models, or "
                "sinks.interop.sites.huggingface_sites a transformers causal LM"
            )
        for pattern in patterns:
            if not any(fnmatchcase(site.name, pattern) for site in sites):
                names = ", ".join(site.name for site in sites)
                raise UserError(f"statistics.sites has {pattern!r}, which matches no site: sites are {names}")
        self.sink_dimensions = sink_dimensions
        self.dimensions: dict[str, Tensor] = {}
        self.histograms: dict[str, Tensor] = {}  # of |h| at each norm site, of the last summary
        self.groups = [group for group in GROUPS.values() if groups is None or group.name in groups]
        self._sites = [site for site in sites if any(fnmatchcase(site.name, pattern) for pattern in patterns)]
        self._listener = listener
        self._accumulators: dict[Key, Accumulators] = {}

    @property
    def names(self) -> dict[Kind, list[str]]:
        """Names of the sites of each kind, in order."""
        kinds: dict[Kind, list[str]] = {kind: [] for kind in get_args(Kind)}
        for site in self._sites:
            kinds[site.kind].append(site.name)
        return kinds

    # -- while the model runs -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to listen at every site; what was read since the last summary is kept."""
        for site in self._sites:
            groups = [group for group in self.groups if group.kind == site.kind]
            if groups:
                fields = {field for group in groups for field in (*group.needs, *group.optional)}
                site.listen(partial(self._take, site.name, groups), fields)

    def stop(self) -> None:
        """Stop listening."""
        for site in self._sites:
            site.listen(None)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read the model inside the `with` block, where compiled blocks run eagerly."""
        self.start()
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.stop()

    def _take(self, site: str, groups: list[Group], record: Any) -> None:
        if self._listener is not None:
            self._listener(site, record)
        dimensions = self.dimensions.get(site)
        if dimensions is not None and dimensions.device != record.input.device:
            dimensions = self.dimensions[site] = dimensions.to(record.input.device)
        for group in groups:
            accumulators = group.read(record, dimensions)
            if accumulators is not None:
                key = (site, group.name)
                self._accumulators[key] = add(self._accumulators.get(key), accumulators)

    # -- summaries -----------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Discard what was read since the last summary."""
        self._accumulators = {}

    def totals(self, mesh: DeviceMesh | None = None) -> dict[Key, Accumulators]:
        """Accumulators since the last summary on the host, over all ranks; a collective call.

        Args:
            mesh: of a sharded strategy, whose ranks may hold different heads.
        """
        accumulators = self._accumulators
        heads = None if mesh is None else mesh["tensor_parallel"]
        if heads is not None and heads.size() > 1:
            rank, size = heads.get_local_rank(), heads.size()
            accumulators = {
                (site, group): part_of_heads(own, rank, size, per_head=GROUPS[group].kind == "attention")
                for (site, group), own in accumulators.items()
            }
        skipped = any(getattr(site, "may_skip", False) for site in self._sites)
        totals = total_over_ranks(accumulators, may_be_empty=skipped)
        return {key: {n: m.cpu() for n, m in named.items()} for key, named in totals.items()}

    def summarize(self, step: int = 0, mesh: DeviceMesh | None = None) -> tuple[dict[str, float], Statistics]:
        """Statistics of everything since the last summary, over all ranks; then start a new summary.

        Args:
            step: optimizer step that the arrays are marked with.
            mesh: of a sharded strategy.

        Returns:
            Scalars by key (docs/statistics.md), and arrays [1, sites, ...] by name.
        """
        totals = self.totals(mesh)
        self.histograms = {site: m["histogram"] for (site, group), m in totals.items() if group == "residual"}
        used = {site: self.dimensions[site].cpu() for site in self.dimensions if (site, "rescale") in totals}
        found = summarize(totals, self.names, used, step)
        self.choose_dimensions(totals)
        self.forget()
        return found

    def choose_dimensions(self, totals: dict[Key, Accumulators]) -> None:
        """Fix the sink dimensions of the next summary; all ranks hold the same totals."""
        for (site, group), accumulators in totals.items():
            if group == "residual":
                mean_abs = functional.residual_statistics(accumulators)["mean_abs"]
                self.dimensions[site] = functional.choose_sink_dimensions(mean_abs, self.sink_dimensions)
