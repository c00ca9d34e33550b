"""A notebook in JupyterLab, in headless Chromium: it is there before it runs, and its controls redraw its figures."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinks.report import notebook
from tests.browser.browser import chromium, needs_browser
from tests.notebooks.folders import NOTEBOOKS, make

pytest.importorskip("jupyterlab")
pytestmark = [pytest.mark.slow, needs_browser]

NAME = "watch_a_sink_form.ipynb"
SECONDS = 120
IMAGES = "all => all.map(image => image.src)"


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of the notebook in a JupyterLab of its own, on tiny folders."""
    monkeypatch.setenv(notebook.FOLDERS, str(make(tmp_path / "runs")))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS / NAME, tmp_path / "notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        "--IdentityProvider.token=",
        f"--port={port}",
        "--notebook-dir=notebooks",
    ]
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=tmp_path)
    try:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api")
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab/tree/{NAME}"
    finally:
        server.terminate()
        server.wait()


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
