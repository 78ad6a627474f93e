"""Retries with growing waits: a tenacity policy that ends at once on shutdown.

Waits have jitter, so that the routers of one cluster do not return in step after an outage.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from tenacity import AttemptManager, RetryCallState, Retrying, retry_if_exception_type
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_when_event_set

MAX_DOUBLINGS = 32


class ApiError(Exception):
    """A request to the Kubernetes API failed.

    The message is one line: the request, the cause and the remedy. It never holds a credential.
    status: HTTP status, None if there was no answer.
    retry_after: the wait in seconds that the server asks for.
    """

    def __init__(self, message: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between two tries.

    The first wait is between `first` and twice that; each further failure doubles it.
    longest: no wait exceeds this; so long can a router miss the return of its API server.
    denied: the wait after 403 and 404, which a person must repair; at least 80 % of it.
    patient: the longest wait that a server can ask for.
    """

    first: float = 0.8
    longest: float = 8.0
    denied: float = 8.0
    patient: float = 30.0

    def wait(self, failures: int, fault: ApiError, rng: random.Random) -> float:
        """Seconds to wait after `failures` failures in a row (at least 1); `fault` is the last."""
        if fault.status in (403, 404):
            return rng.uniform(0.8 * self.denied, self.denied)
        ceiling = min(self.longest, self.first * 2.0 ** min(failures, MAX_DOUBLINGS))
        backoff = rng.uniform(ceiling / 2, ceiling)
        asked = (fault.retry_after or 0.0) * rng.uniform(1.0, 1.25)
        return max(backoff, min(asked, self.patient))


def attempts(stop: threading.Event, pace: Pace, rng: random.Random) -> Iterator[AttemptManager]:
    """Attempts until one succeeds: `for attempt in attempts(…): with attempt: …`.

    An attempt fails if it ends with an ApiError.
    It ends without an exception when `stop` is set, also in the middle of a wait.
    """

    def wait(state: RetryCallState) -> float:
        return pace.wait(state.attempt_number, state.outcome.exception(), rng)

    policy = Retrying(
        stop=stop_when_event_set(stop),
        wait=wait,
        retry=retry_if_exception_type(ApiError),
        sleep=sleep_using_event(stop),
        retry_error_callback=lambda _: None,
    )
    for attempt in policy:
        if stop.is_set():  # tenacity checks it after a failure, but not after the wait
            return
        yield attempt
