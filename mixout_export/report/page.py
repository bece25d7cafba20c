"""Write the page: one file that loads nothing else."""

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mixout_export.errors import ArgumentError
from mixout_export.files.output import check_file, replaced_file
from mixout_export.parity.decisions import DATA_BATCH
from mixout_export.printable import printable
from mixout_export.report import words
from mixout_export.report.facts import Facts
from mixout_export.report.summary import summarize

_SUFFIXES = (".html", ".htm")
_NUMBER = re.compile(r"\d[\d.]*e-\d+")

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="8" '
    'fill="{}"/><path d="{}" fill="none" stroke="#fff" stroke-width="2"/></svg>'
)
_ICONS = {True: ("#1a7f37", "M4 8.5l2.7 2.7L12 5.6"), False: ("#cf222e", "M5 5l6 6M11 5l-6 6")}


def _shown(value: object) -> object:
    """Return the value of a template's expression with invisible characters spelled out."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value


def _unbroken(text: str) -> Markup:
    """Return text in which lines do not break within a number such as 1e-05."""
    escaped = str(escape(printable(text)))
    whole = _NUMBER.sub(r'<span class="whole">\g<0></span>', escaped)
    return Markup(whole)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mixout_export", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=words.count,
        decimal=words.decimal,
        difference=words.difference,
        file_size=words.file_size,
        sentence=words.sentence,
        shape=words.shape,
        share=words.share,
        unbroken=_unbroken,
    )
    return environment


def _policy(style: str) -> str:
    """Return a content security policy that allows only the page's own style sheet."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def render_page(facts: Facts) -> str:
    """Return the page as HTML.

    Everything that comes from models, data and paths is escaped. In addition, the page's policy
    forbids scripts and requests.
    """
    # matplotlib only where it is needed
    from mixout_export.report.pictures import draw_drift_map, draw_histogram

    style = files("mixout_export.report").joinpath("page.css").read_text(encoding="utf-8")
    holds = facts.result.passed
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            facts=facts,
            result=facts.result,
            summary=summarize(facts.result),
            data_batch=DATA_BATCH,
            draw_drift_map=draw_drift_map,
            draw_histogram=draw_histogram,
            style=Markup(style),
            policy=_policy(style),
            icon=f"data:image/svg+xml,{quote(_ICON.format(*_ICONS[holds]))}",
            mark=_ICONS[holds][1],
        )
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
