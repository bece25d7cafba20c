"""Check that a server gives each of several simultaneous clients the answers to its own inputs.

One client alone first asks for the answer to each input. Then all clients ask at the same time. An
answer is a client's own if it is nearest to the answer that its inputs got before. This separates
mixed-up answers from inaccurate ones, for every model and precision.

The rows of an int8 batch share one scale, so a server that joins requests into a batch changes
their answers. The check measures this change by joining rows itself. Answers that differ by less
than that are too similar to recognize.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.model_inputs import draw_batches
from mixout_export.errors import MixoutError, ParityError
from mixout_export.parity.compare import Tolerance
from mixout_export.parity.serving import ConcurrencyOutcome, Latency
from mixout_export.served.session import Client, ServedSession, complete

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]

#: Number of different inputs of each client.
_SETS = 2

#: Lengths of the inputs, in tokens. Most are equal because servers join requests of one shape.
_LENGTHS = (16, 16, 16, 27)

#: A client stops after this many lost requests in a row. Its other requests count as lost.
_PATIENCE = 3


def _joined(parts: Sequence[Outputs]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _distance(left: Outputs, right: Outputs) -> float:
    """Return the largest |left − right| of any output; infinite for NaN or different shapes."""
    largest = 0.0
    for name, ours in left.items():
        theirs = right[name]
        if ours.shape != theirs.shape:
            return np.inf
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        largest = max(largest, float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0)))
    return largest


def _within(found: Outputs, expected: Outputs, tolerance: Tolerance) -> bool:
    return all(
        np.allclose(
            found[name].astype(np.float64),
            value.astype(np.float64),
            atol=tolerance.atol,
            rtol=tolerance.rtol,
        )
        for name, value in expected.items()
    )


@dataclass
class _Tally:
    """Counts of the answers so far."""

    own: int = 0
    mixed_up: int = 0
    changed: int = 0
    failure: str = ""
    seconds: list[float] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return self.own + self.mixed_up + self.changed


class _Clients:
    """Clients with their own inputs, and the answer that each input should get."""

    def __init__(
        self,
        served: ServedSession,
        inputs: Sequence[Mapping[str, Array]],
        tolerance: Tolerance | None,
    ) -> None:
        """Ask for the answer to each input alone."""
        self._served = served
        self._inputs = inputs
        self._expected = [served.run(each) for each in inputs]
        self._reach = [self._half_distance(number) for number in range(len(inputs))]
        self._is_exact = tolerance is not None
        # twice the measured change, because a server may join requests in other ways
        self._allowed = tolerance or Tolerance(atol=2 * self._change_by_joining(), rtol=0.0)
        self._tally = _Tally()

    def _change_by_joining(self) -> float:
        """Return how much answers change when their inputs are rows of one batch."""
        if self._served.fixed_rows is not None:
            return 0.0
        groups: dict[object, list[int]] = {}
        for number, inputs in enumerate(self._inputs):
            shapes = tuple(array.shape for array in inputs.values())
            groups.setdefault(shapes, []).append(number)
        change = 0.0
        for numbers in groups.values():
            alone = _joined([self._expected[number] for number in numbers])
            together = self._served.run(_joined([self._inputs[number] for number in numbers]))
            change = max(change, _distance(alone, together))
        return change

    def _half_distance(self, number: int) -> float:
        """Return half the distance from an answer to the nearest other one."""
        ours = self._expected[number]
        others = (_distance(ours, e) for n, e in enumerate(self._expected) if n != number)
        return min(others, default=np.inf) / 2

    def _is_alike(self, number: int) -> bool:
        """Return whether an answer is too similar to another one to recognize."""
        return self._reach[number] <= self._allowed.atol

    def _is_near(self, number: int, found: Outputs) -> bool:
        """Return whether an answer is nearest to the one that input `number` should get."""
        return _distance(found, self._expected[number]) <= self._reach[number]

    def _judge(self, number: int, found: Outputs) -> None:
        """Count an answer as the client's own, as another client's, or as neither."""
        within = _within(found, self._expected[number], self._allowed)
        if self._is_near(number, found) or (within and self._is_alike(number)):
            kind = "own" if within or not self._is_exact else "changed"
        elif any(self._is_near(other, found) for other in range(len(self._inputs))):
            kind = "mixed_up"
        else:
            kind = "changed"
        setattr(self._tally, kind, getattr(self._tally, kind) + 1)

    async def _ask(self, client: Client, number: int) -> bool:
        """Send one request. Return whether an answer came."""
        question = self._served.question(self._inputs[number])
        start = time.perf_counter()
        try:
            answer = await client.ask(question)
        except ParityError:
            self._tally.mixed_up += 1
            return True
        except MixoutError as error:
            self._tally.failure = self._tally.failure or str(error)
            return False
        self._tally.seconds.append(time.perf_counter() - start)
        if answer.version:
            self._served.answered_by.add(answer.version)
        self._judge(number, answer.outputs)
        return True

    async def _run_client(self, client: Client, which: int, requests: int) -> None:
        """Send all requests of one client, one after the other."""
        lost = 0
        for request in range(requests):
            lost = 0 if await self._ask(client, which * _SETS + request % _SETS) else lost + 1
            if lost == _PATIENCE:
                return

    def outcome(self, clients: int, requests: int) -> ConcurrencyOutcome:
        """Run all clients at the same time and return the result."""

        async def run_clients() -> tuple[float, int]:
            async with self._served.connect() as client:
                start = time.perf_counter()
                async with anyio.create_task_group() as group:
                    for which in range(clients):
                        group.start_soon(self._run_client, client, which, requests)
                return time.perf_counter() - start, client.retried

        seconds, retried = complete(run_clients)
        tally, total = self._tally, clients * requests
        latency = None
        if tally.seconds:
            percentiles = 1000 * np.percentile(tally.seconds, (50, 90, 99, 100))
            latency = Latency(*percentiles.tolist())
        return ConcurrencyOutcome(
            clients=clients,
            requests=total,
            own=tally.own,
            mixed_up=tally.mixed_up,
            changed=tally.changed,
            lost=total - tally.answered,
            retried=retried,
            latency=latency,
            per_second=tally.answered / seconds,
            failure=tally.failure,
            too_alike=sum(self._is_alike(number) for number in range(len(self._inputs))),
        )


def ask_at_once(
    served: ServedSession, interface: ModelInterface, *, tolerance: Tolerance | None, seed: int = 0
) -> ConcurrencyOutcome:
    """Let several clients send requests at the same time, each with its own inputs.

    An answer may differ by `tolerance` from the one that the same inputs get alone. With None, it
    only has to be nearest to that one.

    Raises:
        ServerError: The server does not answer a single client.
    """
    clients, requests = served.options.concurrency, served.options.requests_each
    rows = served.fixed_rows or 1
    shapes = [(rows, _LENGTHS[n % len(_LENGTHS)]) for n in range(clients * _SETS)]
    inputs = [batch.inputs for batch in draw_batches(interface, shapes, seed=seed)]
    return _Clients(served, inputs, tolerance).outcome(clients, requests)
