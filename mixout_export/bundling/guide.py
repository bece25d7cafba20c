"""A bundle's `README.md`: how to start it, what to ask it, and how to check it."""

import json
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from mixout_export.bundling.example import Example
from mixout_export.bundling.plan import BundleOptions, Plan
from mixout_export.version import __version__

_TITLES: Mapping[str, str] = {
    "triton": "NVIDIA Triton Inference Server",
    "mlserver": "MLServer",
    "openvino": "OpenVINO Model Server",
    "transformers-js": "transformers.js",
    "optimum": "Optimum",
}

#: The hub's names of tasks, as pipelines call them.
_PIPELINES = {
    "regression": "text-classification",
    "multi-label": "text-classification",
    "masked-lm": "fill-mask",
    "causal-lm": "text-generation",
}

#: transformers.js' names of precisions.
_DTYPES = {"fp32": "fp32", "fp16": "fp16", "int8": "q8"}

_CLASSES = {
    "token-classification": "ORTModelForTokenClassification",
    "question-answering": "ORTModelForQuestionAnswering",
    "multiple-choice": "ORTModelForMultipleChoice",
    "masked-lm": "ORTModelForMaskedLM",
    "causal-lm": "ORTModelForCausalLM",
    "image-classification": "ORTModelForImageClassification",
}


def _code(text: str) -> str:
    """Return a text as Markdown shows it as it is: on one line, within backticks."""
    line = " ".join(text.split()).replace("`", "'")
    return f"`{line}`"


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
    task = plan.models[0].folder.task
    return environment.get_template("guide.md.jinja").render(
        title=_TITLES[options.server],
        server=options.server,
        options=options,
        models=plan.models,
        folder=plan.models[0].folder,
        pipeline=_PIPELINES.get(task, task),
        model_class=_CLASSES.get(task, "ORTModelForSequenceClassification"),
        dtypes=_DTYPES,
        example=example,
        body=None if example is None else json.dumps(example.request()),
        version=__version__,
    )
