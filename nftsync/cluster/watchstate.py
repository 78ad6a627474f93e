"""What a watcher tells of itself: to metrics, the status and Events."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from nftsync.objects.kinds import Resource


class WatchState(StrEnum):
    """What a Watcher does at the moment."""

    LISTING = "listing"
    WATCHING = "watching"
    WAITING = "waiting"
    ABSENT = "absent"  # the cluster does not have, or does not show, an optional kind


class RestartCause(StrEnum):
    """Why a watch began anew. The list is fixed: metrics use it."""

    ENDED = "ended"  # by the server, or nothing came for a while: as it should be
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


class MassDeletion(StrEnum):
    """About a list that has suddenly lost most of what was known."""

    RAISED = "raised"
    CONFIRMED = "confirmed"  # a second list lacks them, too
    REFUTED = "refuted"


class Observer(Protocol):
    """Who wants to know how the watches are doing. Called from every watcher's thread."""

    def watching(self, resource: Resource, state: WatchState) -> None:
        """The state changed."""

    def restarted(self, resource: Resource, cause: RestartCause) -> None:
        """A list or a watch ended."""

    def contact(self, resource: Resource) -> None:
        """The server gave a sign of life: a page, an accepted watch, or an event."""

    def skipped(self, resource: Resource, message: str) -> None:
        """An object was passed over because not even its name could be read."""

    def mass_deletion(self, resource: Resource, deletion: MassDeletion, message: str) -> None:
        """A list has suddenly lost most of what was known; or a second one has decided about that."""
