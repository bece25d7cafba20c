"""Run the complete workflow on every architecture family. `make matrix` calls this.

python -m matrix [FAMILY ...] [--out build/matrix] [--workers 2] [--limit 600] [--retry]

Each family runs in its own process, which writes `OUT/FAMILY.json`. A family with an outcome from
the same library versions is not run again. `--document` writes a table of all families.
"""

import argparse
import multiprocessing
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from matrix.document import write_document
from matrix.families import Family, families
from matrix.machine import versions
from matrix.outcome import Outcome, read_outcome
from matrix.worker import run_family

#: Modules that are imported once, in the process from which workers are forked.
_PRELOADED = ["matrix.worker"]


@dataclass(frozen=True)
class _Running:
    process: ForkServerProcess
    family: Family
    started: float


def _finished(running: Sequence[_Running], limit: float) -> Iterator[_Running]:
    """Yield the workers that have ended. Kill those that ran longer than `limit` seconds."""
    for worker in running:
        if worker.process.is_alive() and time.monotonic() - worker.started > limit:
            worker.process.kill()
            worker.process.join()
        if not worker.process.is_alive():
            yield worker


def _collect(worker: _Running, out: Path, limit: float) -> Outcome:
    """Return the outcome that a worker wrote, or one with its exit code if it wrote none."""
    found = read_outcome(out, worker.family.name)
    if found is not None:
        return found
    seconds = time.monotonic() - worker.started
    outcome = Outcome.of(worker.family)
    outcome.failed, outcome.ours, outcome.seconds = "run", False, round(seconds, 1)
    code = worker.process.exitcode
    outcome.reason = (
        f"took longer than {limit:.0f} s" if seconds > limit else f"the process ended with {code}"
    )
    outcome.write(out)
    return outcome


def _run(names: Sequence[str], out: Path, *, workers: int, limit: float) -> None:
    """Run families, at most `workers` at a time, and print each outcome."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    waiting, known, done = list(names), families(), 0
    running: list[_Running] = []
    while waiting or running:
        while waiting and len(running) < workers:
            name = waiting.pop(0)
            (out / f"{name}.json").unlink(missing_ok=True)
            process = context.Process(target=run_family, args=(known[name], out))
            process.start()
            running.append(_Running(process, known[name], time.monotonic()))
        for worker in list(_finished(running, limit)):
            running.remove(worker)
            found, done = _collect(worker, out, limit), done + 1
            result = "passes" if found.complete else f"{found.failed}: {found.reason}"
            line = f"{done}/{len(names)} {found.family} ({found.seconds} s) {result}"
            print(line, file=sys.stderr)
        time.sleep(0.1)


def _is_due(name: str, out: Path, *, again: bool, retry: bool) -> bool:
    found = read_outcome(out, name)
    if again or found is None or found.versions != versions():
        return True
    return retry and not found.complete


def main() -> None:
    """Run the families named on the command line, or all families."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "families", nargs="*", metavar="FAMILY", help="model type; without one, all families run"
    )
    parser.add_argument("--out", type=Path, default=Path("build/matrix"), help="folder of outcomes")
    parser.add_argument("--workers", type=int, default=2, help="families to run at a time")
    parser.add_argument(
        "--limit", type=float, default=600.0, help="longest run of one family, in s"
    )
    parser.add_argument("--again", action="store_true", help="also run families with an outcome")
    parser.add_argument("--retry", action="store_true", help="also run families that did not pass")
    parser.add_argument(
        "--document", type=Path, help="write the table of all families to this file"
    )
    given = parser.parse_args()
    known = families()
    unknown = [name for name in given.families if name not in known]
    if unknown:
        parser.error(f"unknown family {unknown[0]!r}, expected one of {', '.join(known)}")
    given.out.mkdir(parents=True, exist_ok=True)
    names = given.families or list(known)
    due = [n for n in names if _is_due(n, given.out, again=given.again, retry=given.retry)]
    _run(due, given.out, workers=given.workers, limit=given.limit)
    outcomes = [found for name in known if (found := read_outcome(given.out, name))]
    if given.document is not None:
        if len(outcomes) < len(known):
            parser.error(
                f"--document needs all families, but {len(known) - len(outcomes)} have no outcome; "
                "run python -m matrix without FAMILY first"
            )
        command = shlex.join(["python", "-m", "matrix", *sys.argv[1:]])
        write_document(given.document, outcomes, command)


if __name__ == "__main__":
    main()
