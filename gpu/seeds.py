"""Compare plain finetuning and mixout, for as many seeds as time allows."""

import json
import statistics
import time

import torch

from benchmarks.measure import markdown_table
from gpu.kit import Kit
from gpu.results import CannotRun, Finding

_ARMS = {"plain": 0.0, "mixout 0.7": 0.7, "mixout 0.9": 0.9}
_METRIC = "matthews"
_MOST_SEEDS = 20


def compare_seeds(device: torch.device, kit: Kit, deadline: float) -> Finding:
    """Finetune each arm with one seed after another until the time is up.

    Each seed sets the head, the data order and the masks. All strategies use the same seeds. Only
    seeds that every strategy has finished count.

    Args:
        device: Device to train on.
        kit: Checkpoint and data.
        deadline: Time at which to end, as `time.monotonic` gives it.
    """
    on_gpu = device.type == "cuda"
    rows, eval_rows = (1000, 1000) if on_gpu else (64, 32)
    settings = (
        {"epochs": 3.0, "lr": 5e-5, "precision": "bf16"} if on_gpu else {"max_steps": 2, "lr": 5e-5}
    )
    values: dict[str, list[float]] = {arm: [] for arm in _ARMS}
    longest = 0.0
    for seed in range(_MOST_SEEDS if on_gpu else 1):
        started = time.monotonic()
        if started + 1.3 * longest > deadline:
            break
        found = {}
        for arm, p in _ARMS.items():
            trained = kit.train(
                f"{arm.replace(' ', '-')}-{seed}", device, rows=rows, eval_rows=eval_rows,
                prepared=kit.prepared(p, seed), metric=_METRIC, select="last", seed=seed,
                **settings,
            )  # fmt: skip
            result = json.loads((trained / "training.json").read_text("utf-8"))["result"]
            found[arm] = float(result["metrics"][_METRIC])
        for arm, value in found.items():
            values[arm].append(value)
        longest = max(longest, time.monotonic() - started)
    count = len(values["plain"])
    if not count:
        raise CannotRun("no time was left for a seed")
    table = [
        (arm, f"{statistics.median(of):.3f}", f"{max(of) - min(of):.3f}",
         ", ".join(f"{value:.3f}" for value in of))
        for arm, of in values.items()
    ]  # fmt: skip
    head = ("strategy", f"median {_METRIC}", "spread", "per seed")
    text = f"{count} seeds, {rows} training examples of {kit.train_file.parent.name}"
    return Finding(text, markdown_table(head, table), {"values": values, "settings": settings})
