"""Pages in headless Chromium: what they print on the console, what axe finds, whether they fit a phone.

Chromium is the distribution's, driven by Playwright; axe-core comes with axe-playwright-python: no network is needed.
"""

import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("playwright", "axe_playwright_python") if importlib.util.find_spec(name) is None]
MISSING += ["chromium"] * (CHROMIUM is None)

needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
WIDTHS = (1280, 400)
SECONDS = 120  # for a server to start, on a busy machine


class Page:
    """A page of Playwright, and the errors of its console and scripts.

    Args:
        page: Playwright's.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, at: str | Path, width: int = WIDTHS[0], scheme: Scheme = "light") -> None:
        """Load a file or URL at a width in pixels, in a color scheme."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme)
        self.page.goto(at if isinstance(at, str) else at.resolve().as_uri())

    def serious(self) -> list[str]:
        """axe's serious and critical findings: rule, and the first element that breaks it."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response
        assert len(found["passes"]) > 5, "axe looked at nothing"
        return [
            f"{one['id']}: {one['nodes'][0]['html']}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


@contextmanager
def chromium() -> Iterator[Page]:
    """A page of a new headless Chromium, which is closed in the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield Page(browser.new_page())
        finally:
            browser.close()


@contextmanager
def serving(command: Sequence[str], ready: Callable[[str], bool], cwd: Path | None = None) -> Iterator[str]:
    """The address of a server, which is ended in the end.

    Args:
        command: with `{port}` where the number of a free port goes.
        ready: whether the server at an address is; an OSError says no.
        cwd: where it runs.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([part.format(port=port) for part in command], cwd=cwd)
    try:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            with suppress(OSError):
                if ready(address):
                    break
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def check_everywhere(page: Page, at: str | Path) -> None:
    """Assert that a page is without errors and serious findings and fits, wide and narrow, light and dark."""
    for scheme in SCHEMES:
        for width in WIDTHS:
            page.open(at, width, scheme)
            assert page.serious() == [], (scheme, width)
            assert page.overflow <= 0, (scheme, width)
    assert page.errors == []
