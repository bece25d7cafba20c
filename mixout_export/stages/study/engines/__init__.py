"""Engines: where the runs of a study are done."""

from mixout_export.errors import ArgumentError
from mixout_export.stages.study.engine import Engine

ENGINES = ("local", "ray")


def make_engine(
    name: str, *, workers: int | None, threads: int, device: str | None, address: str | None = None
) -> Engine:
    """Return an engine that is ready for jobs.

    Args:
        name: "local" or "ray".
        workers: Number of runs at the same time; None chooses it by the machine.
        threads: CPU threads of each run.
        device: Device of the runs; None takes a GPU if there is one.
        address: Address of a Ray cluster; only for "ray".

    Raises:
        ArgumentError: There is no such engine, or an argument does not fit it.
    """
    if workers is not None and workers < 1:
        raise ArgumentError(f"workers: got {workers}, expected at least 1")
    if name == "local":
        if address is not None:
            raise ArgumentError("address: has no effect with --engine local; leave it out")
        from mixout_export.stages.study.engines.local import LocalEngine, default_workers

        count = workers or default_workers(threads=threads, device=device)
        return LocalEngine(workers=count, threads=threads)
    raise ArgumentError(f"engine: got {name!r}, expected one of {', '.join(ENGINES)}")
