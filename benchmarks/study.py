"""How much longer a study takes than the training loops of its runs.

    python -m benchmarks.study [--seeds 3]

It runs the demo's model on the demo's data, with one run at a time. Each run takes about a minute.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_PLAN = """
[study]
base = "demo-base"
seeds = {seeds}
train = {{ lr = 1e-4, epochs = 3.6, max-length = 64 }}

[[task]]
name = "acceptability"
train-file = "demo-data"
eval-file = "demo-data"
prepare = {{ task = "text-classification", labels = 2 }}

[[arm]]
name = "plain"
prepare = {{ p = 0 }}

[[arm]]
name = "mixout 0.7"
"""


def main() -> None:
    """Run the study and print its time as a multiple of that of the loops."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as name:
        plan, out = Path(name) / "plan.toml", Path(name) / "out"
        plan.write_text(_PLAN.format(seeds=seeds), encoding="utf-8")
        started = time.monotonic()
        command = [sys.executable, "-m", "mixout_export_cli", "study", str(plan), str(out)]
        subprocess.run([*command, "--workers", "1"], check=True, stdout=subprocess.DEVNULL)
        whole = time.monotonic() - started
        records = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    steps = sum(record["training_seconds"] for record in records)
    loops = steps + sum(record["evaluation_seconds"] for record in records)
    runs = sum(record["seconds"] for record in records)
    print(f"{len(records)} runs, {loops / len(records):.0f} s of training loop each")
    print(f"whole study ÷ training loops with evaluations: {whole / loops:.3f}")
    print(f"whole study ÷ training steps alone:            {whole / steps:.3f}")
    print(f"whole runs ÷ training loops with evaluations:  {runs / loops:.3f}")


if __name__ == "__main__":
    main()
