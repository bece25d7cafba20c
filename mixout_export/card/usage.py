"""How a model is used, in a few lines of code that run as they stand."""

from collections.abc import Sequence
from typing import Literal

from mixout_export.card.markdown import python
from mixout_export.files.layout import LAYOUT
from mixout_export.tasks import Task, Usage

_HEADLESS = Task(
    name="",
    auto_class="AutoModel",
    architecture_suffixes=(),
    pipeline_tag="feature-extraction",
    usage=Usage(
        text='"A text."',
        javascript='"A text."',
        answer="print(outputs.last_hidden_state.shape)",
    ),
)


def usage_code(
    kind: Literal["model", "graph", "optimum", "javascript"], task: Task | None, **values: object
) -> str:
    """Return the code that calls a model, as the macro `kind` in `usage.jinja` writes it."""
    return _code(kind, task or _HEADLESS, **values)


def _code(macro: str, *values: object, **named: object) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # only where a card is written

    environment = Environment(
        loader=PackageLoader("mixout_export", "card"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # code, not HTML
    )
    macros = environment.get_template("usage.jinja").module
    code: str = getattr(macros, macro)(*values, **named)
    return code.strip() + "\n"


def served_usage(address: str, folder: str) -> str:
    """Return the program that sends an image to a server.

    Args:
        address: Where the server takes requests for the model.
        folder: The folder of the image processor.
    """
    return _code("served", address, folder)


def model_usage(task: Task | None) -> str:
    """Return how a folder of weights is used, as Markdown."""
    return python(usage_code("model", task))


def graph_usage(task: Task | None, inputs: Sequence[str]) -> str:
    """Return how a folder with a graph of these inputs is used, as Markdown."""
    images = "pixel_values" in inputs
    return python(usage_code("graph", task, images=images, file=LAYOUT.onnx))
