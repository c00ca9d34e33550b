"""The report: its contents and its three formats (report.md, report.html, figures/*.png)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from sinks.record.folder import write_atomically
from sinks.report import (
    accuracy,
    answer,
    births,
    causes,
    costs,
    factorial,
    figures,
    outcomes,
    reproduction,
    routes,
    same_job,
    sweep,
    tables,
    tokens_saved,
    transfer,
)
from sinks.report.ablation import Ablation, load_ablation
from sinks.report.claims import claims
from sinks.report.figures.inline import on_dark, to_svg, variable
from sinks.report.figures.style import Drawing, key_of, looks
from sinks.report.loss import TESTED_FROM
from sinks.report.measured import has_roles
from sinks.report.outcomes import Comparison, compare
from sinks.report.spread import MATERIAL
from sinks.report.step_maps import step_maps
from sinks.report.svg import number
from sinks.stats.paired import smallest_effect


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Args:
        name: file name without its ending.
        title: its heading.
        caption: what it shows and how to read it.
        draw: creates it; None if no run has the numbers.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Comparison], Drawing | None]


PICTURES = [
    Picture(
        "double_dissociation",
        "The two sinks, distinguished",
        "Attention sink against residual sink at the end of training: a point per run. The dashed lines cross at the "
        "baseline. A fix for the attention sink alone moves left, a fix for the residual sink alone moves down.",
        figures.double_dissociation,
    ),
    Picture(
        "first_token_mass",
        "The attention sink over training",
        "Attention of the strongest head to the first token (mean over queries, except the first). Lines are "
        "means over seeds, bands run from the lowest to the highest seed.",
        figures.first_token_mass_over_training,
    ),
    Picture(
        "sink_score",
        "The residual sink over training",
        "R: the largest dimension of the residual stream over the median one (mean |h| over tokens, except the "
        "first), at the site where it is largest. Lines are means over seeds, bands run from the lowest to the "
        "highest seed.",
        figures.sink_score_over_training,
    ),
    Picture(
        "first_token_maps",
        "Location of the attention sink",
        "First-token mass of every layer and head at the end of training. Seeds are side by side if there is room.",
        figures.first_token_maps,
    ),
    Picture(
        "routes",
        "How much attention is used, and where the rest goes",
        "At the end of training, in the layer and head where the baseline of the same seed has its largest first-token "
        "mass: means over queries except the first, and over seeds. The effective weight is the gate's gain times the "
        "sum of weights times the values' norms over their median. What is lost goes to values below the median; "
        "docs/statistics.md has the definitions.",
        figures.routes,
    ),
    Picture(
        "sorted_dimensions",
        "Outlier dimensions of the residual stream",
        "Mean |h| of every residual dimension over that of the median dimension, largest first, at the end of "
        "training: mean over the sites of a family (except the bare embedding) and over seeds. Gray: the baseline.",
        figures.sorted_dimensions,
    ),
]
MAPS = "first_token_maps"  # the picture that a page shows as maps with a step slider
BIG_ACTIVATION = 50


def _lead(ablation: Ablation) -> str:
    runs = ablation.runs
    seeds = {run.seed for run in runs if run.seed is not None}
    unseeded = sum(run.seed is None for run in runs)
    shown = sum(1 for variant in ablation.variants if variant.runs or variant.diverged)
    count = f"{len(runs)} finished run{'s' * (len(runs) != 1)} of {shown} variant{'s' * (shown != 1)}"
    seeded = f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"
    return f"{count}, {seeded}{f', {unseeded} unseeded' * bool(unseeded)}."


def _mixed(ablation: Ablation) -> list[str]:
    """That the runs are of several devices or precisions, whose numbers differ by rounding; empty if they are not."""
    devices = {str(device) for run in ablation.runs if (device := run.provenance.get("device"))}
    precisions = {run.precision for run in ablation.runs if run.precision is not None}
    found = [
        f"of {len(values)} {name} ({', '.join(sorted(values))})"
        for name, values in (("devices", devices), ("precisions", precisions))
        if len(values) > 1
    ]
    return [f"The runs are {' and '.join(found)}, which by itself changes their numbers."] if found else []


def _sees(comparison: Comparison) -> list[str]:
    """Which loss differences the runs can tell from none, in a sentence; empty without noise to compare with."""
    noise = comparison.noise
    if noise is None:
        return []
    seeds = max(result.loss.difference.n for result in comparison.results if result.loss)
    visible = smallest_effect(noise.sd, seeds)
    return [
        f"A paired loss difference varies by {noise.sd:.2g} over seeds (standard deviation, {noise.rows} variants, "
        f"{noise.degrees} degrees of freedom): {seeds} seeds can see a difference of {visible:.2g} (power 80 %, "
        "5 % unadjusted for the number of rows), and no smaller one."
    ]


def _unfinished(ablation: Ablation) -> list[str]:
    unfinished = [f"unfinished: {folder.path}" for variant in ablation.variants for folder in variant.unfinished]
    missing = [
        f"not run: {variant.label}, seed{'s' * (len(variant.missing) != 1)} {', '.join(map(str, variant.missing))}"
        for variant in ablation.variants
        if variant.missing
    ]
    return unfinished + missing + [f"not run: {label}" for label in ablation.not_run]


def _transfer(ablation: Ablation) -> list[tuple[str, tables.Table]]:
    content = transfer.load(ablation.root)
    labels = {variant.name: variant.label for variant in ablation.variants}
    return [] if content is None else transfer.tables(content, labels)


def _sentences(template: str, **values: Any) -> list[str]:
    """The lines of a prose template."""
    return environment(False).get_template(template).render(values).splitlines()


def contents(comparison: Comparison) -> dict[str, Any]:
    """Everything that the templates print except the figures."""
    ablation, results = comparison.ablation, comparison.results
    signs = {"plus_minus": tables.PLUS_MINUS, "delta": tables.DELTA}
    largest = comparison.baseline.spreads.get("residual_max_over_median") if comparison.baseline else None
    probed = any(has_roles(run.folder.path, "residual") for run in ablation.runs)
    limits = {
        "probed": probed,
        "largest": largest,
        "big_activation": BIG_ACTIVATION,
    }
    masked = any(outcomes.MASKED in result.spreads for result in results)
    least = {"first_token_mass": outcomes.SINK_FROM[outcomes.ATTENTION], "score": outcomes.SINK_FROM[outcomes.RESIDUAL]}
    judged = claims(comparison)
    return {
        "title": ablation.title,
        "question": answer.question(comparison),
        "answer": [*_mixed(ablation), *answer.answer(comparison, judged)],
        "broken": ablation.broken,
        "lead": " ".join([_lead(ablation), *_sees(comparison)]),
        "alert": outcomes.no_sink(comparison),
        "results": tables.results(comparison),
        "further": tables.further(comparison),
        "costs": costs.table(comparison),
        "accuracy": accuracy.table(comparison),
        "births": births.table(ablation),
        "routes": routes.table(comparison),
        "factorial": factorial.table(ablation),
        "sweep": sweep.tables(comparison),
        "tokens_saved": tokens_saved.table(ablation),
        "notes": _sentences("notes.j2", baseline=comparison.baseline, results=results, masked=masked, **signs),
        "diverged": tables.diverged(comparison),
        "notes_of": {
            "accuracy": accuracy.NOTE,
            "causes": causes.NOTE,
            "costs": costs.NOTE,
            "tokens_saved": tokens_saved.NOTE,
            "transfer": transfer.NOTE,
            "births": births.NOTE,
            "routes": routes.NOTE,
            "factorial": factorial.NOTE,
            "sweep": sweep.NOTE,
        },
        "causes": causes.tables(ablation),
        "transfer": _transfer(ablation),
        "unfinished": _unfinished(ablation),
        "against": tables.against(comparison),
        "recipe_source": ablation.recipe_source,
        "has_recipe": any(variant.recipe for variant in ablation.variants),
        "rules": _sentences(
            "rules.j2",
            material=MATERIAL,
            tested_from=TESTED_FROM,
            agrees_from=same_job.AGREES_FROM,
            least_ceiling=same_job.LEAST_CEILING,
            **least,
        ),
        "claims": judged,
        "limits": _sentences("limits.j2", **limits),
        "provenance": reproduction.lines(ablation),
        "again": reproduction.again(ablation),
        "recorded": reproduction.recorded(ablation),
    }


def environment(html: bool) -> jinja2.Environment:
    """The templates of this folder; values are escaped in HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    environment.filters["emphasis"] = _emphasis
    environment.filters["cell_text"] = cell_text
    return environment


