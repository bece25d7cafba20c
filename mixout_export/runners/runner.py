"""What runs a model on a batch, whatever the model is made of."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from mixout_export.errors import ArgumentError

Array = npt.NDArray[Any]


class Runner(Protocol):
    """Something that computes named outputs from named inputs."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs it takes."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs it gives."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs of one batch; inputs it does not take are ignored."""


def require_inputs(
    where: str, what: str, names: Sequence[str], inputs: Mapping[str, Array]
) -> None:
    """Check that a batch has all inputs."""
    missing = [name for name in names if name not in inputs]
    if missing:
        raise ArgumentError(
            f"{where}: the {what} takes an input {missing[0]!r} that the batch lacks; it has "
            f"{', '.join(inputs)}"
        )
