"""The scripts in `examples/` that train, each as a user runs it."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TinyCheckpoints
from cli_runs import environment
from safetensors.torch import load_file
from training_runs import sentences, write_tsv
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mixout_export import load_mixout
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.surgery.injection import mixout_layers

EXAMPLES = Path(__file__).parents[1] / "examples"
LR, DECAY = 1e-2, 0.01
SCRIPTS = ("own_loop.py", "with_trainer.py", "with_lightning.py")


def run_example(script: str, *arguments: object, without: str = "") -> str:
    """Run a script in a process of its own, in which one module cannot be imported."""
    path = str(EXAMPLES / script)
    start = f"import runpy, sys; sys.modules.update({{{without!r}: None}} if {without!r} else {{}})"
    command = f"{start}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    run = subprocess.run(
        [sys.executable, "-c", command, path, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def share_of_columns_at_rest(layers: Iterable[Any]) -> float:
    """Return the share of input neurons that one update of Adam left alone, but for its decay.

    Where mixout was active they are those that it dropped; else there are none.
    """
    resting, columns = 0, 0
    for layer in layers:
        moved = (layer.weight - layer.pretrained_weight).abs()
        resting += int(
            (moved <= 2 * LR * DECAY * layer.pretrained_weight.abs() + 1e-7).all(0).sum()
        )
        columns += layer.weight.shape[1]
    return resting / columns


def check(script: str, tiny: TinyCheckpoints, tmp_path: Path, *, without: str = "") -> None:
    base, out = tiny.base(), tmp_path / "out"
    write_tsv(tmp_path / "train.tsv", ("sentence", "label"), sentences(32, seed=0))
    options = ("--train-file", tmp_path / "train.tsv", "--steps", 1, "--lr", LR)
    run_example(script, base, out, *options, without=without)

    collapse_checkpoint(out / "mixout", tmp_path / "collapsed")
    plain = load_file(out / "plain" / "model.safetensors")
    collapsed = load_file(tmp_path / "collapsed" / "model.safetensors")
    assert plain.keys() == collapsed.keys()
    assert all(torch.equal(plain[key], collapsed[key]) for key in plain)

    anchors = {f"bert.{key}": value for key, value in load_file(base / "model.safetensors").items()}
    layers = mixout_layers(load_mixout(out / "mixout"))
    assert len(layers) == 13
    for name, layer in layers.items():
        assert layer.p == 0.7
        assert torch.equal(layer.pretrained_weight, anchors[f"{name}.weight"])
    # 0.7 is expected, of some 450 columns
    assert 0.5 < share_of_columns_at_rest(layers.values()) < 0.85
    with quiet_libraries():
        model = AutoModelForSequenceClassification.from_pretrained(out / "plain").eval()
        inputs = AutoTokenizer.from_pretrained(out / "plain")("the dog sleeps", return_tensors="pt")
    assert model(**inputs).logits.shape == (1, 2)
    assert not hasattr(model.config, "mixout")


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_an_example_trains_collapses_to_what_it_saves(
    script: str, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    check(script, tiny, tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None, reason="else the test above is this one"
)
def test_the_example_of_lightning_does_without(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    check("with_lightning.py", tiny, tmp_path, without="lightning")


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_says_how_it_is_run(script: str) -> None:
    text = (EXAMPLES / script).read_text("utf-8")
    assert f"python examples/{script} BASE OUT" in text
    assert len(text.splitlines()) < 120
