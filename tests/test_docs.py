"""The pages name what exists, name all of it, and link to what is there."""

import re
from pathlib import Path

import pytest
from pages import PAGES, README, ROOT, anchors, blocks, code, links
from test_cli_help import COMMANDS, options_of
from test_imports import ORDER

import mixout_export
from mixout_export.stages.study.settings import SCHEMA
from mixout_export.study.options import hyphenated
from mixout_export.study.plan import _ARM, _STUDY, _TASK, read_plan
from mixout_export_cli.main import cli

#: Options that every command has, or every command that writes.
EVERYWHERE = {"json", "quiet", "overwrite"}

#: Pages that also name options of `benchmarks` and `gpu`.
OTHER_PROGRAMS = {"design.md", "benchmarks.md"}

IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def uses(page: Path) -> list[tuple[str, str]]:
    """Return the commands that a page shows, each with the rest of its line."""
    found = []
    for span in code(page):
        found += re.findall(r"mixout-export ([a-z][a-z-]*)\b(.*)", span)
        found += re.findall(r"-m mixout_export_cli ([a-z][a-z-]*)\b(.*)", span)
        found += re.findall(rf"^({'|'.join(COMMANDS)}) (.*)", span)
    return found


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_and_option_on_a_page_exists(page: Path) -> None:
    former = {"also", "blocks"} if page.name == "CHANGELOG.md" else set()
    for name, rest in uses(page):
        assert name in cli.commands, name
        known = {*options_of(name), "help"} | former
        assert set(re.findall(r"--([a-z][a-z-]*)", rest.split("#")[0])) <= known, (name, rest)
    every = {option for name in COMMANDS for option in options_of(name)} | {"help", "version"}
    every |= former
    for span in code(page):
        if re.match(r"--[a-z]", span) and page.name not in OTHER_PROGRAMS:
            assert span.split()[0].removeprefix("--") in every, span


def test_every_command_is_in_the_readme() -> None:
    assert {name for name, _ in uses(README)} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_on_a_page(name: str) -> None:
    text = "\n".join(span for page in PAGES if page.name != "CHANGELOG.md" for span in code(page))
    for option in options_of(name):
        assert option in EVERYWHERE or re.search(rf"--{option}\b(?!-)", text), option


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_on_a_page_is_valid(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, str(page), "exec")
        for names in re.findall(r"^from mixout_export import (.+)$", block.text, re.MULTILINE):
            for name in names.split(", "):
                assert name in mixout_export.__all__, name


def test_the_map_of_the_design_page_is_the_order_of_imports() -> None:
    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.+?) \|", design.split("## Data flow")[0], re.MULTILINE)
    parts = [set(re.findall(r"`(\w+)`", row)) for row in rows]
    assert parts[: len(ORDER)] == [set(group) for group in ORDER]
    folders = {name for row in rows for name in re.findall(r"`(\w+)/`", row)}
    beside = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert beside - {"mixout_export", "build"} == folders - {"build"}


def test_the_plan_on_the_page_of_studies_is_one_and_all_keys_are_there(tmp_path: Path) -> None:
    page = ROOT / "docs" / "study.md"
    (plan,) = [block.text for block in blocks(page) if block.language == "toml"]
    (tmp_path / "study.toml").write_text(plan, "utf-8")
    assert len(read_plan(tmp_path / "study.toml", SCHEMA).arms) == 2
    keys = page.read_text("utf-8").split("## All keys of a plan")[1].split("\n## ")[0]
    _, *tables = re.split(r"^\*\*`\[+(\w+)\]+`\*\*", keys, flags=re.MULTILINE)
    described = dict(zip(tables[::2], tables[1::2], strict=True))
    for name, known in (("study", _STUDY), ("task", _TASK), ("arm", _ARM)):
        for key in known:
            assert f"`{hyphenated(key)}`" in described[name], (name, key)


def test_the_errors_on_the_troubleshooting_page_exist() -> None:
    page = (ROOT / "docs" / "troubleshoot.md").read_text("utf-8")
    symptoms = "\n".join(re.findall(r"^\| (.+?) \|", page, re.MULTILINE))
    quoted = {
        span for span in re.findall(r"`([a-z][^`]* [^`]*)`", symptoms) if "mixout" not in span
    }
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "mixout_export").rglob("*.py"))
    sources = re.sub(r'"\s+f?"', "", sources)
    assert quoted
    for text in quoted:
        pattern = re.escape(text).replace("nan", r"\S+").replace("inf", r"\S+")
        assert re.search(pattern, sources), text
