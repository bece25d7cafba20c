"""Every error a user can meet, as a tree; the command line maps each branch to an exit code.

MixoutError                 exit code 1, could not be done
├── ArgumentError           exit code 2, wrong usage (also a ValueError)
│   └── TargetError         exit code 1, a pattern that selects nothing, or what cannot be mixed
├── OutputError             OUT cannot be written (exists, no space, no permission)
├── CheckpointError         a folder that cannot be read, or does not hold what it should
├── DataError               a data file that cannot be read, or does not fit the task
├── TrainingError           training had to stop
│   └── TrainingStoppedError  training was asked to stop, and saved a checkpoint
├── ExportError             the graph could not be written
├── ServerError             a server that cannot be reached, or does not keep to its protocol
├── HubError                the hub cannot be reached, or refuses
└── ParityError             exit code 3, parity or a manifest does not hold

A message is one sentence: what, where, expected against got, and the remedy.
"""


class MixoutError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_code = 1


class ArgumentError(MixoutError, ValueError):
    """An argument is outside its domain, or arguments contradict each other."""

    exit_code = 2


class TargetError(ArgumentError):
    """A target pattern selects nothing, or selects a module that cannot be mixed."""

    exit_code = 1


class OutputError(MixoutError):
    """The destination cannot be written."""


class CheckpointError(MixoutError):
    """A checkpoint cannot be read, or is not what it should be."""


class DataError(MixoutError):
    """A data file cannot be read, or does not fit the task."""


class TrainingError(MixoutError):
    """Training cannot go on."""


class TrainingStoppedError(TrainingError):
    """Training stopped because it was asked to; a resumed run goes on from its last checkpoint."""


class ExportError(MixoutError):
    """A graph cannot be exported."""


class ServerError(MixoutError):
    """A server cannot be reached, or does not keep to the protocol."""


class HubError(MixoutError):
    """The hub cannot be reached, or refuses what it is asked."""


class ParityError(MixoutError):
    """Two artefacts do not compute the same thing, or a manifest does not hold."""

    exit_code = 3
