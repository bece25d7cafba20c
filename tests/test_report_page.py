import base64
import re
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from report_pages import BRACES, LABELS, Page, hostile_checkpoint, with_swapped_labels
from tiny_models import make_model, save_checkpoint

from mixout_export.artifacts.opening import open_artifact
from mixout_export.errors import ArgumentError, OutputError
from mixout_export.parity.comparison import compare_artifacts
from mixout_export.parity.drift import DriftMap, ModuleDrift
from mixout_export.parity.self_test.outcome import FaultOutcome, SelfTest
from mixout_export.report.facts import Facts, gather_facts
from mixout_export.report.page import check_report, render_page, write_report
from mixout_export.stages.onnx_export import export_onnx

#: Everything that the page may be made of; none of these runs anything or asks for anything.
TAGS = (
    "html head meta title link style body main header nav section div span h1 h2 h3 p a ol ul li "
    "dl dt dd table caption thead tbody tfoot tr th td details summary figure figcaption strong "
    "small mark bdi br pre code time svg path circle rect line text g defs use"
)


def compare(reference: Path, candidate: Path, **options: object) -> Facts:
    left, right = open_artifact(reference), open_artifact(candidate)
    return gather_facts(compare_artifacts(left, right), left, right, **options)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """A comparison that does not hold, all of whose names are attacks."""
    reference = hostile_checkpoint(tmp_path_factory.mktemp("hostile"))
    candidate = with_swapped_labels(reference, reference.parent / "candidate")
    return compare(reference, candidate, command="mixout-export verify '<b>' \"$x\"")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """A comparison that holds."""
    folder = tmp_path_factory.mktemp("sound")
    plain = save_checkpoint(make_model("bert"), folder / "plain")
    return compare(plain, export_onnx(plain, folder / "graph", verify=False).path)


def test_the_verdict_comes_first_and_says_why(sound: Facts, hostile: Facts) -> None:
    page = Page(render_page(sound))
    assert page.all("h1") == ["Parity holds"]
    total = sound.result.weights.total
    said = f"Parity holds All {total} weights were found. The output differs by at most"
    assert page.text.startswith(said)
    page = Page(render_page(hostile))
    assert page.all("h1") == ["Parity does not hold"]
    assert "Weight 'classifier.bias' differs by up to" in page.text
    assert page.text.index("classifier.bias") < page.text.index("1 more reason")
    assert (sound.exit_code, hostile.exit_code) == (0, 3)


def test_everything_is_on_the_page(sound: Facts) -> None:
    page = Page(render_page(sound))
    sections = ["Outputs", "Padding and other rows", "Decisions", "Weights", "Test inputs"]
    assert page.all("h2") == ["Reference", "Candidate", *sections, "Provenance"]
    text = page.text
    (output,) = sound.result.outputs
    assert f"{output.max_abs:.1e}" in text
    assert all(how in page.all("th") for how in sound.result.weights.counts)
    assert all(effect.title in page.all("th") for effect in sound.result.padding.effects)
    assert "A row padded on the left gets other results from the reference itself" in text
    assert all(name in page.all("bdi") for name in output.by_batch)
    for side in (sound.reference, sound.candidate):
        assert side.artifact.where in text
        for file in side.files:
            whole = Path(side.artifact.where) / file.name
            assert file.sha256 == sha256(whole.read_bytes()).hexdigest()
            assert file.sha256 in text
    assert {file.name for file in sound.reference.files} == {"config.json", "model.safetensors"}
    assert [file.name for file in sound.candidate.files] == ["model.onnx"]
    for name, version in sound.versions.items():
        assert name in page.all("dt")
        assert version in page.all("dd")
    assert sound.versions["PyTorch"].startswith("2.")
    assert "Command" not in text


def test_nothing_on_the_page_runs_or_asks_for_anything(hostile: Facts) -> None:
    page = Page(render_page(hostile))
    assert page.names() <= set(TAGS.split())
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "style" not in attributes
        assert "src" not in attributes
        link = attributes.get("href", "#")
        assert link.startswith("#" if tag in ("a", "use") else ("#", "data:image/svg+xml,"))
    style = re.search("<style>(.*?)</style>", page.html, re.DOTALL)
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_hostile_names_are_shown_as_they_are(hostile: Facts) -> None:
    page = Page(render_page(hostile))
    labels = [label.replace("\u202e", "⟨U+202E⟩") for label in LABELS]
    for label in labels:
        assert label in page.all("bdi")
    assert BRACES in page.text
    assert hostile.reference.artifact.where in page.text
    assert page.all("code") == ["mixout-export verify '<b>' \"$x\""]
    quotes = [text for tag, text in page.texts if tag == "bdi" and "<script>" in text]
    assert len(quotes) > len(LABELS), "flips show their texts"


