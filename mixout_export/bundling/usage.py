"""How a bundle for a library is used: lines of Python or JavaScript that run in its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Template

from mixout_export.bundling.example import SENTENCE
from mixout_export.bundling.plan import BundleOptions, Plan

#: transformers.js' names of precisions.
DTYPES: Mapping[str, str] = {"fp32": "fp32", "fp16": "fp16", "int8": "q8"}


@dataclass(frozen=True)
class _Call:
    """How a task is asked of transformers.js.

    Attributes:
        pipeline: The pipeline's name there.
        given: What it is called with.
    """

    pipeline: str
    given: str


_CALLS = {
    "text-classification": _Call("text-classification", f'"{SENTENCE}"'),
    "multi-label": _Call("text-classification", '"A text to classify.", { top_k: null }'),
    "token-classification": _Call("token-classification", '"A text to find entities in."'),
    "question-answering": _Call(
        "question-answering", '"Which question?", "A context that holds the answer."'
    ),
    "masked-lm": _Call("fill-mask", "`A text with a ${model.tokenizer.mask_token}.`"),
    "causal-lm": _Call("text-generation", '"A text to go on with", { max_new_tokens: 20 }'),
    "image-classification": _Call("image-classification", '"image.png"'),
    "": _Call("feature-extraction", '"A text."'),
}

_JS = Template("""\
import { env, pipeline } from "@huggingface/transformers";

env.allowRemoteModels = false;
env.localModelPath = "..";           // the folder that holds this one
const model = await pipeline("$pipeline", "$name", { dtype: "$dtype" });
console.log(await model($given));
""")

#: A pipeline makes a probability of each score; a rating is none.
_JS_REGRESSION = Template("""\
import { AutoModelForSequenceClassification, AutoTokenizer, env } from "@huggingface/transformers";

env.allowRemoteModels = false;
env.localModelPath = "..";           // the folder that holds this one
const tokenizer = await AutoTokenizer.from_pretrained("$name");
const options = { dtype: "$dtype" };
const model = await AutoModelForSequenceClassification.from_pretrained("$name", options);
const { logits } = await model(tokenizer("A text to rate."));
console.log(logits.tolist());
""")

_CLASSES = {
    "token-classification": "ORTModelForTokenClassification",
    "question-answering": "ORTModelForQuestionAnswering",
    "multiple-choice": "ORTModelForMultipleChoice",
    "masked-lm": "ORTModelForMaskedLM",
    "causal-lm": "ORTModelForCausalLM",
    "image-classification": "ORTModelForImageClassification",
    "": "ORTModelForFeatureExtraction",
}

#: What a tokenizer is called with, by task.
_TEXTS = {
    "text-classification": f'"{SENTENCE}"',
    "question-answering": '"Which question?", "A context that holds the answer."',
    "multiple-choice": '["The context."] * 2, ["A choice.", "Another choice."], padding=True',
    "causal-lm": '"A text to go on with"',
    "masked-lm": 'f"A text with a {tokenizer.mask_token}."',
}

_PYTHON = Template("""\
from optimum.onnxruntime import $model_class
from transformers import AutoTokenizer

model = $model_class.from_pretrained(".", file_name="$file")
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer($text, return_tensors="pt")
$last
""")
_GENERATE = "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))"
_SCORES = """scores = model(**inputs).logits.softmax(-1)[0].tolist()
print(dict(zip(model.config.id2label.values(), scores)))"""
_STACK = "inputs = {name: value[None] for name, value in inputs.items()}  # (1, choices, tokens)"

_PYTHON_IMAGE = Template("""\
from optimum.onnxruntime import $model_class
from PIL import Image
from transformers import AutoImageProcessor

model = $model_class.from_pretrained(".", file_name="$file")
processor = AutoImageProcessor.from_pretrained(".")
print(model(**processor(Image.open("image.png"), return_tensors="pt")))
""")


def javascript(plan: Plan, options: BundleOptions) -> str:
    """Return a program for Node that asks the first model."""
    folder = plan.models[0].folder
    values = {"name": options.name, "dtype": DTYPES[folder.precision]}
    if folder.task == "regression":
        return _JS_REGRESSION.substitute(values)
    call = _CALLS.get(folder.task, _CALLS[""])
    return _JS.substitute(values, pipeline=call.pipeline, given=call.given)


def python(plan: Plan) -> str:
    """Return a program that asks the first model through Optimum."""
    first = plan.models[0]
    task = first.folder.task
    values = {
        "model_class": _CLASSES.get(task, "ORTModelForSequenceClassification"),
        "file": str(first.path),
    }
    if task == "image-classification":
        return _PYTHON_IMAGE.substitute(values)
    last = {
        "text-classification": _SCORES,
        "causal-lm": _GENERATE,
        "multiple-choice": f"{_STACK}\nprint(model(**inputs))",
    }.get(task, "print(model(**inputs))")
    return _PYTHON.substitute(values, text=_TEXTS.get(task, '"A text."'), last=last)
