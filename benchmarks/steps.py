"""Measure a training step of each strategy against plain finetuning.

python -m benchmarks.steps [--shape 22M] [--batch 32x128] [--device cuda --precision bf16]
python -m benchmarks.steps --shape ResNet-18 --batch 16x224 --arms plain "plain again" "filter 0.8"
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks import arguments
from benchmarks.arms import build_step
from benchmarks.measure import Ratio, by_turns, machine, markdown_table
from benchmarks.shapes import SHAPES, Batch, inputs_on

_CONTROL, _LEFT_OUT = "plain again", "product left out"
DEFAULT_ARMS = (
    "plain", _CONTROL, _LEFT_OUT, "dropout 0.1", "wdecay(pre)", "neuron 0.7", "neuron 0.8",
    "neuron 0.9", "element 0.7", "literal 0.7",
)  # fmt: skip


def measure_steps(
    arms: Sequence[str],
    shape: str,
    batch: Batch,
    *,
    rounds: int,
    device: str = "cpu",
    precision: str = "fp32",
    compiled: bool = False,
) -> dict[str, Any]:
    """Time training steps. The arms take turns.

    Args:
        arms: Names of arms. "plain" must be one of them.
        shape: Name of a model shape.
        batch: Sizes of the batch.
        rounds: Number of rounds.
        device: Device on which the steps run.
        precision: "fp32" or "bf16".
        compiled: Whether models are compiled with `torch.compile`.

    Returns:
        The settings, and the seconds of each round for each arm.
    """
    tensors = inputs_on(device, SHAPES[shape], batch)
    settings = {"device": device, "precision": precision, "compiled": compiled}
    steps = {arm: partial(build_step(arm, SHAPES[shape], **settings), tensors) for arm in arms}
    seconds = by_turns(
        steps,
        rounds=rounds,
        device=device,
        report=lambda line: print(f"{shape} {batch}: {line}", end="\r", file=sys.stderr),
    )
    print(file=sys.stderr)
    return {
        "shape": shape,
        "batch": [batch.examples, batch.size],
        **settings,
        "machine": machine(device),
        "seconds": seconds,
    }


def skippable_share(seconds: dict[str, list[float]]) -> float | None:
    """Return s, the share of a plain step that computes weight gradients; None if not measured."""
    if _LEFT_OUT not in seconds:
        return None
    return 1.0 - Ratio.of(seconds[_LEFT_OUT], seconds["plain"]).median


def table(result: dict[str, Any]) -> str:
    """Return the measurements as Markdown."""
    seconds = result["seconds"]
    share = skippable_share(seconds)
    rows = []
    for arm, times in seconds.items():
        words = arm.split()
        floor = ""
        if share is not None and words[0] in ("neuron", "filter"):
            floor = f"{1 - float(words[1]) * share:.3f}"
        against = Ratio.of(times, seconds["plain"])
        other = ""
        if "dropout 0.1" in seconds:
            other = f"{Ratio.of(times, seconds['dropout 0.1']).median:.3f}"
        rows.append((arm, f"{sorted(times)[len(times) // 2]:.3f}", against, floor, other))
    head = ("arm", "seconds", "against plain (quartiles)", "1 − p·s", "against dropout 0.1")
    text = markdown_table(head, rows)
    return text if share is None else f"{text}\n\ns = {share:.3f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="22M")
    parser.add_argument("--batch", type=Batch.parse, default=Batch(32, 128))
    parser.add_argument("--rounds", type=arguments.rounds, default=25)
    parser.add_argument("--device", type=arguments.device, default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--arms", nargs="+", type=arguments.arm, default=list(DEFAULT_ARMS))
    options = parser.parse_args()
    if "plain" not in options.arms:
        parser.error("--arms must include plain, because every arm is compared with it")
    result = measure_steps(
        options.arms,
        options.shape,
        options.batch,
        rounds=options.rounds,
        device=options.device,
        precision=options.precision,
        compiled=options.compile,
    )
    print(table(result))


if __name__ == "__main__":
    main()
