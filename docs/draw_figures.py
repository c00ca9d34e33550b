"""Figures of the documentation from recorded results: run it again when these change (`tests/docs` says when).

The page of a model holds each of its figures as SVG, drawn by `sinks.report.model_figures`; here they become files.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "experiments/results/smollm2/model.html"
FOLDER = ROOT / "docs/figures"
# File, and how the figure's label on the page begins.
TAKEN = {
    "smollm2_first_token_mass.svg": "First-token mass by layer and head",
    "smollm2_residual_stream.svg": "|h| by dimension and token",
}
# The page's colors: of the reader's system, on a ground of their own, so that any page around them will do.
STYLE = """<style>
svg { color: #1f2328; background: #ffffff; font: 12px system-ui, sans-serif; }
text { fill: currentColor; } .tick { fill: #59636e; }
@media (prefers-color-scheme: dark) { svg { color: #e6e9ec; background: #15191e; } .tick { fill: #9aa4ae; } }
</style>"""


def figures() -> dict[str, str]:
    """File name -> SVG of every figure that is taken."""
    page = PAGE.read_text(encoding="utf-8")
    found = {}
    for name, label in TAKEN.items():
        tag = rf'<svg role="img" aria-label="({re.escape(label)}[^"]*)" viewBox="([^"]*)">'
        svg = re.search(rf"{tag}(.*?)</svg>", page, re.DOTALL)
        assert svg, f"{PAGE.name} has no figure {label!r}"
        words, (left, top, width, height), drawn = svg[1], svg[2].split(), svg[3]
        width = str(int(width) + 12)  # the page does not cut off the last number of an axis
        drawn = re.sub(r"<title>.*?</title>", "", drawn, flags=re.DOTALL)  # nothing can be hovered in an image
        found[name] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{words}" width="{width}" '
            f'viewBox="{left} {top} {width} {height}">{STYLE}{drawn}</svg>\n'
        )
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, svg in figures().items():
        (FOLDER / name).write_text(svg, encoding="utf-8")
