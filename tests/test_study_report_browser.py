from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from browser import Browser, browser, is_installed
from report_pages import SCRIPT
from study_records import crashed, diverged, sweep
from test_study_report import write

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not is_installed(), reason="chromium and chromedriver are not installed"),
]

OPEN = "document.querySelectorAll('details').forEach(part => part.open = true)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study with long names, one of which is an attack."""
    folder = tmp_path_factory.mktemp("study")
    arms = [(f"{SCRIPT} mixout {p} toward the pretrained weights", p) for p in (0.0, 0.5, 0.9)]
    runs = sweep("CoLA", 4, arms)
    write([*runs, crashed(arms[0][0], 7), diverged(arms[1][0], 8)], folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


def test_the_console_is_silent_and_no_request_leaves(page: Path, tab: Browser) -> None:
    tab.open(page)
    tab.evaluate(OPEN)
    assert tab.console() == []
    assert [url for url in tab.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert tab.evaluate("document.title").startswith("No arm found that is better than <script>")


@pytest.mark.parametrize("width", [320, 400, 768, 1200])
def test_the_page_fits_its_window(width: int, page: Path, tab: Browser) -> None:
    tab.open(page, width=width)
    tab.evaluate(OPEN)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    outside = (
        "[...document.querySelectorAll('main *')]"
        ".filter(it => !it.closest('.scroll, .plotted, .hidden'))"
        ".filter(it => it.getBoundingClientRect().right > innerWidth + 1).map(it => it.outerHTML)"
    )
    assert tab.evaluate(outside) == []


def test_pictures_are_whole_and_their_text_can_be_read(page: Path, tab: Browser) -> None:
    """No text lies outside its picture; on a phone too, pictures need no scrolling."""
    for width, smallest in ((390, 6), (800, 13)):
        tab.open(page, width=width)
        cut = (
            "[...document.querySelectorAll('.plot text')].filter(it => {"
            "const a = it.getBoundingClientRect(), b = it.closest('svg').getBoundingClientRect();"
            "return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2"
            " || a.bottom > b.bottom + 2}).map(it => it.textContent)"
        )
        assert tab.evaluate(cut) == []
        scrolled = (
            "[...document.querySelectorAll('.plotted')]"
            ".filter(it => it.scrollWidth > it.clientWidth).length"
        )
        assert tab.evaluate(scrolled) == 0
        size = (
            "Math.min(...[...document.querySelectorAll('.plot text')].map(it => "
            "{const m = it.getScreenCTM();"
            " return parseFloat(getComputedStyle(it).fontSize) * Math.hypot(m.a, m.b)}))"
        )
        assert tab.evaluate(size) >= smallest


def test_pictures_follow_the_preference_for_dark(page: Path, tab: Browser) -> None:
    """Text, the cross of a failed run, and the ground all have the colors of the scheme."""
    tab.open(page, scheme="dark")
    style = "getComputedStyle(document.querySelector({})).{}"
    assert tab.evaluate(style.format("'.plot text'", "fill")) == "rgb(231, 235, 240)"
    crosses = style.format("""'.plot use[stroke="#b91c28"]'""", "stroke")
    assert tab.evaluate(crosses) == "rgb(255, 128, 128)"
    assert tab.evaluate("document.querySelectorAll('.plot defs path[stroke]').length") == 0


def test_the_browser_finds_names_for_everything(page: Path, tab: Browser) -> None:
    tab.open(page)
    tab.evaluate(OPEN)
    levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(it => +it.tagName[1])")
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tree = tab.devtools("Accessibility.getFullAXTree")["nodes"]
    named = {"image", "region", "navigation", "columnheader", "rowheader", "link", "table"}
    for node in tree:
        if node.get("role", {}).get("value") in named and not node["ignored"]:
            assert node.get("name", {}).get("value"), node


def test_the_page_prints(page: Path, tab: Browser) -> None:
    tab.open(page, scheme="dark")
    assert tab.printed().startswith(b"%PDF-")
