"""A bundle's `README.md`: how to start it, what to ask it, and how to check it."""

import json
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from mixout_export.bundling.example import Example
from mixout_export.bundling.plan import BundleOptions, Plan
from mixout_export.card.usage import usage_code
from mixout_export.tasks import known_task
from mixout_export.version import __version__

_TITLES: Mapping[str, str] = {
    "triton": "NVIDIA Triton Inference Server",
    "mlserver": "MLServer",
    "openvino": "OpenVINO Model Server",
    "transformers-js": "transformers.js",
    "optimum": "Optimum",
}

#: transformers.js' names of precisions.
DTYPES: Mapping[str, str] = {"fp32": "fp32", "fp16": "fp16", "int8": "q8"}


def _code(text: str) -> str:
    """Return a text as Markdown shows it as it is: on one line, within backticks."""
    line = " ".join(text.split()).replace("`", "'")
    return f"`{line}`"


def _usage(plan: Plan, options: BundleOptions, example: Example | None) -> str:
    """Return the program that calls the first model; "" for a server."""
    model = plan.models[0]
    task = known_task(model.folder.task)
    # The page shows the answer to this text.
    text = json.dumps(example.text) if example is not None and example.label else ""
    if options.server == "transformers-js":
        dtype = DTYPES[model.folder.precision]
        return usage_code("javascript", task, name=options.name, dtype=dtype, text=text)
    if options.server == "optimum":
        images = any(value.name == "pixel_values" for value in model.graph.inputs)
        return usage_code("optimum", task, images=images, file=model.path, text=text)
    return ""


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
        task=known_task(plan.models[0].folder.task),
        usage=_usage(plan, options, example),
        dtypes=DTYPES,
        example=example,
        body=None if example is None else json.dumps(example.request()),
        version=__version__,
    )
