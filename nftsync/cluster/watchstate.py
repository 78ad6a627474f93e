"""The states and causes that a watcher reports to metrics, the status and Events."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from nftsync.objects.names import Resource


class WatchState(StrEnum):
    """The present activity of a Watcher."""

    LISTING = "listing"
    WATCHING = "watching"
    WAITING = "waiting"
    ABSENT = "absent"  # the cluster does not serve an optional kind, or forbids to read it


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


class MassDeletion(StrEnum):
    """The stages of a list that suddenly lacks most of the known objects."""

    RAISED = "raised"
    CONFIRMED = "confirmed"  # a second list also lacks them
    REFUTED = "refuted"


class Observer(Protocol):
    """Takes news of the watches. Every watcher's thread calls it."""

    def watching(self, resource: Resource, state: WatchState) -> None:
        """The state changed."""

    def restarted(self, resource: Resource, cause: RestartCause) -> None:
        """A list or a watch ended."""

    def contact(self, resource: Resource) -> None:
        """The server sent a page, accepted a watch, or sent an event."""

    def skipped(self, resource: Resource, message: str) -> None:
        """The watcher skipped an object because its name is not readable."""

    def mass_deletion(self, resource: Resource, deletion: MassDeletion, message: str) -> None:
        """A list suddenly lacks most of the known objects, or a second list decided about it."""
