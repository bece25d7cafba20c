from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from browser import Browser, browser, is_installed
from report_pages import LABELS, hostile_checkpoint, with_swapped_labels

from mixout_export.stages.verify import verify_checkpoints

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not is_installed(), reason="chromium and chromedriver are not installed"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all its sections, every name in which is an attack."""
    reference = hostile_checkpoint(tmp_path_factory.mktemp("hostile"))
    candidate = with_swapped_labels(reference, reference.parent / "candidate")
    path = tmp_path_factory.mktemp("page") / "report.html"
    command = f"mixout-export verify '{LABELS[0]}'"
    assert not verify_checkpoints(reference, candidate, report_to=path, command=command).holds
    return path


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


def test_the_console_is_silent_and_no_request_leaves(page: Path, tab: Browser) -> None:
    tab.open(page)
    tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert tab.console() == []
    assert [url for url in tab.requests() if not url.startswith("data:")] == [page.as_uri()]


def test_nothing_hostile_becomes_part_of_the_page(page: Path, tab: Browser) -> None:
    tab.open(page)
    assert tab.evaluate("document.querySelectorAll('script, img, b, textarea, iframe').length") == 0
    assert tab.evaluate("document.title").startswith("Parity does not hold: /")
    shown = tab.evaluate("document.body.textContent")
    for label in LABELS:
        assert label.replace("\u202e", "⟨U+202E⟩") in shown


def test_the_policy_would_stop_a_script(page: Path, tab: Browser, tmp_path: Path) -> None:
    infected = tmp_path / "infected.html"
    attack = "<script>document.title = 'owned'</script><img src='https://example.org/x.png'>"
    infected.write_text(page.read_text("utf-8").replace("</main>", f"{attack}</main>"), "utf-8")
    tab.open(infected)
    said = " ".join(tab.console())
    assert tab.evaluate("document.title") != "owned"
    assert "Content Security Policy" in said
    assert "img-src" in said


@pytest.mark.parametrize("width", [320, 400, 768, 1200])
def test_the_page_fits_its_window(width: int, page: Path, tab: Browser) -> None:
    tab.open(page, width=width)
    tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    outside = (
        "[...document.querySelectorAll('main *')]"
        ".filter(it => !it.closest('.scroll, .broad, .hidden'))"
        ".filter(it => it.getBoundingClientRect().right > innerWidth + 1).map(it => it.outerHTML)"
    )
    assert tab.evaluate(outside) == []


def test_the_page_follows_the_preference_for_dark(page: Path, tab: Browser) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    tab.open(page, scheme="light")
    light = tab.evaluate(ground)
    tab.open(page, scheme="dark")
    assert (light, tab.evaluate(ground)) == ("rgb(246, 247, 249)", "rgb(14, 17, 22)")


def test_the_browser_finds_names_for_everything(page: Path, tab: Browser) -> None:
    """What a screen reader is told: a language, a title, headings in order, named parts."""
    tab.open(page)
    assert tab.evaluate("document.documentElement.lang") == "en"
    levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(it => +it.tagName[1])")
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tree = tab.devtools("Accessibility.getFullAXTree")["nodes"]
    named = {"image", "region", "navigation", "columnheader", "rowheader", "link", "table"}
    for node in tree:
        role = node.get("role", {}).get("value")
        if role in named and not node["ignored"]:
            assert node.get("name", {}).get("value"), node


def test_the_page_prints(page: Path, tab: Browser) -> None:
    tab.open(page)
    assert tab.printed().startswith(b"%PDF-")


def test_nothing_is_cut_off_in_a_narrow_window(page: Path, tab: Browser) -> None:
    tab.open(page, width=500)
    tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    cut = (
        "[...document.querySelectorAll('.scroll, .broad')]"
        ".filter(it => it.scrollWidth > it.clientWidth).map(it => it.ariaLabel)"
    )
    assert tab.evaluate(cut) == []
    size = (
        "Math.min(...[...document.querySelectorAll('.broad text')].map(it => "
        "it.getBoundingClientRect().height).filter(height => height))"
    )
    assert tab.evaluate(size) >= 8
