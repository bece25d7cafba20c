"""Use a served model as a runner, which computes outputs from inputs."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio
import numpy as np
import numpy.typing as npt

from mixout_export.errors import ArgumentError, MixoutError, ServerError
from mixout_export.runners.cache import CachedRunner, cache_outputs
from mixout_export.served.address import Address
from mixout_export.served.http_client import HttpClient
from mixout_export.served.metadata import ModelFacts, ServerFacts
from mixout_export.served.options import ServingOptions
from mixout_export.served.tensors import DATATYPES, FLOATING, datatype_of
from mixout_export.served.wire import Answer, Question

if TYPE_CHECKING:
    from mixout_export.served.grpc_client import GrpcClient

Array = npt.NDArray[Any]
T = TypeVar("T")


#: Client of one served model, as an asynchronous context manager.
Client: TypeAlias = "HttpClient | GrpcClient"


def connect(address: Address, options: ServingOptions, protocol: str) -> Client:
    """Return a client of a served model. It connects when it is first used."""
    if protocol == "grpc":
        from mixout_export.served.grpc_client import GrpcClient

        return GrpcClient(address, timeout=options.timeout)
    return HttpClient(address, options, binary=protocol == "binary")


def complete(work: Callable[[], Awaitable[T]]) -> T:
    """Run asynchronous work to its end, also in a notebook, where an event loop already runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.run(work)
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(anyio.run, work).result()


def _split_cache(facts: ModelFacts) -> tuple[ModelFacts, dict[str, Array], tuple[str, ...]]:
    """Return the metadata without a key/value cache, the empty cache, and the cache's outputs."""
    takes = [spec.name for spec in facts.inputs if spec.shape[2:3] in ((-1,), ())]
    pairs = cache_outputs(takes, [spec.name for spec in facts.outputs])
    grown = set(pairs.values())
    empty = {
        spec.name: np.zeros(
            [1, *(max(size, 0) for size in spec.shape[1:])],
            dtype=DATATYPES.get(spec.datatype, np.dtype(np.float32)),
        )
        for spec in facts.inputs
        if spec.name in pairs
    }
    rest = replace(
        facts,
        inputs=tuple(spec for spec in facts.inputs if spec.name not in pairs),
        outputs=tuple(spec for spec in facts.outputs if spec.name not in grown),
    )
    return rest, empty, tuple(pairs.values())


