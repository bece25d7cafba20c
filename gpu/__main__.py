"""Prove the CUDA path: correctness, speed and the whole workflow, in at most eight minutes.

python -m gpu [--device cuda] [--out FOLDER] [--seconds 480] [--parts correct kernels …]

The most valuable parts come first. Results are written after each step, as gpu.json and gpu.md in
FOLDER, so that an early end loses nothing. On a CPU the same steps run with small sizes: a
rehearsal. `make gpu-kit` fills the folder gpu-kit/ for a machine without a network.

Exit codes: 0 if every step passed or cannot run here, 1 if one failed or a part did not finish,
2 for wrong usage.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu.missing import ROOT, complete, unmet, unmet_by

#: Part → share of the time it may take. What a part leaves over is the later parts'.
PARTS = {"correct": 0.3, "kernels": 0.15, "fast": 0.25, "whole": 0.2, "seeds": 0.1}
#: Parts that are not started with less time than this left, in seconds.
_LEAST = 15.0
#: Variables that round float32 products to TF32, which the checks must not be judged by.
_ROUNDING = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; default: cuda if there is one")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "build" / "gpu"),
        help="folder for gpu.json and gpu.md, default: $OUT, else build/gpu",
    )  # fmt: skip
    parser.add_argument("--kit", type=Path, default=ROOT / "gpu-kit", help="default: gpu-kit")
    parser.add_argument("--seconds", type=float, default=480.0, help="time for all, default: 480")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser


def _run_part(part: str, options: argparse.Namespace, work: Path, limit: float) -> str:
    """Run a part in a process of its own; return what kept it from its end, "" if nothing."""
    command = [sys.executable, "-m", "gpu", "--part", part, "--out", str(options.out)]
    command += ["--kit", str(options.kit), "--work", str(work)]
    command += ["--until", str(time.time() + limit)]  # its imports count, too
    if options.device:
        command += ["--device", options.device]
    # so that cuBLAS is deterministic; it reads this once, at its first product
    settings = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if part == "correct" else {}
    environment = {k: v for k, v in os.environ.items() if k not in _ROUNDING} | settings
    # a session of its own, so that what it has started ends with it
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(limit + 5)
    except BaseException as error:  # Ctrl-C, too
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return f"did not finish within {limit:.0f} s"
    return "" if code == 0 else f"its process ended with {code}"


def _run_all(options: argparse.Namespace) -> int:
    """Run the parts one after another, and say what came of them."""
    from gpu.results import FAILED, JSON, PAGE, Finding, Results, Step

    deadline = time.monotonic() + options.seconds
    options.out = options.out.resolve()
    for name in (JSON, PAGE):
        (options.out / name).unlink(missing_ok=True)
    Results(options.out).describe(command=shlex.join(["python", "-m", "gpu", *sys.argv[1:]]))
    work = Path(tempfile.mkdtemp(prefix="mixout-gpu-"))
    try:
        shares = {part: PARTS[part] for part in options.parts}
        for number, (part, share) in enumerate(shares.items()):
            left = deadline - time.monotonic()
            later = sum(list(shares.values())[number:])
            limit = left * share / later
            if left < _LEAST:
                why = f"not started, as {left:.0f} s were left"
            else:
                why = _run_part(part, options, work, limit)
            if why:
                results = Results(options.out)
                results.add(Step(part, "the part as a whole", FAILED, 0.0, Finding(why)))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    results = Results(options.out)
    spent = options.seconds - (deadline - time.monotonic())
    results.describe(seconds=round(spent, 1))
    print((options.out / PAGE).read_text("utf-8"))
    for step in results.failed:
        print(f"FAILED {step.part}: {step.name}: {step.finding.text}", file=sys.stderr)
    return 1 if results.failed else 0


def main() -> int:
    """Complete the machine, then run everything, or the one part that a process is for."""
    options = _parser().parse_args()
    installed = complete(options.kit / "wheels", ROOT / "build" / "gpu-site")
    if options.part:
        from gpu.parts import run_part

        return run_part(options.part, options)
    if installed:
        print(f"installed from the kit: {', '.join(installed)}", file=sys.stderr)
    for text in [*unmet(), *unmet_by(installed)]:  # it may work all the same
        print(f"warning: this machine lacks {text}", file=sys.stderr)
    if options.device and not _is_there(options.device):
        print(
            f"python -m gpu: --device {options.device}: PyTorch has no such device here",
            file=sys.stderr,
        )
        return 2
    return _run_all(options)


def _is_there(device: str) -> bool:
    import torch  # what it needs may have come from a wheel just now

    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
