"""The interface of everything that runs a model on a batch."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from mixout_export.errors import ArgumentError

Array = npt.NDArray[Any]


class Runner(Protocol):
    """Computes named outputs from named inputs."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that the model takes."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that the model returns."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs of one batch. Inputs that the model does not take are ignored.

        Raises:
            ArgumentError: An input is missing.
            CheckpointError: The model does not accept the batch.
        """


def require_inputs(
    where: str, what: str, names: Sequence[str], inputs: Mapping[str, Array]
) -> None:
    """Check that a batch has all inputs."""
    missing = [name for name in names if name not in inputs]
    if missing:
        raise ArgumentError(
            f"{where}: the {what} needs an input {missing[0]!r}, but the batch has only "
            f"{', '.join(inputs)}"
        )
