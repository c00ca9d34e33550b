"""The report: what it says, and the three forms it takes (report.md, report.html, figures/*.png)."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from sinks.record.folder import write_atomically
from sinks.report import figures, outcomes, reproduction, tables
from sinks.report.ablation import Ablation, load_ablation
from sinks.report.claims import claims, tiny


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Args:
        name: file name without its ending.
        title: its heading.
        caption: what it shows, and how to read it.
        draw: makes it; None where no run has the numbers.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Ablation], Figure | None]


PICTURES = [
    Picture(
        "double_dissociation",
        "Two sinks, told apart",
        "Attention sink against residual sink at the end of training: a point per run. The dashed lines cross at the "
        "baseline. A fix for the attention sink alone moves left, a fix for the residual sink alone moves down.",
        figures.double_dissociation,
    ),
    Picture(
        "first_token_mass",
        "The attention sink over training",
        "Attention that the strongest head gives to the first token (mean over queries, the first left out). Lines are "
        "means over seeds, bands run from the lowest to the highest seed.",
        figures.first_token_mass_over_training,
    ),
    Picture(
        "sink_score",
        "The residual sink over training",
        "R: the largest dimension of the residual stream over the median one (mean |h| over tokens, the first token "
        "left out), at the site where it is largest. Lines are means over seeds, bands run from the lowest to the "
        "highest seed.",
        figures.sink_score_over_training,
    ),
    Picture(
        "first_token_maps",
        "Where the attention sink sits",
        "First-token mass of every layer and head at the end of training. Seeds stand side by side if there is room.",
        figures.first_token_maps,
    ),
    Picture(
        "sorted_dimensions",
        "Which dimensions of the residual stand out",
        "Mean |h| of every residual dimension over that of the median dimension, largest first, at the end of "
        "training: mean over the sites of a family (the bare embedding left out) and over seeds. Grey: the baseline.",
        figures.sorted_dimensions,
    ),
]
LIMITS = [
    "Every verdict is on these runs alone: one task, one size, and for each variant the one set of hyperparameters "
    "that its configuration names.",
    "Half ranges over two or three seeds say how far the seeds lie apart; they are no confidence intervals.",
    "That sinks rescale *by context* is shown neither by R nor by a small gain: it takes causal probes.",
]
CONSTANT_CHANNEL = (
    "At this scale (under ten million parameters) probes of earlier scratch runs found that the sink dimension of the "
    "residual is mostly a constant bias channel: replacing it by its mean costs next to nothing."
)
BIG_ACTIVATION = 50


def _limits(ablation: Ablation) -> list[str]:
    found = LIMITS + [CONSTANT_CHANNEL] * tiny(ablation)
    spread = ablation.baseline.spread("residual_max_over_median") if ablation.baseline else None
    if spread is not None and spread.mean < BIG_ACTIVATION:
        found.append(
            f"No massive activations: the baseline's largest value is {spread.mean:.1f} times the median, where "
            "trained language models reach hundreds and more. What these runs say of sinks they do not say of massive "
            "activations."
        )
    return found


def _lead(ablation: Ablation) -> str:
    runs = ablation.runs
    seeds = {run.seed for run in runs}
    shown = sum(1 for variant in ablation.variants if variant.runs or variant.diverged)
    count = f"{len(runs)} finished run{'s' * (len(runs) != 1)} of {shown} variant{'s' * (shown != 1)}"
    return f"{count}, {len(seeds)} seed{'s' * (len(seeds) != 1)}."


def _unfinished(ablation: Ablation) -> list[str]:
    unfinished = [f"unfinished: {folder.path}" for variant in ablation.variants for folder in variant.unfinished]
    missing = [
        f"not run: {variant.label}, seed{'s' * (len(variant.missing) != 1)} {', '.join(map(str, variant.missing))}"
        for variant in ablation.variants
        if variant.missing
    ]
    return unfinished + missing + [f"not run: {label}" for label in ablation.not_run]


def _notes(ablation: Ablation) -> list[str]:
    """What a reader of the first table must know."""
    notes = [
        f"{tables.PLUS_MINUS} is half the range over the seeds, not a standard error.",
        "First-token mass: attention that the strongest head gives to the first token (attention sink). Value norm "
        "ratio: norm of the first token's value vector over the median one. R: the largest residual dimension over the "
        "median one (residual sink). Gain at sink: the norm's gain at that dimension over the median gain.",
    ]
    if ablation.baseline is not None:
        notes.append(
            f"{tables.DELTA} loss is the mean difference to the baseline's run of the same seed, data and steps, with "
            "the range over seeds in brackets."
        )
    else:
        notes.append("There is no finished baseline here, so there are no differences and no verdicts on the variants.")
    if any(variant.no_effect for variant in ablation.variants):
        notes.append("*No effect*: this clip clipped nothing, so the variant is the baseline under another name.")
    if any(variant.diverged for variant in ablation.variants):
        notes.append("Diverged runs are results of their own (below) and are in no average.")
    return notes


def contents(ablation: Ablation) -> dict[str, Any]:
    """Everything the templates print, but the figures."""
    return {
        "title": ablation.title,
        "lead": _lead(ablation),
        "alert": outcomes.no_sink(ablation),
        "results": tables.results(ablation),
        "further": tables.further(ablation),
        "notes": _notes(ablation),
        "diverged": tables.diverged(ablation),
        "unfinished": _unfinished(ablation),
        "against": tables.against(ablation),
        "recipe_source": ablation.recipe_source,
        "has_recipe": any(variant.recipe for variant in ablation.variants),
        "rules": outcomes.RULES,
        "claims": claims(ablation),
        "limits": _limits(ablation),
        "provenance": reproduction.lines(ablation),
        "again": reproduction.again(ablation),
        "recorded": reproduction.recorded(ablation),
    }


def _environment(html: bool) -> jinja2.Environment:
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
    return environment


def _emphasis(text: str) -> str:
    """`*word*` of our own sentences as <em>, everything else escaped."""
    import markupsafe

    parts = str(markupsafe.escape(text)).split("*")
    if len(parts) % 2 == 0:
        return markupsafe.Markup("*".join(parts))
    return markupsafe.Markup("".join(f"<em>{part}</em>" if i % 2 else part for i, part in enumerate(parts)))


def write_report(directory: str | Path, out: str | Path | None = None) -> tuple[Ablation, Path]:
    """Write report.md, report.html and figures/*.png.

    Args:
        directory: holds the runs, as `<variant>/seed<k>/`.
        out: where the report goes; `directory` itself by default.

    Returns:
        What was read, and the HTML file.

    Raises:
        UserError: no folder, no finished run, or a variant whose runs differ in more than the seed.
    """
    ablation = load_ablation(directory)
    target = Path(directory if out is None else out)
    drawn: list[dict[str, Any]] = []
    absent: list[str] = []
    (target / "figures").mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        file = target / "figures" / f"{picture.name}.png"
        figure = picture.draw(ablation)
        if figure is None:
            absent.append(picture.title)
            file.unlink(missing_ok=True)
            continue
        png = figures.to_png(figure)
        file.write_bytes(png)
        encoded = base64.b64encode(png).decode()
        drawn.append({"name": picture.name, "title": picture.title, "caption": picture.caption, "data": encoded})
    page = contents(ablation) | {"pictures": drawn, "absent": absent}
    write_atomically(target / "report.md", _environment(False).get_template("report.md.j2").render(page))
    html = target / "report.html"
    write_atomically(html, _environment(True).get_template("report.html.j2").render(page))
    return ablation, html
