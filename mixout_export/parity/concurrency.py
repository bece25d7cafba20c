"""Several clients at once, each of which has to get the answers to its own inputs.

What each answer should be is asked first, by one client alone. Then an answer is a client's own if
it is nearer to that than to what any other client should get: so answers that are mixed up are told
from answers that are off, whatever the model and its precision.

The rows of a batch of int8 share a scale, so a server that joins requests moves their answers. How
far is found out by joining rows on purpose; answers that lie as close together as that cannot be
told apart.
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

#: Inputs of each client, which it sends by turns.
_SETS = 2

#: Lengths of the clients' inputs. Most are equal: servers join requests that have one shape.
_LENGTHS = (16, 16, 16, 27)

#: A client that loses so many requests one after the other gives up; the rest counts as lost.
_PATIENCE = 3


def _shapes(arrays: Outputs) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in arrays.values())


def _joined(parts: Sequence[Outputs]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _distance(left: Outputs, right: Outputs) -> float:
    """Return the largest |left − right| of any output; infinite where shapes or NaN differ."""
    largest = 0.0
    for name, ours in left.items():
        theirs = right[name]
        if ours.shape != theirs.shape:
            return np.inf
        apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        largest = max(largest, float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0)))
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
    """What the clients have been answered so far."""

    own: int = 0
    mixed_up: int = 0
    changed: int = 0
    failure: str = ""
    seconds: list[float] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return self.own + self.mixed_up + self.changed


class _Crowd:
    """Clients with inputs of their own, and what each should be answered."""

    def __init__(
        self,
        served: ServedSession,
        inputs: Sequence[Mapping[str, Array]],
        tolerance: Tolerance | None,
    ) -> None:
        """Ask for each answer alone."""
        self._served = served
        self._inputs = inputs
        self._expected = [served.run(each) for each in inputs]
        self._reach = [self._half_way(number) for number in range(len(inputs))]
        self._is_exact = tolerance is not None
        # clients meet in more ways than the one that is tried
        self._allowed = tolerance or Tolerance(atol=2 * self._moved_by_joining(), rtol=0.0)
        self._tally = _Tally()

    def _moved_by_joining(self) -> float:
        """Return how far answers move when their inputs are rows of one batch."""
        if self._served.fixed_rows is not None:
            return 0.0
        groups: dict[object, list[int]] = {}
        for number, inputs in enumerate(self._inputs):
            groups.setdefault(_shapes(inputs), []).append(number)
        return max(self._moved(numbers) for numbers in groups.values())

    def _moved(self, numbers: Sequence[int]) -> float:
        alone = _joined([self._expected[number] for number in numbers])
        together = self._served.run(_joined([self._inputs[number] for number in numbers]))
        return _distance(alone, together)

    def _half_way(self, number: int) -> float:
        """Return how far an answer may be off and still be nearest to its own."""
        ours = self._expected[number]
        others = (_distance(ours, e) for n, e in enumerate(self._expected) if n != number)
        return min(others, default=np.inf) / 2

    def _is_alike(self, number: int) -> bool:
        """Tell whether an answer is too like another's to be told from it."""
        return self._reach[number] <= self._allowed.atol

    def _is_near(self, number: int, found: Outputs) -> bool:
        """Tell whether an answer is nearest to the one that some inputs should get."""
        return _distance(found, self._expected[number]) <= self._reach[number]

    def _judge(self, number: int, found: Outputs) -> None:
        """Count an answer as its own, as another's, or as neither."""
        within = _within(found, self._expected[number], self._allowed)
        if self._is_near(number, found) or (within and self._is_alike(number)):
            kind = "own" if within or not self._is_exact else "changed"
        elif any(self._is_near(other, found) for other in range(len(self._inputs))):
            kind = "mixed_up"
        else:
            kind = "changed"
        setattr(self._tally, kind, getattr(self._tally, kind) + 1)

    async def _ask(self, client: Client, number: int) -> bool:
        """Ask once; return whether there was an answer."""
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

    async def _be(self, client: Client, which: int, requests: int) -> None:
        """Ask again and again as one of the clients."""
        lost = 0
        for request in range(requests):
            lost = 0 if await self._ask(client, which * _SETS + request % _SETS) else lost + 1
            if lost == _PATIENCE:
                return

    async def _meet(self, clients: int, requests: int) -> tuple[float, int]:
        async with self._served.connect() as client:
            start = time.perf_counter()
            async with anyio.create_task_group() as group:
                for which in range(clients):
                    group.start_soon(self._be, client, which, requests)
            return time.perf_counter() - start, client.retried

    def outcome(self, clients: int, requests: int) -> ConcurrencyOutcome:
        """Let all clients ask at once, and return what they were answered."""
        seconds, retried = complete(lambda: self._meet(clients, requests))
        tally, total = self._tally, clients * requests
        return ConcurrencyOutcome(
            clients=clients,
            requests=total,
            own=tally.own,
            mixed_up=tally.mixed_up,
            changed=tally.changed,
            lost=total - tally.answered,
            retried=retried,
            latency=_latency(tally.seconds),
            per_second=tally.answered / seconds,
            failure=tally.failure,
            too_alike=sum(self._is_alike(number) for number in range(len(self._inputs))),
        )


def _latency(seconds: Sequence[float]) -> Latency | None:
    if not seconds:
        return None
    return Latency(*(1000 * np.percentile(seconds, (50, 90, 99, 100))).tolist())


def ask_at_once(
    served: ServedSession, interface: ModelInterface, *, tolerance: Tolerance | None, seed: int = 0
) -> ConcurrencyOutcome:
    """Let several clients ask a server at once, each for answers to inputs of its own.

    Args:
        served: The served model; its options say how many clients there are.
        interface: What it takes.
        tolerance: How far an answer may differ from the one the same inputs get alone; None lets
            it differ as long as it is nearest to its own.
        seed: Of the inputs.

    Raises:
        ServerError: The server does not answer a single client.
    """
    clients, requests = served.options.concurrency, served.options.requests_each
    rows = served.fixed_rows or 1
    shapes = [(rows, _LENGTHS[n % len(_LENGTHS)]) for n in range(clients * _SETS)]
    inputs = [batch.inputs for batch in draw_batches(interface, shapes, seed=seed)]
    return _Crowd(served, inputs, tolerance).outcome(clients, requests)
