"""A notebook in JupyterLab, in headless Chromium: it is there before it runs, and its controls redraw its figures."""

import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinks.report import notebook
from tests.browser.browser import SECONDS, chromium, needs_browser, serving
from tests.notebooks.folders import NOTEBOOKS, make

pytest.importorskip("jupyterlab")
pytestmark = [pytest.mark.slow, needs_browser]

NAME = "watch_a_sink_form.ipynb"
IMAGES = "all => all.map(image => image.src)"


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of the notebook in a JupyterLab of its own, on tiny folders."""
    monkeypatch.setenv(notebook.FOLDERS, str(make(tmp_path / "runs")))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS / NAME, tmp_path / "notebooks")
    options = ["--no-browser", "--allow-root", "--IdentityProvider.token=", "--port={port}", "--notebook-dir=notebooks"]

    def ready(at: str) -> bool:
        return urllib.request.urlopen(f"{at}/api").status == 200

    with serving([sys.executable, "-m", "jupyterlab", *options], ready, tmp_path) as at:
        yield f"{at}/lab/tree/{NAME}"


def test_a_notebook_reads_before_it_runs_and_redraws_afterward(address: str) -> None:
    with chromium() as page:
        page.page.set_default_timeout(SECONDS * 1000)
        page.open(address)
        images = page.page.locator(".jp-OutputArea img")
        images.nth(1).wait_for()
        assert page.page.locator(".jp-OutputArea").filter(has_text="step: 800").count()  # its settings, as text
        assert page.page.locator(".widget-dropdown select").count() == 0
        # What is run before the kernel is there is not run later.
        page.page.locator("#jp-main-statusbar").get_by_text("Idle").first.wait_for()
        page.page.get_by_role("menuitem", name="Run", exact=True).click()
        page.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.page.locator(".widget-dropdown select").first.wait_for()
        page.page.wait_for_function(
            "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(e => /\\[\\d+\\]/.test(e.innerText))"
        )
        before = images.evaluate_all(IMAGES)
        chosen = page.page.locator(".widget-dropdown select").first
        other = next(n for n in chosen.locator("option").all_inner_texts() if n.endswith("gated-norm/seed0"))
        chosen.select_option(label=other)
        page.page.wait_for_function(
            "before => document.querySelectorAll('.jp-OutputArea img')[1].src !== before", arg=before[1]
        )
        assert page.page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert page.errors == []