def test_the_policy_admits_the_style_sheet_and_nothing_else(sound: Facts) -> None:
    page = render_page(sound)
    style = re.search("<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(sha256(style[1].encode()).digest()).decode()
    (policy,) = [
        attributes["content"]
        for tag, attributes in Page(page).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["style-src"] == f"'sha256-{digest}'"
    assert "script-src" not in rules


def test_flips_tell_both_decisions_and_the_text(hostile: Facts) -> None:
    (output,) = hostile.outputs
    assert 0 < len(output.flips) <= 20
    assert {output.flips[0].reference, output.flips[0].candidate} <= set(LABELS)
    page = Page(render_page(hostile))
    assert "Different decisions" in page.all("h2")
    for flip in output.flips:
        assert f"Row {flip.flip.row} of batch {flip.flip.batch_number}" in page.text


def test_the_drift_map_is_shown_with_all_its_modules(sound: Facts) -> None:
    modules = (
        ModuleDrift("bert.first", "Linear", 1e-7, 1e-6, (2, 16, 4)),
        ModuleDrift("bert.<second>", "LayerNorm", 0.25, 0.5, (2, 16, 4)),
        ModuleDrift("bert.third", "Dropout", reason="returns its input"),
    )
    drift = DriftMap(modules, 3e-5, "padding", (2, 16), 0.5)
    page = Page(render_page(replace(sound, result=replace(sound.result, drift=drift))))
    assert "Modules" in page.all("h2")
    assert (
        "bert.<second> (LayerNorm). It differs by 0.25 of its norm, expected at most 3.0e-05"
        in page.text
    )
    assert "exceeded by 1 of 2 modules" in page.text
    assert "bert.third Dropout returns its input" in page.text
    even = replace(drift, modules=modules[:1])
    page = Page(render_page(replace(sound, result=replace(sound.result, drift=even))))
    assert "The largest difference is 1.0e-07, at bert.first" in page.text


def test_metrics_are_shown_where_there_are_some(sound: Facts) -> None:
    metrics = {"accuracy": (0.75, 0.5), "loss": (0.25, 0.25)}
    facts = replace(sound, result=replace(sound.result, metrics=metrics))
    page = Page(render_page(facts))
    assert "Metrics" in page.all("h2")
    assert "accuracy 0.7500 0.5000 -0.2500 loss 0.2500 0.2500 0" in page.text


def test_faults_of_the_self_test_are_shown(sound: Facts) -> None:
    tested = SelfTest(
        faults=(
            FaultOutcome("dropped bias", what="head.bias", audit="head.bias"),
            FaultOutcome("stale <b>", what="head.weight"),
            FaultOutcome("zeroed segment row", not_applicable="there is one segment"),
        ),
        seconds=1.0,
    )
    page = Page(render_page(replace(sound, result=replace(sound.result, self_test=tested))))
    assert "It caught 1 of 2 faults" in page.text
    assert "dropped bias audit head.bias stale <b> nothing head.weight" in page.text
    assert "zeroed segment row not applicable: there is one segment" in page.text


def test_nothing_run_is_said(sound: Facts) -> None:
    result = replace(sound.result, outputs=(), coverage=None, padding=None)
    facts = replace(sound, result=result, outputs=())
    page = Page(render_page(facts))
    assert page.all("h2")[2:] == ["Outputs", "Weights", "Provenance"]
    assert "No output was compared" in page.text
    assert "Parity does not hold" in page.text


def test_pages_differ_in_nothing_but_date_and_duration(sound: Facts, tmp_path: Path) -> None:
    made = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    again = compare(sound.reference.artifact.path, sound.candidate.artifact.path, made=made)
    first = replace(sound, made=made, result=replace(sound.result, seconds=1.0))
    second = replace(again, result=replace(again.result, seconds=1.0))
    assert render_page(first) == render_page(second)
    assert "2026-01-02 03:04:05 UTC" in render_page(first)


def test_the_page_is_small(hostile: Facts) -> None:
    assert len(render_page(hostile).encode()) < 100_000


def test_a_report_replaces_an_older_one(sound: Facts, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(path, sound)
    assert path.read_text(encoding="utf-8") == render_page(sound)
    assert [child.name for child in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("report.txt", ArgumentError, "report: got 'report.txt', expected a name ending in .html"),
        ("model.onnx", ArgumentError, "expected a name ending in .html"),
        ("none/report.html", OutputError, "does not exist; create it"),
        ("folder.html", OutputError, "is a folder"),
    ],
)
def test_a_name_that_cannot_be_written_is_refused(
    name: str, error: type[Exception], said: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(error, match=said):
        check_report(tmp_path / name)


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(one: str, other: str) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_on_their_grounds(scheme: str, sound: Facts) -> None:
    style = render_page(sound)
    palettes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", palettes[scheme == "dark"]))
    shown = [
        ("ink", ("page", "card", "band", "good-card", "bad-card", "mark")),
        ("muted", ("page", "card", "band", "bad-card")),
        ("accent", ("page", "card")),
        ("good", ("card", "good-card")),
        ("bad", ("card", "bad-card")),
    ]
    for text, grounds in shown:
        for ground in grounds:
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
