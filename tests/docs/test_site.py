"""The documentation's site: what it says of the code, that it builds without a warning, how it looks in a browser."""

import html
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from types import ModuleType
from urllib.parse import unquote

import pytest

import sinks
from sinks.cli import COMMANDS
from tests.browser.browser import Page, check_everywhere, chromium, needs_browser

ROOT = Path(__file__).parents[2]
# One of each kind: prose, figures, tables, wide tables, long code, signatures, a report, and the search.
LOOKED_AT = (
    "docs/index", "docs/what_sinks_are", "docs/quickstart", "docs/evidence", "docs/statistics", "CONTRIBUTING",
    "docs/reference/commands", "docs/reference/options", "docs/reference/parts", "docs/reference/python",
    "docs/reference/sinks.observe", "experiments/results/backcopy-float32/report", "search",
)  # fmt: skip


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return import_module("reference_pages")


def test_the_reference_has_every_command_with_its_help(pages: ModuleType) -> None:
    text = pages.commands()
    assert re.findall(r"^## sinks (\S+)$", text, re.MULTILINE) == list(COMMANDS)
    assert all(re.search(rf"^usage: sinks {name}\b", text, re.MULTILINE) for name in COMMANDS)


def test_the_reference_has_every_option_and_part(pages: ModuleType) -> None:
    options, parts = pages.options(), pages.parts()
    assert {"run", "model", "data", "trainer", "statistics", "checkpoints"} <= set(
        re.findall(r"^## (\w+)$", options, re.M)
    )
    assert "| `--statistics.interval` | `int` | `50` | optimizer steps between sampled training steps" in options
    axes = dict(re.findall(r"^## (?:model\.init_args\.)?(\w+)\n\n(.*?)\n\n", parts, re.MULTILINE | re.DOTALL))
    assert "`GatedNorm <sinks.models.gated_norm.GatedNorm>`" in axes["norm"]
    assert "`LearnableSink <" in axes["normalizer"]
    assert "`GatedDeltaNet <" in axes["mixer"]
    assert {"attention_gate", "exclusion", "key_gate", "output_norm", "residual_clip", "feed_forward"} <= set(axes)


def test_the_reference_has_every_name_of_the_package(pages: ModuleType) -> None:
    offered = {name for name in sinks.__all__ if not name.startswith("_")}
    assert set(re.findall(r"^- :py:obj:`(\w+) <", pages.python(), re.MULTILINE)) == offered


# -- built -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="not installed: sphinx (make docs installs it)")
    folder = tmp_path_factory.mktemp("site")
    strict = ["--quiet", "--fail-on-warning", "--keep-going", "-b", "html", "-c", "docs", ".", str(folder)]
    subprocess.run([sys.executable, "-m", "sphinx", *strict], cwd=ROOT, check=True)
    return folder


@pytest.mark.slow
def test_every_link_within_the_site_leads_somewhere(site: Path) -> None:
    targets = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    broken, followed = [], 0
    for page, text in targets.items():
        for link in re.findall(r'(?:href|src)="([^"]*)"', text):
            address, _, anchor = html.unescape(link).partition("#")
            if re.match(r"[a-z]+:", link) or address.startswith("//"):
                continue
            file = (page.parent / unquote(address.split("?")[0])).resolve() if address else page
            followed += 1
            if not file.is_file() or (anchor and file in targets and f'id="{anchor}"' not in targets[file]):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []
    assert followed > 1000


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site, served: the search reads files by requests, which a browser allows no page of a folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_page_is_readable_everywhere(name: str, address: str, browser: Page) -> None:
    browser.errors.clear()
    check_everywhere(browser, f"{address}/{name}.html")


@needs_browser
@pytest.mark.slow
def test_the_site_is_found_searched_and_darkened(address: str, browser: Page) -> None:
    browser.errors.clear()
    browser.open(f"{address}/index.html")
    browser.page.wait_for_url("**/docs/index.html")
    browser.page.click("text=What sinks are >> nth=0")
    assert browser.page.title().startswith("What sinks are")
    assert all(browser.page.evaluate("[...document.images].map(image => image.naturalWidth > 0)"))
    browser.page.goto(f"{address}/search.html?q=first_token_mass")
    browser.page.wait_for_selector("ul.search li a")
    browser.open(f"{address}/docs/index.html")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = browser.page.evaluate(ground)
    while browser.page.evaluate("document.body.dataset.theme") != "dark":
        browser.page.click(".content-icon-container .theme-toggle")
    assert browser.page.evaluate(ground) != light
    assert browser.errors == []
