"""Check mixout on a CUDA GPU: correct results, step times, and the complete workflow.

python -m gpu [--device cuda] [--out FOLDER] [--seconds 480] [--parts correctness kernels …]

Parts, the most valuable first:
  correctness  outputs, gradients and masks against the formula; resume; waits for the GPU
  kernels      one-pass kernel, torch.compile, CUDA graphs
  speed        times and memory of a training step, and the kernels that it is made of
  workflow     prepare, train, collapse, onnx, verify
  seeds        plain finetuning against mixout, for as many seeds as time allows

The results are in gpu.json and gpu.md in FOLDER. They are written after each check, so a run that
is cut short keeps the finished ones. Without a GPU the command rehearses with small sizes and
reports the checks that need a GPU as not run. `make gpu-kit` prepares a GPU machine without a
network.

Exit codes: 0 no check failed, 1 a check failed or a part ran out of time, 2 wrong usage.
"""

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu.missing import ROOT, complete, unmet, unmet_by

#: Share of the time limit for each part. Unused time goes to the later parts.
PARTS = {"correctness": 0.3, "kernels": 0.15, "speed": 0.25, "workflow": 0.2, "seeds": 0.1}
#: A part is not started if fewer seconds than this remain.
_LEAST = 15.0
#: These variables round float32 products to TF32, so they are removed from the environment.
_ROUNDING = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text).resolve()


def _seconds(text: str) -> float:
    value = float(text)
    if not _LEAST <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}, expected at least {_LEAST:g}")
    return value


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"got {text}, expected cuda, cuda:N or cpu")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device",
        type=_device,
        help="cuda, cuda:N or cpu (default: cuda if PyTorch sees a GPU, else cpu)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "build" / "gpu"),
        help="folder for gpu.json and gpu.md (default: $OUT if set, else build/gpu)",
    )  # fmt: skip
    parser.add_argument(
        "--kit",
        type=_folder,
        default=ROOT / "gpu-kit",
        help="folder written by make gpu-kit (default: gpu-kit)",
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=480.0, help="time limit for the run (default: 480)"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART",
        help=f"parts to run: {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser


def _run_part(part: str, options: argparse.Namespace, work: Path, limit: float) -> str:
    """Run a part in a process of its own; return why it did not finish, or ""."""
    command = [sys.executable, "-m", "gpu", "--part", part, "--out", str(options.out)]
    command += ["--work", str(work)]
    if options.kit.is_dir():  # else the parts use the demo's checkpoint and data
        command += ["--kit", str(options.kit)]
    command += ["--until", str(time.time() + limit)]  # its imports count, too
    if options.device:
        command += ["--device", options.device]
    # so that cuBLAS is deterministic; it reads this once, at its first product
    settings = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if part == "correctness" else {}
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
    return "" if code == 0 else f"the process exited with code {code}; see the output above"


def _run_all(options: argparse.Namespace) -> int:
    """Run the parts in order and print the results."""
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
                why = f"not started: only {left:.0f} s of the time limit were left"
            else:
                why = _run_part(part, options, work, limit)
            if why:
                results = Results(options.out)
                results.add(Step(part, "the whole part", FAILED, 0.0, Finding(why)))
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
    """Install missing wheels, then run all parts, or only the part given by --part."""
    options = _parser().parse_args()
    if importlib.util.find_spec("torch") is None:
        return _refuse(
            f"{sys.executable} has no PyTorch; use one that has, or make .venv/.dev first"
        )
    installed = complete(options.kit / "wheels", ROOT / "build" / "gpu-site")
    if options.part:
        from gpu.parts import run_part

        return run_part(options.part, options)
    if installed:
        print(f"installed from the kit: {', '.join(installed)}", file=sys.stderr)
    for text in [*unmet(), *unmet_by(installed)]:  # it may work all the same
        print(f"warning: required: {text}; some checks may fail", file=sys.stderr)
    if options.device and not _is_there(options.device):
        return _refuse(f"--device {options.device}: PyTorch does not see this device")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _refuse(f"--out {options.out}: {error.strerror}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # ends the parts, as Ctrl-C does
    try:
        return _run_all(options)
    except KeyboardInterrupt:
        print(f"python -m gpu: interrupted; finished checks are in {options.out}", file=sys.stderr)
        return 130


def _refuse(message: str) -> int:
    print(f"python -m gpu: {message}", file=sys.stderr)
    return 2


def _is_there(device: str) -> bool:
    import torch  # what it needs may have come from a wheel just now

    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