def cell_text(entry: Any) -> str:
    """An entry of a table: whole numbers as they are, others rounded, nothing where there is no number."""
    if isinstance(entry, float):
        return number(entry)
    return "" if entry is None else str(entry)


def _emphasis(text: str) -> str:
    """Render `*word*` in our own sentences as <em>, and escape everything else."""
    parts = str(markupsafe.escape(text)).split("*")
    if len(parts) % 2 == 0:
        return markupsafe.Markup("*".join(parts))
    return markupsafe.Markup("".join(f"<em>{part}</em>" if i % 2 else part for i, part in enumerate(parts)))


def _interactive(comparison: Comparison, drawn: list[dict[str, Any]], colors: set[str]) -> dict[str, Any]:
    """What the page has besides: a legend, maps with a slider, and its colors."""
    variants = comparison.ablation.variants
    look = looks(comparison.ablation)
    maps = step_maps(variants)
    chips = [{"name": v.name, "short": v.short, "key": key_of(look[v.name])} for v in variants]
    return {
        "pictures": [picture for picture in drawn if picture["name"] != MAPS],
        "chips": chips,
        "named": {v.label: v.name for v in variants} | {v.short: v.name for v in variants},
        "colors": [(variable(color), color, on_dark(color)) for color in sorted(c.lower() for c in colors)],
        "maps": maps,
        "maps_data": _data(maps),
    }


