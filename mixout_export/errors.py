"""All errors that this package raises on purpose, and their exit codes on the command line.

MixoutError                   exit code 1: error
├── ArgumentError             exit code 2: wrong usage (also a ValueError)
│   └── TargetError           exit code 1: a pattern selects nothing, or what cannot be mixed
├── OutputError               OUT cannot be written (it exists, no space, no permission)
├── CheckpointError           a checkpoint cannot be read, or its contents are wrong
├── DataError                 a data file cannot be read, or does not fit the task
│   └── RowError              some rows of it cannot be read, or do not fit
├── PlanError                 the plan of a study cannot be read, or is wrong
├── TrainingError             training cannot continue
│   └── TrainingStoppedError  training was asked to stop, and has saved a checkpoint
├── ExportError               a graph cannot be exported
├── EngineError               the engine of a study cannot be started, or is lost
├── ServerError               a server cannot be reached, or violates its protocol
├── HubError                  the hub cannot be reached, or refuses a request
└── ParityError               exit code 3: the models differ, or a manifest check failed

A message says what is wrong and where, what was expected, what was found, and what to do.
"""

from collections.abc import Mapping


class MixoutError(Exception):
    """Base class of all errors that this package raises on purpose."""

    exit_code = 1


class ArgumentError(MixoutError, ValueError):
    """An argument is out of its range, or arguments contradict each other."""

    exit_code = 2


class TargetError(ArgumentError):
    """A target pattern selects nothing, or selects a module that cannot be mixed."""

    exit_code = 1


class OutputError(MixoutError):
    """The output cannot be written."""


class CheckpointError(MixoutError):
    """A checkpoint cannot be read, or its contents are wrong."""


class DataError(MixoutError):
    """A data file cannot be read, or does not fit the task."""


class RowError(DataError):
    """Some rows of a data file cannot be read, or do not fit the task.

    Args:
        message: What is wrong, as for every error.
        problems: Row of the table, from 0 → what is wrong with it, to follow its place in a list.
    """

    def __init__(self, message: str, problems: Mapping[int, str]) -> None:
        super().__init__(message)
        self.problems = dict(problems)


class PlanError(MixoutError):
    """The plan of a study cannot be read, or something in it is wrong."""


class TrainingError(MixoutError):
    """Training cannot continue."""


class TrainingStoppedError(TrainingError):
    """Training was asked to stop. A resumed run continues from its last checkpoint."""


class ExportError(MixoutError):
    """A graph cannot be exported."""


class EngineError(MixoutError):
    """The engine of a study cannot be started, or is lost."""


class ServerError(MixoutError):
    """A server cannot be reached, or violates its protocol."""


class HubError(MixoutError):
    """The hub cannot be reached, or refuses a request."""


class ParityError(MixoutError):
    """Two models give different results, or a manifest check failed."""

    exit_code = 3
