"""Write the page: one file that loads nothing else."""

from pathlib import Path

from mixout_export.errors import ArgumentError
from mixout_export.files.output import check_file, replaced_file
from mixout_export.parity.decisions import DATA_BATCH
from mixout_export.report.facts import Facts
from mixout_export.report.skeleton import render
from mixout_export.report.summary import summarize

_SUFFIXES = (".html", ".htm")


def render_page(facts: Facts) -> str:
    """Return the page as HTML."""
    # matplotlib only where it is needed
    from mixout_export.report.pictures import draw_drift_map, draw_histogram

    return render(
        "page.html.jinja",
        "good" if facts.result.passed else "bad",
        facts=facts,
        result=facts.result,
        summary=summarize(facts.result),
        data_batch=DATA_BATCH,
        draw_drift_map=draw_drift_map,
        draw_histogram=draw_histogram,
    )


def check_report(path: Path) -> None:
    """Check before a comparison that its report can be written.

    Raises:
        ArgumentError: The name does not end in .html.
        OutputError: The folder is missing, or `path` is a folder.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise ArgumentError(f"report: got {path.name!r}, expected a name ending in .html")
    check_file(path)


def write_report(path: Path, facts: Facts) -> None:
    """Write the page. An existing file is replaced once the new one is complete.

    Raises:
        ArgumentError: The name does not end in .html.
        OutputError: It cannot be written.
    """
    check_report(path)
    page = render_page(facts)
    with replaced_file(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
