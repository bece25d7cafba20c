"""Take every architecture family the whole way; `make matrix` does.

python -m matrix [FAMILY ...] [--out build/matrix] [--workers 2] [--limit 600] [--retry]

Each family runs in a process of its own and leaves `FAMILY.json` in OUT; those that have an
outcome from the same versions are not run again. A run of all families writes the table.
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
from matrix.families import families
from matrix.machine import versions
from matrix.outcome import Outcome, read_outcome
from matrix.worker import take_family

#: What a worker imports: once, in a process that workers are forked from.
_PRELOADED = ["matrix.worker"]


@dataclass(frozen=True)
class _Running:
    process: ForkServerProcess
    outcome: Outcome
    started: float


def _finished(running: Sequence[_Running], limit: float) -> Iterator[_Running]:
    """Yield the workers that ended, having ended those that ran too long."""
    for worker in running:
        if worker.process.is_alive() and time.monotonic() - worker.started > limit:
            worker.process.kill()
            worker.process.join()
        if not worker.process.is_alive():
            yield worker


def _settle(worker: _Running, out: Path, limit: float) -> Outcome:
    """Return what a worker wrote, or what its end says where it wrote nothing."""
    found = read_outcome(out, worker.outcome.family)
    if found is not None:
        return found
    seconds = time.monotonic() - worker.started
    outcome = worker.outcome
    outcome.failed, outcome.ours, outcome.seconds = "run", False, round(seconds, 1)
    code = worker.process.exitcode
    outcome.reason = (
        f"took longer than {limit:.0f} s" if seconds > limit else f"the process ended with {code}"
    )
    outcome.write(out)
    return outcome


def _run(names: Sequence[str], out: Path, *, workers: int, limit: float) -> None:
    """Run families, so many at a time, and say what became of each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    waiting, known, done = list(names), families(), 0
    running: list[_Running] = []
    while waiting or running:
        while waiting and len(running) < workers:
            name = waiting.pop(0)
            (out / f"{name}.json").unlink(missing_ok=True)
            outcome = Outcome(name, known[name], versions())
            process = context.Process(target=take_family, args=(outcome, out))
            process.start()
            running.append(_Running(process, outcome, time.monotonic()))
        for worker in list(_finished(running, limit)):
            running.remove(worker)
            found, done = _settle(worker, out, limit), done + 1
            says = "passes" if found.whole else f"{found.failed}: {found.reason}"
            print(f"{done}/{len(names)} {found.family} ({found.seconds} s) {says}", file=sys.stderr)
        time.sleep(0.1)


def _is_due(name: str, out: Path, *, again: bool, retry: bool) -> bool:
    found = read_outcome(out, name)
    if again or found is None or found.versions != versions():
        return True
    return retry and not found.whole


def main() -> None:
    """Run the families that are asked for, all of them if none is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="a model type")
    parser.add_argument("--out", type=Path, default=Path("build/matrix"))
    parser.add_argument("--workers", type=int, default=2, help="families at a time")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a family may take")
    parser.add_argument("--again", action="store_true", help="run what has an outcome, too")
    parser.add_argument("--retry", action="store_true", help="run what did not pass again")
    parser.add_argument("--document", type=Path, help="where to write the table of all families")
    given = parser.parse_args()
    known = families()
    unknown = [name for name in given.families if name not in known]
    if unknown:
        parser.error(f"there is no family {unknown[0]!r}, expected {', '.join(known)}")
    given.out.mkdir(parents=True, exist_ok=True)
    names = given.families or list(known)
    due = [n for n in names if _is_due(n, given.out, again=given.again, retry=given.retry)]
    _run(due, given.out, workers=given.workers, limit=given.limit)
    outcomes = [found for name in known if (found := read_outcome(given.out, name))]
    if given.document is not None:
        if len(outcomes) < len(known):
            parser.error(f"--document: {len(known) - len(outcomes)} families have not been run")
        command = shlex.join(["python", "-m", "matrix", *sys.argv[1:]])
        write_document(given.document, outcomes, command)


if __name__ == "__main__":
    main()
