"""A bundle's `README.md`: how to start it, what to ask it, and how to check it."""

import json
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from mixout_export.bundling.example import Example
from mixout_export.bundling.plan import BundleOptions, Plan
from mixout_export.bundling.usage import DTYPES, javascript, python
from mixout_export.version import __version__

_TITLES: Mapping[str, str] = {
    "triton": "NVIDIA Triton Inference Server",
    "mlserver": "MLServer",
    "openvino": "OpenVINO Model Server",
    "transformers-js": "transformers.js",
    "optimum": "Optimum",
}


def _code(text: str) -> str:
    """Return a text as Markdown shows it as it is: on one line, within backticks."""
    line = " ".join(text.split()).replace("`", "'")
    return f"`{line}`"


def _usage(plan: Plan, options: BundleOptions) -> str:
    """Return the program that asks a library; "" for a server, which is asked over the network."""
    if options.server == "transformers-js":
        return javascript(plan, options)
    return python(plan) if options.server == "optimum" else ""


def write_guide(plan: Plan, options: BundleOptions, example: Example | None) -> str:
    """Return the page.

    Args:
        plan: What is in the bundle.
        options: How it is laid out.
        example: A request with its answer; None where there is none.
    """
    environment = Environment(
        loader=PackageLoader("mixout_export.bundling", "files"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters["code"] = _code
    return environment.get_template("guide.md.jinja").render(
        title=_TITLES[options.server],
        server=options.server,
        options=options,
        models=plan.models,
        folder=plan.models[0].folder,
        usage=_usage(plan, options),
        dtypes=DTYPES,
        example=example,
        body=None if example is None else json.dumps(example.request()),
        version=__version__,
    )
