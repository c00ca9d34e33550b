"""report.html and model.html in a browser, clicked through."""

from pathlib import Path

import pytest

from sinks.report import write_report
from sinks.report.model_page import write_model_page
from tests.browser.browser import check_everywhere, chromium, needs_browser
from tests.report.synthetic import BACKCOPY, write_ablation
from tests.report.test_model_page import write, write_causes

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_ablation(tmp_path_factory.mktemp("backcopy"), BACKCOPY)
    (root / "broken/seed0").mkdir(parents=True)
    (root / "broken/seed0/config.yaml").write_text("a: [")
    return write_report(root)[1]


def test_the_report_reads_everywhere(report: Path) -> None:
    with chromium() as page:
        check_everywhere(page, report)


def test_a_value_is_told_on_hover_and_a_click_follows_its_variant(report: Path) -> None:
    with chromium() as page:
        page.open(report)
        drawing = page.page.locator("svg.drawing").first
        mark = drawing.evaluate("svg => JSON.parse(svg.dataset.marks)[0]")
        box, width = drawing.bounding_box(), drawing.evaluate("svg => svg.viewBox.baseVal.width")
        scale = box["width"] / width
        at = (box["x"] + mark[0] * scale, box["y"] + mark[1] * scale)
        assert page.page.locator("#tip").is_hidden()
        page.page.mouse.move(*at)
        assert page.page.locator("#tip").inner_text() == mark[5]
        assert "seed 0: first-token mass 0.8" in mark[5]
        page.page.mouse.click(*at)
        chip = page.page.locator(f'.chip[data-variant="{mark[4]}"]')
        assert chip.get_attribute("aria-pressed") == "true"
        for where in ("svg.drawing", ".maps", "table"):
            of = page.page.locator(f"{where} [data-variant]")
            faded = of.evaluate_all("all => all.map(one => [one.dataset.variant, one.classList.contains('faded')])")
            assert {name for name, _ in faded} > {mark[4]}
            assert all(is_faded == (name != mark[4]) for name, is_faded in faded)
        chip.click()
        assert page.page.locator(".faded").count() == 0
        assert page.errors == []


def test_the_slider_shows_the_maps_of_its_step(report: Path) -> None:
    with chromium() as page:
        page.open(report)
        cell = page.page.locator("#map-0 .cell").first
        before = cell.text_content()
        page.page.locator("#step").fill("0")
        assert page.page.locator("#step-shown").inner_text() == "step 0"
        assert cell.text_content() != before
        page.page.locator("#step").fill(page.page.locator("#step").get_attribute("max") or "")
        assert cell.text_content() == before


def test_tables_sort_and_filter(report: Path) -> None:
    with chromium() as page:
        page.open(report)
        table = page.page.locator("#results-table")
        heading = table.locator("th", has_text="first-token mass").first
        column = heading.evaluate("cell => cell.cellIndex")
        heading.locator("button").click()
        values = [
            float(text.split()[0]) for text in table.locator(f"tbody td:nth-child({column + 1})").all_inner_texts()
        ]
        assert len(values) == len(BACKCOPY)
        assert values == sorted(values)
        page.page.get_by_label("Filter the rows of: Results").fill("gated")
        shown = table.locator("tbody tr:visible").all_inner_texts()
        assert 0 < len(shown) < len(BACKCOPY)
        assert all("gated" in row.lower() for row in shown)


def test_it_reads_without_scripts(report: Path) -> None:
    with chromium() as page:
        context = page.page.context.browser.new_context(java_script_enabled=False)
        still = context.new_page()
        still.goto(report.resolve().as_uri())
        assert still.locator("svg.drawing").first.is_visible()
        assert still.locator("#map-0 .cell").first.is_visible()
        assert still.locator(".slider").is_hidden()
        assert "Not shown" in still.locator("main").inner_text()


def test_a_model_page_reads_everywhere(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny/a")
    write_causes(tmp_path / "tiny")
    write_model_page([folder, tmp_path / "none"], tmp_path / "model.html")
    with chromium() as page:
        check_everywhere(page, tmp_path / "model.html")
