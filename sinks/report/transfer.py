"""transfer.json of an ablation: how far its variants do at each token what the baseline's sink does."""

import json
from pathlib import Path
from typing import Any

from sinks.errors import UserError
from sinks.report.spread import Spread
from sinks.report.tables import Table, aligned, with_range

NOTE = (
    "Spearman's rank correlation, over the queries of the validation rows, of what the baseline's head with the "
    "largest first-token mass uses of its attention with what the same head of the variant of the same seed uses, and "
    "the best head of its layer; mean and range over seeds. The scale is that of the norm where the baseline's R is "
    "largest. A ceiling is the same between runs of one variant with other seeds: no fix can be expected to agree "
    "more. Absent where one side is constant."
)
FILE = "transfer.json"  # in the folder of the ablation
# Values of an entry, their heading, and against what.
COLUMNS = [
    ("same_head", "baseline", "same head"),
    ("best", "baseline", "best head of the layer"),
    ("best", "itself", "ceiling: variant's seeds, best head"),
    ("layer_mean", "baseline", "layer's mean"),
    ("layer_mean", "itself", "ceiling: layer's mean"),
]


def load(directory: Path) -> dict[str, Any] | None:
    """The file's content; None if there is none.

    Raises:
        UserError: if it is damaged.
    """
    file = directory / FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("comparisons"), list):
            return content
    except ValueError:
        pass
    raise UserError(f"{file} is damaged: delete it, and run sinks transfer {directory} again")


def tables(content: dict[str, Any], labels: dict[str, str]) -> list[tuple[str, Table]]:
    """A table of effective weights and one of effective scales for each kind of queries, with its heading.

    Args:
        content: of the file.
        labels: of the variants, by name.
    """
    entries = content["comparisons"]
    found = []
    for queries, count in content["queries"].items():
        where = f"{queries} queries" if queries == "all" else f"queries {queries}"
        for quantity, heading in (("weight", "Effective attention weight"), ("scale", "Effective scale of the norm")):
            chosen = [e for e in entries if e["quantity"] == quantity and e["queries"] == queries]
            columns = (
                COLUMNS
                if quantity == "weight"
                else [("same_site", "baseline", "same norm"), ("same_site", "itself", "ceiling: variant's seeds")]
            )
            rows = []
            for name, label in labels.items():
                of = [e for e in chosen if e["variant"] == name]
                if of:
                    cells = [
                        with_range(Spread.of(e.get(key) for e in of if e["against"] == against), 2)
                        for key, against, _ in columns
                    ]
                    rows.append([label, *cells])
            if rows:
                table = Table(["variant", *(heading for *_, heading in columns)], rows)
                found.append((f"{heading}, {where} ({count:,})", table))
    return found


def terminal(directory: Path) -> str:
    """The tables of a folder as plain text."""
    content = load(directory)
    if content is None:
        return ""
    names = dict.fromkeys(entry["variant"] for entry in content["comparisons"])
    lines = []
    for heading, table in tables(content, {name: name for name in names}):
        lines += ["", heading, *aligned([table.headings, *table.rows], {0})]
    return "\n".join(lines).lstrip("\n")
