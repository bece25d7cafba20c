"""How a model is used, in a few lines of Python that run as they stand."""

from collections.abc import Sequence

from mixout_export.card.header import pipeline_tag
from mixout_export.card.markdown import python
from mixout_export.files.layout import LAYOUT
from mixout_export.tasks import Task

_FOLDER = 'folder = "."  # this folder, or its name on the hub'

#: What a pipeline is called with, by task: arguments of its making, and its input.
_PIPELINES = {
    "text-classification": ("", '"A text to classify."'),
    "regression": (', function_to_apply="none"', '"A text to rate."'),
    "multi-label": (', top_k=None, function_to_apply="sigmoid"', '"A text to classify."'),
    "token-classification": (', aggregation_strategy="simple"', '"A text to find entities in."'),
    "masked-lm": ("", 'f"A text with a {model.tokenizer.mask_token}."'),
    "causal-lm": ("", '"A text to go on with", max_new_tokens=20'),
    "image-classification": ("", '"image.png"'),
}

#: Inputs of the tasks that have no pipeline, and of graphs: what a tokenizer is called with.
_QUESTION = '"Which question?", "A context that holds the answer."'
_CHOICES = '["The context."] * 2, ["A first choice.", "A second choice."], padding=True'

_WITHOUT_PIPELINE = """
import torch
from transformers import {auto_class}, AutoTokenizer

{folder}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto_class}.from_pretrained(folder).eval()
inputs = tokenizer({text}, return_tensors="pt")
{before}with torch.no_grad():
    outputs = model(**inputs)
{after}
"""
_ANSWER = """start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))"""
_PICK = "print(outputs.logits.argmax(-1))"
_STACK = "inputs = {name: value[None] for name, value in inputs.items()}  # (1, choices, tokens)\n"

_TEXT_GRAPH = """
import onnxruntime
from transformers import AutoTokenizer

folder = "."  # this folder, or one that the hub's was downloaded to
session = onnxruntime.InferenceSession(f"{{folder}}/{graph}")
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer({text}, return_tensors="np")
{stack}names = {{each.name for each in session.get_inputs()}}
outputs = session.run(None, {{name: inputs[name] for name in names}})
print(dict(zip((each.name for each in session.get_outputs()), outputs)))
"""
_IMAGE_GRAPH = """
import onnxruntime
from PIL import Image
from transformers import AutoImageProcessor

folder = "."  # this folder, or one that the hub's was downloaded to
session = onnxruntime.InferenceSession(f"{{folder}}/{graph}")
processor = AutoImageProcessor.from_pretrained(folder)
inputs = processor(Image.open("image.png"), return_tensors="np")
print(session.run(None, dict(inputs)))
"""


def model_usage(task: Task | None) -> str:
    """Return how a folder of weights is used, as Markdown.

    Args:
        task: Its task; None for a model without a head.
    """
    name = "" if task is None else task.name
    if name in _PIPELINES:
        options, text = _PIPELINES[name]
        made = f'pipeline("{pipeline_tag(task)}", model=folder{options})'
        lines = ["from transformers import pipeline", "", _FOLDER, f"model = {made}"]
        return python("\n".join([*lines, f"print(model({text}))"]))
    text, before, after = {
        "question-answering": (_QUESTION, "", _ANSWER),
        "multiple-choice": (_CHOICES, _STACK, _PICK),
    }.get(name, ('"A text."', "", "print(outputs.last_hidden_state.shape)"))
    auto_class = "AutoModel" if task is None else task.auto_class
    return python(
        _WITHOUT_PIPELINE.format(
            auto_class=auto_class, folder=_FOLDER, text=text, before=before, after=after
        )
    )


def graph_usage(task: Task | None, inputs: Sequence[str]) -> str:
    """Return how a folder with a graph is used, as Markdown.

    Args:
        task: The model's task; None for one without a head.
        inputs: Names of the graph's inputs.
    """
    name = "" if task is None else task.name
    if "pixel_values" in inputs:
        return python(_IMAGE_GRAPH.format(graph=LAYOUT.onnx))
    text = {"question-answering": _QUESTION, "multiple-choice": _CHOICES}.get(name, '"A text."')
    stack = _STACK if name == "multiple-choice" else ""
    return python(_TEXT_GRAPH.format(graph=LAYOUT.onnx, text=text, stack=stack))
