"""Write a bundle's `README.md`: how to start the server, send a request, and check the result."""

import json
from collections.abc import Mapping, Sequence
from functools import partial

from jinja2 import Environment, PackageLoader, StrictUndefined

from mixout_export.bundling.example import Example
from mixout_export.bundling.plan import BundleOptions, Plan
from mixout_export.bundling.source import Value
from mixout_export.card.usage import served_usage, usage_code
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
    """Return a text as inline code in Markdown, on one line."""
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
        images = model.folder.takes_images
        return usage_code("optimum", task, images=images, file=model.path, text=text)
    return ""


def _without_cache(values: Sequence[Value]) -> list[Value]:
    """Leave out the key/value cache, which has two tensors per layer."""
    return [v for v in values if not v.name.startswith(("past_key_values.", "present."))]


def write_guide(plan: Plan, options: BundleOptions, example: Example | None) -> str:
    """Return the page as Markdown. There is no example if the graph takes no texts."""
    environment = Environment(
        loader=PackageLoader("mixout_export.bundling", "files"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters["code"] = _code
    first = plan.models[0]
    inputs = _without_cache(first.graph.inputs)
    return environment.get_template("guide.md.jinja").render(
        title=_TITLES[options.server],
        server=options.server,
        options=options,
        models=plan.models,
        folder=first.folder,
        inputs=inputs,
        outputs=_without_cache(first.graph.outputs),
        cached=len(inputs) < len(first.graph.inputs),
        task=known_task(first.folder.task),
        usage=_usage(plan, options, example),
        served=partial(served_usage, folder=f"{options.name}/tokenizer")
        if first.folder.takes_images
        else None,
        dtypes=DTYPES,
        example=example,
        body=None if example is None else json.dumps(example.request()),
        version=__version__,
    )
