"""What may be tried again, and when: tenacity policies that end at once on shutdown.

Waits have jitter, so that the routers of one cluster don't come back in step after its API server did.
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
    """A request to the Kubernetes API that failed: one line with what failed, where, and what to do; never a credential.

    status: HTTP status, None if there was no answer.  retry_after: the seconds that the server asked us to wait.
    """

    def __init__(self, message: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between two tries.

    After the first failure from `first` to twice that, then doubling, never more than `longest`: so long may a router not know that
    its API server is back.  denied: after 403 and 404, which a person has to mend, from four fifths of it to all of it.
    patient: as long as a server may ask us to wait.
    """

    first: float = 0.8
    longest: float = 8.0
    denied: float = 8.0
    patient: float = 30.0

    def wait(self, failures: int, fault: ApiError, rng: random.Random) -> float:
        """Seconds to wait after so many failures in a row (at least 1), the last of them being `fault`."""
        if fault.status in (403, 404):
            return rng.uniform(0.8 * self.denied, self.denied)
        ceiling = min(self.longest, self.first * 2.0 ** min(failures, MAX_DOUBLINGS))
        backoff = rng.uniform(ceiling / 2, ceiling)
        asked = (fault.retry_after or 0.0) * rng.uniform(1.0, 1.25)
        return max(backoff, min(asked, self.patient))


def attempts(stop: threading.Event, pace: Pace, rng: random.Random) -> Iterator[AttemptManager]:
    """Attempts at something, until one does not end in an ApiError: `for attempt in attempts(…): with attempt: …`.

    Ends without an exception, and out of the middle of a wait, when `stop` is set.
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
        if stop.is_set():  # tenacity looks after a failure, but not after the wait
            return
        yield attempt