def _data(maps: dict[str, Any] | None) -> str:
    """What the slider's script reads; `<` is escaped, so that no text can end the script element."""
    if maps is None:
        return ""
    content = maps | {"maps": [{"values": one.values, "texts": one.texts} for one in maps["maps"]]}
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def write_report(directory: str | Path, out: str | Path | None = None) -> tuple[Comparison, Path]:
    """Write report.md, report.html and figures/*.png.

    Args:
        directory: contains the runs, as `<variant>/seed<k>/`.
        out: output folder; `directory` itself by default.

    Returns:
        The comparison and the HTML file.

    Raises:
        UserError: no folder, no finished run, or runs of one variant that differ in more than the seed.
    """
    comparison = compare(load_ablation(directory))
    target = Path(directory if out is None else out)
    images: dict[Path, bytes | None] = {}
    drawn: list[dict[str, Any]] = []
    absent: list[str] = []
    colors = {look.color for look in looks(comparison.ablation).values()}
    for picture in PICTURES:
        figure = picture.draw(comparison)
        images[target / "figures" / f"{picture.name}.png"] = None if figure is None else figures.to_png(figure)
        if figure is None:
            absent.append(picture.title)
            continue
        shown = {"name": picture.name, "title": picture.title, "caption": picture.caption}
        if picture.name != MAPS:
            inline = to_svg(figure, picture.name, picture.title)
            colors |= inline.colors
            shown["svg"] = inline.svg
        drawn.append(shown)
    content = contents(comparison) | {"pictures": drawn, "absent": absent}
    html = target / "report.html"
    texts = {
        target / "report.md": environment(False).get_template("report.md.j2").render(content),
        html: environment(True)
        .get_template("report.html.j2")
        .render(content | _interactive(comparison, drawn, colors)),
    }
    # Written only when everything is made: an error in a run leaves an older report as it is.
    (target / "figures").mkdir(parents=True, exist_ok=True)
    for file, png in images.items():
        if png is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(png)
    for file, text in texts.items():
        write_atomically(file, text)
    return comparison, html
