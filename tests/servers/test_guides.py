"""Run the program that a library's bundle page shows, for each task."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TinyCheckpoints
from processes import ENVIRONMENTS, needs
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixout_export.bundling.plan import BundleOptions
from mixout_export.stages.bundle import bundle_onnx
from mixout_export.stages.onnx_export import export_onnx

pytestmark = [pytest.mark.servers]

NODE, OPTIMUM = ENVIRONMENTS / "node", ENVIRONMENTS / "optimum"

#: Task → architecture, head and settings of a tiny model, and what its answer has to show.
MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "text-classification": ("bert", "ForSequenceClassification", {"num_labels": 2}, "LABEL_"),
    "multi-label": (
        "bert",
        "ForSequenceClassification",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        "",
    ),
    "regression": (
        "bert",
        "ForSequenceClassification",
        {"num_labels": 1, "problem_type": "regression"},
        "",
    ),
    "token-classification": ("bert", "ForTokenClassification", {"num_labels": 3}, ""),
    "question-answering": ("bert", "ForQuestionAnswering", {}, ""),
    "multiple-choice": ("bert", "ForMultipleChoice", {}, "choice "),
    "masked-lm": ("bert", "ForMaskedLM", {}, ""),
    "causal-lm": ("gpt2", "LMHeadModel", {}, "with"),
    "headless": ("bert", "Model", {}, ""),
}


def make_bundle(task: str, server: str, tiny: TinyCheckpoints, work: Path) -> Path:
    kind, head, settings, _ = MODELS[task]
    graph = export_onnx(tiny.folder(kind, head, **settings), work / "onnx", verify=False).path
    return bundle_onnx(graph, work / "model", BundleOptions(server, "model")).out


def program(bundle: Path, language: str) -> str:
    page = (bundle / "README.md").read_text()
    return page.split(f"```{language}\n", 1)[1].split("```\n", 1)[0]


def go_on(folder: Path, *, special: bool) -> str:
    """Return the tokens that PyTorch generates for the page's text, each the likeliest."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "A text to go on with"
    inputs = tokenizer(text, add_special_tokens=special, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    return str(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def run(*command: object, folder: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_program(bundle: Path) -> str:
    """Run a page's program as the page tells a user to, and return what it prints."""
    if (bundle / "onnx").is_dir():
        (bundle.parent / "program.mjs").write_text(program(bundle, "js"))
        (bundle.parent / "node_modules").symlink_to(NODE / "node_modules")
        return run("node", "../program.mjs", folder=bundle)
    (bundle.parent / "program.py").write_text(program(bundle, "python"))
    return run(OPTIMUM / "bin" / "python", "../program.py", folder=bundle)


@pytest.mark.parametrize("task", [task for task in MODELS if task != "multiple-choice"])
def test_transformers_js_runs_it(task: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    needs(NODE)
    bundle = make_bundle(task, "transformers-js", tiny, tmp_path)
    said = run_program(bundle)
    assert MODELS[task][-1] in said
    assert "NaN" not in said


@pytest.mark.parametrize("library", ["transformers-js", "optimum"])
def test_it_generates_what_pytorch_does(
    library: str, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    needs(NODE if library == "transformers-js" else OPTIMUM)
    bundle = make_bundle("causal-lm", library, tiny, tmp_path)
    said = run_program(bundle)
    # a pipeline of transformers.js adds no special tokens to a text that is gone on with
    expected = go_on(tiny.folder("gpt2", "LMHeadModel"), special=library == "optimum")
    assert expected in said


@pytest.mark.parametrize("task", MODELS)
def test_optimum_runs_it(task: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    needs(OPTIMUM)
    bundle = make_bundle(task, "optimum", tiny, tmp_path)
    said = run_program(bundle)
    assert said.strip()
    assert MODELS[task][-1] in said
