"""Write the GPU section of docs/benchmarks.md from the kit's results.

python -m gpu.document [gpu.json]

If a file is given, it is copied to gpu/measured.json, and the section shows its results.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from gpu.results import FAILED, PASSED, Results, Step, sections

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "gpu" / "measured.json"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by python -m gpu.document -->", "<!-- end -->"

_NOT_YET = (
    "Not run yet. The CUDA code has not been run on a GPU, so this page has no GPU figures. To run "
    "it on yours: `python -m gpu`."
)


def _headline(machine: dict[str, object]) -> str:
    versions = ", ".join(
        f"{name} {machine[name]}"
        for name in ("python", "torch", "cuda", "transformers", "accelerate", "triton")
        if name in machine
    )
    return (
        f"{machine.get('gpu', 'GPU')}, {machine.get('memory', '')}; {versions}. "
        f"Date: {machine['date']}. Command: `{machine['command']}`, "
        + (f"{machine['seconds']} s." if "seconds" in machine else "interrupted.")
    )


def section(measured: Path = MEASURED) -> str:
    """Return the section's text, without its heading."""
    if not measured.exists():
        return _NOT_YET
    found = json.loads(measured.read_text("utf-8"))
    steps: list[Step] = Results.steps_of(found)
    bad = [step.name for step in steps if step.state == FAILED]
    passed = sum(step.state == PASSED for step in steps)
    verdict = f"{passed} checks passed, {len(steps) - passed - len(bad)} could not run there"
    verdict += f", {len(bad)} failed: {', '.join(bad)}." if bad else ", none failed."
    return "\n".join([_headline(found["machine"]), verdict, "", *sections(steps, level=3)]).strip()


def with_section(text: str, measured: Path = MEASURED) -> str:
    """Return the document with its section written anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{section(measured)}\n\n{END}{after}"


def main() -> None:
    """Keep the results if some are given, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", nargs="?", type=Path, help="gpu.json of a run on a GPU (optional)"
    )
    given = parser.parse_args().results
    if given is not None:
        try:
            device = json.loads(given.read_text("utf-8"))["machine"]["device"]
            if device == "cuda":
                section(given)
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f"{given}: is not a gpu.json of python -m gpu ({error})")
        if device != "cuda":
            sys.exit(f"{given}: these results come from a CPU run; give the gpu.json of a GPU")
        shutil.copyfile(given, MEASURED)
    DOCUMENT.write_text(with_section(DOCUMENT.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
