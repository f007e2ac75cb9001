"""The report as a person has it before them: a real Chromium loads it once, and looks, reads, presses keys and measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from comparisons import Stand, better
from test_report import ATTACK, finished_run

from mlops_tasks.algorithms import Cell
from mlops_tasks.config.environment import Environment
from mlops_tasks.report import page
from mlops_tasks.report.algorithms import page as algorithms_page
from scripts import browser as chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
SCHEMES = ("light", "dark")
LONG = f"Promoted by laptop/wmtp_daily/manual__{'2026-11-24T20%3A57%3A14.650500%2B00%3A00' * 2}."
"""With a name that no phone has room for in one line."""
# Text against what lies behind it, all half-transparent layers mixed; WCAG 2.2, 1.4.3.
TOO_PALE = """() => {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const luminance = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = element => {
    const layers = []; let opacity = 1;
    for (let one = element; one; one = one.parentElement) {
      const style = getComputedStyle(one), colour = rgba(style.backgroundColor);
      opacity *= one === element ? 1 : +style.opacity; layers.push(colour);
    }
    return layers.reverse().reduce((below, top) => over(top, below), rgba(getComputedStyle(document.body).backgroundColor));
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize), below = behind(element);
    const ink = over(rgba(element.closest('svg') ? style.fill : style.color), below);
    const [high, low] = [luminance(ink), luminance(below)].sort((a, b) => b - a);
    const ratio = (high + .05) / (low + .05), isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    seen += 1;
    if (ratio < (isLarge ? 3 : 4.5)) found.push([text.slice(0, 40), element.className.baseVal ?? element.className, +ratio.toFixed(2)]);
  }
  return {seen, found};
}"""


@dataclass
class Seen:
    """A page, and what it complained of or asked for."""

    page: Page
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, browser: Browser, path: Path) -> Seen:
        seen = cls(browser.new_page(viewport=WIDE, color_scheme="light"))
        seen.page.set_default_timeout(120_000)
        seen.page.on("console", lambda message: seen.problems.append(message.text))
        seen.page.on("pageerror", lambda error: seen.problems.append(str(error)))
        seen.page.on("dialog", lambda dialog: (seen.problems.append(dialog.message), dialog.dismiss()))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.goto(path.as_uri())
        return seen


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    pytest.importorskip("playwright", reason="needs Playwright, which `make setup` installs")
    if chromium.find() is None:
        pytest.skip(f"needs one of {', '.join(chromium.NAMES)}")
    with chromium.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen.open(browser, written(tmp_path_factory.mktemp("report")))


def written(folder: Path, **hostile: str) -> Path:
    environment = Environment(store=str(folder / "store"), mlflow_uri=f"sqlite:///{folder / 'mlflow.db'}")
    path = folder / "report.html"
    run = finished_run(environment, **hostile)
    promoted = run.pointer("promote")
    assert promoted is not None
    run.point(promoted.model_copy(update={"detail": {**promoted.detail, "reason": LONG}}))
    path.write_text(page(run), encoding="utf-8")
    return path


@pytest.fixture
def sheet(report: Seen) -> Page:
    """The page at its top, wide and light, with every fold closed but those that the page opens itself."""
    report.page.set_viewport_size(WIDE)
    report.page.emulate_media(color_scheme="light")
    report.page.evaluate(
        "() => { scrollTo(0, 0); document.activeElement.blur(); document.getElementById('only-all').checked = true; }"
    )
    return report.page


def test_nothing_is_complained_of_and_nothing_is_fetched(report: Seen) -> None:
    assert report.problems == []
    assert set(report.requests) == {report.page.url}


def test_charts_are_drawn_with_real_sizes(sheet: Page) -> None:
    charts = sheet.eval_on_selector_all(
        "svg",
        """all => all.map(svg => ({
            name: svg.getAttribute('aria-label'), width: svg.getBoundingClientRect().width, height: svg.getBoundingClientRect().height,
            shapes: [...svg.querySelectorAll('polyline, rect, circle, path')].filter(one => one.getBBox().width + one.getBBox().height > 1).length,
            spilt: [...svg.querySelectorAll('text')].filter(one => one.getBBox().x < -12 || one.getBBox().x + one.getBBox().width > 532).length,
        }))""",
    )
    shapes = {chart["name"]: chart["shapes"] for chart in charts}
    assert shapes["Training loss"] == 4
    assert shapes["Right as often as sure?"] == 5  # four heads and the diagonal
    assert shapes["How the weights are spread"] > 10
    assert shapes["What was made of what"] > 12
    assert len(charts) == 10
    assert all(chart["width"] > 300 and chart["height"] > 100 and chart["spilt"] == 0 for chart in charts)
    bars = sheet.eval_on_selector_all(".track .bar", "all => all.map(bar => bar.getBoundingClientRect().width)")
    assert max(bars) > 100


def test_every_box_of_the_graph_holds_its_text_on_a_phone_too(sheet: Page) -> None:
    for size in (WIDE, PHONE):
        sheet.set_viewport_size(size)
        room = sheet.eval_on_selector_all(
            "svg g:has(> .node)",
            "all => all.map(g => g.querySelector('.node').getBBox().width - g.querySelector('text').getBBox().width)",
        )
        assert len(room) > 6 and min(room) > 4


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_page_does_not_scroll_sideways_even_with_everything_open(sheet: Page, size: Any) -> None:
    sheet.set_viewport_size(size)
    were_open = "details[open]"
    sheet.evaluate(f"() => {{ for (const one of document.querySelectorAll('{were_open}')) one.dataset.was = 1; }}")
    sheet.evaluate("() => { for (const one of document.querySelectorAll('details')) one.open = true; }")
    assert sheet.evaluate("() => document.documentElement.scrollWidth") <= size["width"]
    sheet.evaluate("() => { for (const one of document.querySelectorAll('details')) one.open = 'was' in one.dataset; }")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_text_stands_out_as_wcag_aa_asks(sheet: Page, scheme: Any) -> None:
    sheet.emulate_media(color_scheme=scheme)
    result = sheet.evaluate(TOO_PALE)
    assert result["seen"] > 500
    assert result["found"] == []


def test_programs_are_filtered_with_arrow_keys(sheet: Page) -> None:
    sheet.focus("#only-all")
    sheet.keyboard.press("ArrowRight")
    assert sheet.evaluate("() => document.activeElement.id") == "only-passed"
    shown = sheet.eval_on_selector_all(
        ".filter .group > details", "all => all.filter(one => one.checkVisibility()).map(one => one.className)"
    )
    told = int(sheet.inner_text("label[for=only-passed] small"))
    assert 0 < len(shown) == told
    assert all("is-passed" in name for name in shown)
    assert (
        sheet.evaluate("() => getComputedStyle(document.querySelector('label[for=only-passed]')).outlineStyle")
        == "solid"
    )


def test_tab_goes_down_the_page_shows_where_it_is_and_opens_folds(sheet: Page) -> None:
    sheet.reload()
    places = []
    for _ in range(40):
        sheet.keyboard.press("Tab")
        place = sheet.evaluate(
            """() => { const one = document.activeElement, style = getComputedStyle(one), box = one.getBoundingClientRect();
            return [one.tagName, box.top + scrollY + (one.closest('nav') ? -1e6 : 0), style.outlineStyle, one.getAttribute('href')]; }"""
        )
        places.append(place)
    assert places[0][3] == "#tasks"
    heights = [top for _, top, _, _ in places if top > 0]
    assert heights == sorted(heights) and len(heights) > 10
    assert {outline for tag, _, outline, _ in places if tag in ("A", "SUMMARY")} == {"solid"}
    sheet.focus(".filter summary >> nth=1")
    for is_open in (True, False):
        sheet.keyboard.press("Enter")
        assert sheet.evaluate("() => document.activeElement.parentElement.open") is is_open


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_axe_finds_no_fault(sheet: Page, size: Any) -> None:
    """Contrast is measured above, and faster."""
    sheet.set_viewport_size(size)
    axe = pytest.importorskip(
        "axe_playwright_python", reason="needs axe-playwright-python, which `make setup` installs"
    )
    sheet.evaluate(Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8"))
    found = sheet.evaluate(
        "async () => (await axe.run({rules: {'color-contrast': {enabled: false}}})).violations.map(one => [one.id, one.nodes.map(node => node.html).slice(0, 3)])"
    )
    assert found == []


def test_hostile_programs_run_nothing(browser: Browser, tmp_path: Path) -> None:
    seen = Seen.open(browser, written(tmp_path, completion=ATTACK, prompt=ATTACK, token=ATTACK))
    assert "alert(1)" in seen.page.inner_text(".filter")
    assert (seen.problems, seen.requests) == ([], [seen.page.url])
    seen.page.close()


@pytest.fixture(scope="module")
def compared(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """The page of a comparison of algorithms, with something shown and something not."""
    folder = tmp_path_factory.mktemp("comparison")
    findings = Stand.of(folder, "uniform", "ntp", "rho1-soft", "shuffled").ended(better("rho1-soft", 20), uneven_nats)
    path = folder / "report.html"
    path.write_text(algorithms_page(findings), encoding="utf-8")
    return Seen.open(browser, path)


def uneven_nats(cell: Cell) -> float:
    return 1.0 + 0.1 * cell.seed - 0.02 * len(cell.arm)


def test_the_page_of_a_comparison_fits_stands_out_and_asks_for_nothing(compared: Seen) -> None:
    sheet = compared.page
    assert compared.problems == [] and set(compared.requests) == {sheet.url}
    for size in (WIDE, PHONE):
        sheet.set_viewport_size(size)
        assert sheet.evaluate("() => document.documentElement.scrollWidth") <= size["width"]
    for scheme in SCHEMES:
        sheet.emulate_media(color_scheme=scheme)
        result = sheet.evaluate(TOO_PALE)
        assert result["seen"] > 100 and result["found"] == []


def test_the_curves_of_a_comparison_have_bands_behind_them(compared: Seen) -> None:
    drawn = compared.page.eval_on_selector_all(
        "svg", "all => all.map(svg => [...svg.querySelectorAll('polygon.band')].map(one => one.getBBox().height))"
    )
    assert len(drawn) == 3 and all(len(heights) == 2 and min(heights) > 5 for heights in drawn)
