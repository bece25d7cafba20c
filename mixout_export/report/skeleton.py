"""What the pages share: the frame, the style sheet, the policy, and how values are shown."""

import base64
import hashlib
import re
from importlib.resources import files
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mixout_export import rounding
from mixout_export.printable import printable
from mixout_export.report import words

_NUMBER = re.compile(r"\d[\d.]*e-\d+")

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="8" '
    'fill="{}"/><path d="{}" fill="none" stroke="#fff" stroke-width="2"/></svg>'
)

#: Color and mark of the icon of a page, by the class of its verdict.
_ICONS = {
    "good": ("#1a7f37", "M4 8.5l2.7 2.7L12 5.6"),
    "bad": ("#cf222e", "M5 5l6 6M11 5l-6 6"),
    "even": ("#59636e", "M4 6h8M4 10h8"),
}


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
        difference=rounding.difference,
        duration=words.duration,
        file_size=words.file_size,
        p_value=words.p_value,
        percent=words.percent,
        score=words.score,
        sentence=words.sentence,
        shape=words.shape,
        share=rounding.share,
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


def render(template: str, verdict: str, **values: object) -> str:
    """Return a page as HTML.

    Everything that comes from models, data and paths is escaped. In addition, the page's policy
    forbids scripts and requests.

    Args:
        template: Name of the page's template.
        verdict: "good", "bad" or "even": the class of the verdict, and the page's icon.
        values: The names that the template uses.
    """
    style = files("mixout_export.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),
            policy=_policy(style),
            verdict=verdict,
            icon=f"data:image/svg+xml,{quote(_ICON.format(*_ICONS[verdict]))}",
            mark=_ICONS[verdict][1],
            **values,
        )
    )
