"""A served model as something that computes outputs from inputs."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol, Self, TypeVar

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
from mixout_export.served.transport import Transport
from mixout_export.served.wire import Answer, Question

Array = npt.NDArray[Any]
T = TypeVar("T")


class Client(Protocol):
    """Connections to a served model; an asynchronous context manager."""

    async def __aenter__(self) -> Self:
        """Take it into use."""

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""

    @property
    def retried(self) -> int:
        """How many requests had to be sent again."""

    async def server(self) -> ServerFacts:
        """Return what the server says of itself."""

    async def model(self) -> ModelFacts:
        """Return what the server says of the model."""

    async def ask(self, question: Question) -> Answer:
        """Return the model's answer."""

    async def labels(self, question: Question, output: str, count: int) -> tuple[str, ...] | None:
        """Return the names that the server gives to an output's classes; None if unknown."""


def connect(address: Address, options: ServingOptions, protocol: str) -> Client:
    """Return a client of a served model, which connects when it is first used.

    Raises:
        ServerError: gRPC is asked for, and its library is not installed.
    """
    if protocol == "grpc":
        from mixout_export.served.grpc_client import GrpcClient

        return GrpcClient(address, timeout=options.timeout)
    transport = Transport(address, timeout=options.timeout, connections=options.concurrency)
    return HttpClient(address, transport, encoding="binary" if protocol == "binary" else "json")


def complete(work: Callable[[], Awaitable[T]]) -> T:
    """Run asynchronous work to its end, in a notebook too, where a loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.run(work)
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(anyio.run, work).result()


def _split_cache(facts: ModelFacts) -> tuple[ModelFacts, dict[str, Array], tuple[str, ...]]:
    """Take a key/value cache out of what a server says of a model.

    Returns:
        The rest; a row's cache of no tokens by input name; the names of the cache's outputs.
    """
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
    """A served model, asked as a graph would be run: a `Runner`.

    Batches with more rows than the server takes at once are sent in parts, several at a time. A
    model with a key/value cache reads each batch with an empty one; `cached` reads on.

    Attributes:
        address: Where it is served.
        options: How it is asked.
        server: What its server says of itself.
        facts: What its server says of it, but for the cache.
        protocol: How tensors are sent: "json", "binary" or "grpc".
        inputs: Names of what it is given.
        outputs: Names of what it is asked for.
        empty: A row's cache of no tokens by input name; empty itself where there is no cache.
        grown: Names of the outputs that give the cache back.
        answered_by: Versions that have answered so far, where the server says which.
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
        """Take what `open_served` found out, and the inputs and outputs of the reference.

        All that the server takes is given to it, and of what it gives only what the reference
        gives is asked for. A server need not say either; then the reference's are tried.
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
        """How many rows each request must have; None where the server takes any number."""
        sizes = [spec.shape[0] for spec in self.facts.inputs if spec.shape]
        return next((size for size in sizes if size > 0), None)

    @property
    def most_rows(self) -> int | None:
        """Most rows of a request; None without a limit."""
        return self.fixed_rows or self.facts.batch_limit

    @property
    def cached(self) -> CachedRunner | None:
        """The model with its cache; None where it has none."""
        return CachedRunner(_WithCache(self), self.empty) if self.empty else None

    def connect(self) -> Client:
        """Return a client of its own connections."""
        return connect(self.address, self.options, self.protocol)

    def labels(
        self, inputs: Mapping[str, Array], output: str, count: int
    ) -> tuple[str, ...] | None:
        """Ask for the names of an output's classes, which a server may hold in a file of its own.

        Args:
            inputs: A batch that it can be asked with.
            output: The output.
            count: How many classes it has.

        Raises:
            ServerError: The server does not answer.
        """
        if self.facts.labels is not None or output not in self.facts.label_files:
            return self.facts.labels

        async def ask() -> tuple[str, ...] | None:
            async with self.connect() as client:
                return await client.labels(self.question(self._filled(inputs)), output, count)

        return complete(ask)

    def question(self, inputs: Mapping[str, Array], *, with_cache: bool = False) -> Question:
        """Return a request for the outputs of some rows, the grown cache's too if asked for.

        Raises:
            ArgumentError: An input is missing.
        """
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise ArgumentError(
                f"{self.address}: the model takes an input {missing[0]!r} that the batch lacks; "
                f"it has {', '.join(inputs)}"
            )
        cast = {name: self._cast(name, inputs[name]) for name in self.inputs}
        rows = len(next(iter(inputs.values())))
        for name, value in self.empty.items():
            cast[name] = inputs.get(name, np.repeat(value, rows, axis=0))
        outputs = (*self.outputs, *self.grown) if with_cache else self.outputs
        return Question(next(self._identity), cast, outputs)

    def _cast(self, name: str, array: Array) -> Array:
        """Return an input in the type that the server takes; ids fit into either."""
        dtype = DATATYPES.get(self._types.get(name, ""))
        return array if dtype is None else array.astype(dtype)

    def run(self, inputs: Mapping[str, Array], *, with_cache: bool = False) -> dict[str, Array]:
        """Ask for the outputs of one batch, the grown cache's too if asked for.

        Raises:
            ArgumentError: An input is missing.
            ParityError: The answer is one to another request.
            ServerError: The server does not answer, or not as the protocol says.
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
        """Check that outputs come in the types that the metadata says, where it may say so."""
        specs = (spec for spec in self.facts.outputs if spec.datatype in FLOATING)
        said = {spec.name: spec.datatype for spec in specs}
        for name, value in answer.outputs.items():
            if said.get(name, datatype_of(value)) != datatype_of(value):
                raise ServerError(
                    f"{self.address}: output {name!r} came as {datatype_of(value)}, and its "
                    f"metadata says {said[name]}"
                )

    def _filled(self, part: Mapping[str, Array]) -> Mapping[str, Array]:
        """Repeat the last row, where the server takes batches of one size only."""
        lacking = (self.fixed_rows or 0) - len(next(iter(part.values())))
        if lacking <= 0:
            return part
        return {
            name: np.concatenate([rows, np.repeat(rows[-1:], lacking, axis=0)])
            for name, rows in part.items()
        }

    async def _ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        """Ask several questions, a few at a time, and return the answers in their order."""
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
    """A served model with all of its inputs and outputs: a `Runner`."""

    model: ServedSession

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.model.inputs, *self.model.empty)

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*self.model.outputs, *self.model.grown)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.model.run(inputs, with_cache=True)


@dataclass(frozen=True)
class _Introduction:
    """What a server said when it was first asked."""

    server: ServerFacts
    facts: ModelFacts
    protocol: str


async def _introduce(address: Address, options: ServingOptions) -> _Introduction:
    first = options.protocol or ("grpc" if address.scheme == "grpc" else "json")
    async with connect(address, options, first) as client:
        server = await client.server()
        facts = await client.model()
    better = options.protocol is None and first == "json" and server.takes_binary
    return _Introduction(server, facts, "binary" if better else first)


def open_served(
    address: Address, options: ServingOptions, *, inputs: Sequence[str], outputs: Sequence[str]
) -> ServedSession:
    """Ask a server what it is and what it serves.

    Args:
        address: Where the model is served.
        options: How to ask.
        inputs: What the reference takes.
        outputs: What the reference gives.

    Raises:
        ArgumentError: An option is outside its domain.
        ServerError: The server cannot be reached, has no such model, or says what cannot be read.
    """
    options.check(address)
    said = complete(lambda: _introduce(address, options))
    return ServedSession(
        address, options, said.server, said.facts, said.protocol, inputs=inputs, outputs=outputs
    )
