"""TensorBoard of a run in a browser: the overview it opens on, and maps as images."""

import sys
import urllib.request
from collections.abc import Iterator

import pytest

from sinks.record import board
from tests.browser.browser import SECONDS, chromium, needs_browser, serving
from tests.cli.small import fit

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    fit(folder / "baseline/seed0")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "{port}"]

    def ready(at: str) -> bool:
        return b"validation" in urllib.request.urlopen(f"{at}/data/plugin/scalars/tags").read()

    with serving(command, ready) as at:
        yield at


def test_the_overview_has_a_chart_for_each_number(address: str) -> None:
    with chromium() as page:
        page.page.set_default_timeout(SECONDS * 1000)
        page.open(f"{address}/#custom_scalars&_smoothingWeight=0")
        for _, title in board.CHARTS.values():
            page.page.get_by_text(title, exact=True).first.wait_for()
        page.page.get_by_text("Matches (2)").first.wait_for()  # training and validation
        assert page.errors == []


def test_maps_are_images_with_their_axes(address: str) -> None:
    with chromium() as page:
        page.page.set_default_timeout(SECONDS * 1000)
        page.open(f"{address}/#images")
        page.page.get_by_text("3_maps/attention_first_token_mass").first.wait_for()
        shown = page.page.locator("#main-image-container img").first
        shown.wait_for()
        assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
        assert page.errors == []


def test_series_begin_with_the_overview(address: str) -> None:
    with chromium() as page:
        page.page.set_default_timeout(SECONDS * 1000)
        page.open(address)
        page.page.get_by_text("1_overview", exact=True).first.wait_for()
        page.page.get_by_text("2_by_layer", exact=True).first.wait_for()
        groups = page.page.locator(".group-title").all_inner_texts()
        assert groups[:3] == ["Pinned", "1_overview", "2_by_layer"]
        assert page.errors == []
