"""Failed requests: the cause of each, and the wait before the next try.

Waits have jitter, so that the routers of one cluster do not return in step after an outage.
"""

import random
import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_when_event_set

from nftsync.objects.names import NftsyncError


class RestartCause(StrEnum):
    """The reason for a new watch. The list is fixed, because metrics use it."""

    ENDED = "ended"  # normal: the server ended it, or nothing came for a while
    RELIST_DUE = "relist_due"
    ENDED_AT_ONCE = "ended_at_once"
    EXPIRED = "version_expired"
    MALFORMED = "malformed_answer"
    UNREACHABLE = "unreachable"
    KUBECONFIG = "kubeconfig"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    THROTTLED = "throttled"
    SERVER_ERROR = "server_error"


_CAUSES = {
    None: RestartCause.UNREACHABLE,
    401: RestartCause.UNAUTHORIZED,
    403: RestartCause.FORBIDDEN,
    404: RestartCause.NOT_FOUND,
    429: RestartCause.THROTTLED,
}


class ApiError(NftsyncError):
    """A request to the Kubernetes API failed.

    The message is one line: the request, the cause and the remedy. It never holds a credential.
    status: HTTP status, None if there was no answer.
    retry_after: the wait in seconds that the server asks for.
    is_expired: the server does not have the requested version: it is too old, or not there yet.
    cause: the reason for the new watch that follows.
    """

    _cause: ClassVar[RestartCause | None] = None  # None: the status tells it

    def __init__(self, message: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        # A gateway also answers 504 if its server is away, so look at the text of a 504.
        self.is_expired = status in (400, 410) or (status == 504 and "resource version" in message)
        by_status = RestartCause.EXPIRED if self.is_expired else _CAUSES.get(status, RestartCause.SERVER_ERROR)
        self.cause = self._cause or by_status


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds between two tries.

    The first wait is between `initial` and twice that; each further failure doubles it.
    maximum: no wait exceeds this; so long can a router miss the return of its API server.
    forbidden: the wait after 403 and 404, which a person must repair; at least 80 % of it.
    max_retry_after: the longest wait that a server can ask for.
    """

    initial: float = 0.8
    maximum: float = 8.0
    forbidden: float = 8.0
    max_retry_after: float = 30.0

    def wait(self, failures: int, error: ApiError, rng: random.Random) -> float:
        """Seconds to wait after `failures` failures in a row (at least 1); `error` is the last."""
        if error.status in (403, 404):
            return rng.uniform(0.8 * self.forbidden, self.forbidden)
        ceiling = min(self.maximum, self.initial * 2.0 ** min(failures, 32))  # no float overflows
        backoff = rng.uniform(ceiling / 2, ceiling)
        asked = (error.retry_after or 0.0) * rng.uniform(1.0, 1.25)
        return max(backoff, min(asked, self.max_retry_after))

    def retrying(self, stop: threading.Event, rng: random.Random) -> Retrying:
        """Call the result with a function: it repeats the function until that raises no ApiError.

        It ends without an exception when `stop` is set, also in the middle of a wait. It calls the
        function once more after such a wait.
        """

        def wait(state: RetryCallState) -> float:
            return self.wait(state.attempt_number, state.outcome.exception(), rng)

        return Retrying(
            stop=stop_when_event_set(stop),
            wait=wait,
            retry=retry_if_exception_type(ApiError),
            sleep=sleep_using_event(stop),
            retry_error_callback=lambda _: None,
        )
