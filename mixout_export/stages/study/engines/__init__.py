"""Engines: where the runs of a study are done."""

from dataclasses import dataclass
from pathlib import Path

from mixout_export.errors import ArgumentError
from mixout_export.stages.study.engine import Engine
from mixout_export.training.device import check_device

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class EngineOptions:
    """Where the runs of a study are done, and how many at the same time.

    Attributes:
        name: "local" or "ray".
        workers: Number of runs at the same time; None chooses it by the machine.
        device: Device of the runs; None takes a GPU if there is one.
        address: Address of a Ray cluster that is running; only for "ray". None starts one.

    Raises:
        ArgumentError: There is no such engine, or another option does not fit it.
    """

    name: str = "local"
    workers: int | None = None
    device: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise ArgumentError(f"engine: got {self.name!r}, expected one of {', '.join(ENGINES)}")
        if self.workers is not None and self.workers < 1:
            raise ArgumentError(f"workers: got {self.workers}, expected at least 1")
        if self.address is not None and self.name != "ray":
            raise ArgumentError("address: has no effect without --engine ray; leave it out")
        if self.name == "local":
            check_device(self.device)  # of another machine, Ray has to know
        if self.name == "ray" and self.device is not None and self.device.startswith("cuda:"):
            raise ArgumentError(
                f"device: got {self.device!r}, but Ray chooses the GPU of each run; use cuda"
            )

    def start(self, *, work: Path, threads: int) -> Engine:
        """Return an engine that is ready for jobs.

        Args:
            work: The folder in which runs work.
            threads: CPU threads of each run.

        Raises:
            EngineError: The engine cannot be started.
        """
        if self.name == "ray":
            from mixout_export.stages.study.engines.ray import RayEngine

            return RayEngine(
                work=work,
                workers=self.workers,
                threads=threads,
                device=self.device,
                address=self.address,
            )
        from mixout_export.stages.study.engines.local import LocalEngine

        return LocalEngine(workers=self.workers, threads=threads, device=self.device)
