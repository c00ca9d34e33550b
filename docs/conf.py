"""Sphinx: the site of `make docs`. Its source folder is the repository, so that links are those of GitHub."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "docs")]  # of this checkout, whatever is installed

from docstrings import as_rst  # noqa: E402
from docutils import nodes  # noqa: E402
from reference_pages import write_pages  # noqa: E402
from sphinx.addnodes import download_reference  # noqa: E402

import sinks  # noqa: E402

project = "sinks"
release = sinks.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md", "docs/reference/*", "CONTRIBUTING.md", "CHANGELOG.md", "kernels/README.md",
    "experiments/results/*/report.md",
]  # fmt: skip
exclude_patterns = [".*", "benchmarks", "build", "data", "notebooks", "runs", "sinks", "tests"]  # not to be searched
html_theme = "furo"
html_title = "sinks"
html_favicon = "static/favicon.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
myst_heading_anchors = 4
autodoc_inherit_docstrings = False  # those of torch and Lightning
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
html_show_copyright = False


def rewrite(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """A docstring in place, for autodoc."""
    lines[:] = as_rst(lines)


def link_files(app: Any, doctree: nodes.document) -> None:
    """A link to a file that is no page, e.g. the page of a model, opens a copy of it at the same place in the site."""
    for link in list(doctree.findall(download_reference)):
        page = Path(app.env.doc2path(app.env.docname))
        file = Path(os.path.normpath(page.parent / link["reftarget"]))
        copy = Path(app.outdir) / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        link.replace_self(nodes.reference("", "", *link.children, refuri=os.path.relpath(file, page.parent)))


def give_levels(app: Any, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """The captions of the navigation are headings, which Furo gives no level."""
    if "furo_navigation_tree" in context:
        levelled = context["furo_navigation_tree"].replace('role="heading"', 'role="heading" aria-level="2"')
        context["furo_navigation_tree"] = levelled


def first_page(app: Any, error: Exception | None) -> None:
    """index.html of the folder, which leads to that of docs/."""
    if error is None:
        (Path(app.outdir) / "index.html").write_text(
            '<!doctype html><html lang="en"><title>sinks</title><link rel="icon" href="data:,">'
            '<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">sinks</a></html>\n',
            encoding="utf-8",
        )


def setup(app: Any) -> None:
    app.connect("config-inited", lambda app, config: write_pages(ROOT / "docs" / "reference"))
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("doctree-read", link_files, priority=400)  # before Sphinx gathers downloads
    app.connect("html-page-context", give_levels, priority=900)  # after Furo
    app.connect("build-finished", first_page)