class ServedSession:
    """A served model as a `Runner`.

    A batch with more rows than the server takes is sent in parts, several at a time. A model with a
    key/value cache reads each batch with an empty cache; `cached` can extend a cache.

    Attributes:
        address: Address of the model.
        options: Options for requests.
        server: The server's metadata.
        facts: The model's metadata, without the cache.
        protocol: How tensors are sent: "json", "binary" or "grpc".
        inputs: Names of the inputs that are sent.
        outputs: Names of the outputs that are requested.
        empty: Cache input name → empty cache of one row; {} if the model has no cache.
        grown: Names of the outputs with the extended cache.
        answered_by: Versions of the model that have answered so far, if the server reports them.
    """

    def __init__(
        self,
        address: Address,
        options: ServingOptions,
        server: ServerFacts,
        facts: ModelFacts,
        protocol: str,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        """Create a session from the metadata and the reference's inputs and outputs.

        All inputs that the server takes are sent. Only outputs that the reference has are
        requested. If the metadata lacks inputs or outputs, those of the reference are used.
        """
        self.address = address
        self.options = options
        self.server = server
        self.facts, self.empty, self.grown = _split_cache(facts)
        self.protocol = protocol
        takes = [spec.name for spec in self.facts.inputs] or inputs
        gives = [spec.name for spec in self.facts.outputs] or outputs
        known = [name for name in inputs if name in takes]
        self.inputs = (*known, *(name for name in takes if name not in inputs))
        self.outputs = tuple(name for name in outputs if name in gives) or tuple(gives)
        self.answered_by: set[str] = set()
        self._types = {spec.name: spec.datatype for spec in self.facts.inputs}
        self._identity = (f"{secrets.token_hex(4)}-{number}" for number in count())

    @property
    def fixed_rows(self) -> int | None:
        """Number of rows that each request must have; None if the server takes any number."""
        sizes = [spec.shape[0] for spec in self.facts.inputs if spec.shape]
        return next((size for size in sizes if size > 0), None)

    @property
    def most_rows(self) -> int | None:
        """Largest number of rows in a request; None if there is no limit."""
        return self.fixed_rows or self.facts.batch_limit

    @property
    def cached(self) -> CachedRunner | None:
        """A runner that can extend the model's cache; None if the model has no cache."""
        return CachedRunner(_WithCache(self), self.empty) if self.empty else None

    def connect(self) -> Client:
        """Return a new client with its own connections."""
        return connect(self.address, self.options, self.protocol)

    def labels(
        self, inputs: Mapping[str, Array], output: str, count: int
    ) -> tuple[str, ...] | None:
        """Return the names of an output's classes, from the metadata or the server's label file.

        Args:
            inputs: A batch that the model accepts.
            output: Name of the output.
            count: Number of classes.
        """
        if self.facts.labels is not None or output not in self.facts.label_files:
            return self.facts.labels
        # Only HTTP clients find label files.
        http = HttpClient(self.address, self.options, binary=False)

        async def ask() -> tuple[str, ...] | None:
            async with http as client:
                return await client.labels(self.question(self._filled(inputs)), output, count)

        return complete(ask)

    def question(self, inputs: Mapping[str, Array], *, with_cache: bool = False) -> Question:
        """Return a request for the outputs of some rows, if asked for with the extended cache."""
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise ArgumentError(
                f"{self.address}: the model needs an input {missing[0]!r}, but the batch has only "
                f"{', '.join(inputs)}"
            )
        cast = {name: self._cast(name, inputs[name]) for name in self.inputs}
        rows = len(next(iter(inputs.values())))
        for name, value in self.empty.items():
            cast[name] = inputs.get(name, np.repeat(value, rows, axis=0))
        outputs = (*self.outputs, *self.grown) if with_cache else self.outputs
        return Question(next(self._identity), cast, outputs)

    def _cast(self, name: str, array: Array) -> Array:
        """Return an input in the integer or float type that the server takes."""
        dtype = DATATYPES.get(self._types.get(name, ""))
        return array if dtype is None else array.astype(dtype)

    def run(self, inputs: Mapping[str, Array], *, with_cache: bool = False) -> dict[str, Array]:
        """Compute the outputs of one batch, if asked for with the extended cache.

        Raises:
            ArgumentError: An input is missing.
            ParityError: An answer belongs to another request.
            ServerError: The server does not answer, or does not follow the protocol.
        """
        rows = len(next(iter(inputs.values())))
        step = self.most_rows or rows
        parts = [
            {name: value[first : first + step] for name, value in inputs.items()}
            for first in range(0, rows, step)
        ]
        questions = [self.question(self._filled(part), with_cache=with_cache) for part in parts]
        answers = complete(lambda: self._ask_all(questions))
        self.answered_by |= {answer.version for answer in answers} - {""}
        self._check_types(answers[0])
        return {
            name: np.concatenate([answer.outputs[name] for answer in answers])[:rows]
            for name in questions[0].outputs
        }

    def _check_types(self, answer: Answer) -> None:
        """Check that outputs have the floating-point types that the metadata gives."""
        specs = (spec for spec in self.facts.outputs if spec.datatype in FLOATING)
        expected = {spec.name: spec.datatype for spec in specs}
        for name, value in answer.outputs.items():
            if expected.get(name, datatype_of(value)) != datatype_of(value):
                raise ServerError(
                    f"{self.address}: output {name!r} has type {datatype_of(value)}, expected "
                    f"{expected[name]} according to the metadata"
                )

    def _filled(self, part: Mapping[str, Array]) -> Mapping[str, Array]:
        """Repeat the last row, if the server takes only batches of one size."""
        lacking = (self.fixed_rows or 0) - len(next(iter(part.values())))
        if lacking <= 0:
            return part
        return {
            name: np.concatenate([rows, np.repeat(rows[-1:], lacking, axis=0)])
            for name, rows in part.items()
        }

    async def _ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        """Send requests, several at a time, and return the answers in the same order."""
        answers: dict[int, Answer] = {}
        failures: list[MixoutError] = []
        limiter = anyio.CapacityLimiter(self.options.concurrency)

        async def ask(number: int, question: Question) -> None:
            async with limiter:
                try:
                    answers[number] = await client.ask(question)
                except MixoutError as error:
                    failures.append(error)
                    group.cancel_scope.cancel()

        async with self.connect() as client, anyio.create_task_group() as group:
            for number, question in enumerate(questions):
                group.start_soon(ask, number, question)
        if failures:
            raise failures[0]
        return [answers[number] for number in range(len(questions))]


@dataclass(frozen=True)
class _WithCache:
    """A `Runner` with all inputs and outputs of a served model, including the cache."""

    model: ServedSession

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.model.inputs, *self.model.empty)

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*self.model.outputs, *self.model.grown)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.model.run(inputs, with_cache=True)


def open_served(
    address: Address, options: ServingOptions, *, inputs: Sequence[str], outputs: Sequence[str]
) -> ServedSession:
    """Open a served model by reading its metadata. The inputs and outputs are the reference's.

    Raises:
        ArgumentError: An option is outside its domain.
        ServerError: The server cannot be reached, it has no such model, or its metadata cannot be
            read.
    """
    options.check(address)
    protocol: str = options.protocol or ("grpc" if address.scheme == "grpc" else "json")

    async def read_metadata() -> tuple[ServerFacts, ModelFacts]:
        async with connect(address, options, protocol) as client:
            return await client.server(), await client.model()

    server, facts = complete(read_metadata)
    if options.protocol is None and protocol == "json" and server.takes_binary:
        protocol = "binary"
    return ServedSession(address, options, server, facts, protocol, inputs=inputs, outputs=outputs)
