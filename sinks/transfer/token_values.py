"""The effective weight of every head and the effective scale of every norm, at each query of the validation rows."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sinks.errors import UserError
from sinks.observe import AttentionRecord, NormRecord, Reader, sites_of
from sinks.runs import LoadedRun
from sinks.stats import functional

BATCH_SIZE = 32
GROUPS = ("routes", "mass", "residual", "scale")
EVERY_QUERY = "all"


@dataclass(frozen=True)
class TokenValues:
    """Of one run; Q queries of each of N rows.

    Args:
        rows: token ids [N, T + 1], the same in all runs that are compared.
        queries: masks [N, Q] of the kinds of queries that are kept apart.
        weight: effective weight [heads, N, Q] of each attention site.
        first_token_mass: mean over queries i >= 1 [heads] of each attention site.
        scale: effective scale [N, Q] of each norm site that has one.
        score: R of each norm site.
    """

    rows: Tensor
    queries: dict[str, Tensor]
    weight: dict[str, Tensor] = field(default_factory=dict)
    first_token_mass: dict[str, Tensor] = field(default_factory=dict)
    scale: dict[str, Tensor] = field(default_factory=dict)
    score: dict[str, float] = field(default_factory=dict)

    @property
    def strongest_head(self) -> tuple[str, int]:
        """Site and head with the largest first-token mass."""
        site = max(self.first_token_mass, key=lambda name: float(self.first_token_mass[name].max()))
        return site, int(self.first_token_mass[site].argmax())

    @property
    def strongest_norm(self) -> str | None:
        """The norm site with the largest R, the bare embedding left aside; None if it has no scale."""
        later = list(self.score)[1:] or list(self.score)
        site = max(later, key=self.score.__getitem__, default=None)
        return site if site in self.scale else None


@torch.no_grad()
def token_values(run: LoadedRun, rows: int, first_query: int) -> TokenValues:
    """Read a run's last checkpoint on the first rows of its validation set.

    The sink dimensions of a norm, which its scale leaves aside, are those of the same rows, read before.

    Args:
        run: of the suite.
        rows: how many at most.
        first_query: queries before it are left out: they see too few tokens.

    Raises:
        UserError: if no query is left, or no layer has attention weights.
    """
    run.data.prepare_data()
    run.data.setup("validate")
    found = run.data.validation_set()
    tokens = torch.stack([torch.as_tensor(found[i]) for i in range(min(rows, len(found)))]).long()
    inputs = tokens[:, :-1]
    if not 1 <= first_query < inputs.shape[1]:
        raise UserError(
            f"first_query is {first_query}, but rows of {run.folder.path} have {inputs.shape[1]} queries: give 1 to "
            f"{inputs.shape[1] - 1}"
        )
    kinds = {EVERY_QUERY: torch.ones_like(inputs, dtype=torch.bool)} | run.data.query_kinds(inputs)
    values = TokenValues(tokens, {name: mask[:, first_query:] for name, mask in kinds.items()})
    parts: dict[tuple[str, str], list[Tensor]] = {}

    def take(site: str, record: Any) -> None:
        if isinstance(record, AttentionRecord):
            weight = functional.routes(record.route_inputs())["effective_weight"]
            parts.setdefault((site, "weight"), []).append(weight[..., first_query:].transpose(0, 1))
        elif isinstance(record, NormRecord) and record.gain is not None and record.divided is not None:
            assert record.output is not None
            scale = functional.effective_scale(record.input, record.output, record.gain, reader.dimensions[site])
            parts.setdefault((site, "scale"), []).append(scale[:, first_query:])

    sites = sites_of(run.model)
    reader = Reader(sites, GROUPS)
    batches = inputs.split(BATCH_SIZE)
    for batch in batches:
        with reader.reading():
            run.model(batch)
    _, statistics = reader.summarize()
    if "attention/first_token_mass" not in statistics.arrays:
        raise UserError(f"no layer of {run.folder.path} has attention weights: give runs with attention")
    masses = statistics.arrays["attention/first_token_mass"][0]
    values.first_token_mass.update(zip(statistics.sites["attention"], map(torch.from_numpy, masses), strict=True))
    scores = statistics.arrays["residual/sink_score"][0]
    values.score.update(zip(statistics.sites["norm"], map(float, scores), strict=True))

    again = Reader(sites, GROUPS, listener=take)
    for batch in batches:
        with again.reading():
            run.model(batch)
    for (site, kind), batched in parts.items():
        getattr(values, kind)[site] = torch.cat(batched, dim=1 if kind == "weight" else 0)
    return values
