"""The answer of `nftsync explain`, and the facts that it needs."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from nftsync.objects.address import Address
from nftsync.objects.names import Name, Reason
from nftsync.objects.service import Service
from nftsync.plan.result import SyncResult
from nftsync.report.others import OtherTables


class Verdict(StrEnum):
    """The fate of a packet, or of a Service's ports."""

    PASSES = "passes"
    LIMITED = "limited"  # passes up to its limit
    DEPENDS = "depends"  # a packet: on unknown facts, such as its source; a Service: only a part is open
    DROPPED = "dropped"


class ExplainReason(StrEnum):
    """The reason, as one word for machines. The list is fixed."""

    OPEN = "open"
    NO_SUCH_ADDRESS = "no_such_address"
    OUTSIDE_POOLS = "outside_pools"
    RESERVED_ADDRESS = "reserved_address"
    REFUSED_SOURCE = "refused_source"
    NO_ADDRESS_YET = "no_address_yet"
    OTHER_CLASS = "other_class"
    FILTERED_NAMESPACE = "filtered_namespace"
    INVALID = "invalid"
    LOST_TO_OLDER = "lost_to_older"
    QUARANTINED = "quarantined"
    OVER_CAP = "over_cap"
    NO_SUCH_PORT = "no_such_port"
    NOT_A_SERVICE = "not_a_service"
    WAITING = "waiting"
    NIC_MISSING = "nic_missing"
    NO_ROUTE = "no_route"
    EVERYTHING_PASSES = "everything_passes"
    ROUTER_PORT = "router_port"
    LOCAL_CHAIN = "local_chain"
    TRACKED = "tracked"
    STATELESS = "stateless"
    OTHER_TABLES = "other_tables"


def _unknown(*_: object) -> None:
    """Answer None: not known."""


@dataclass(frozen=True, slots=True)
class View:
    """The facts for an explanation: a sync's result, and facts that it does not contain.

    services: all of type LoadBalancer, also those that the filters do not admit.
    routed: True if the router has a route to an address, other than back through the public NIC.
    drops, drops_egress: packets that a pinhole's limits have dropped, by the pinhole's key.
    invalid: packets that connection tracking called invalid, so our rules dropped them.
    These functions return None for "not known".
    others: the tables of other programs.
    """

    result: SyncResult
    services: Mapping[Name, Service]
    routed: Callable[[Address], bool | None] = _unknown
    drops: Callable[[str], int | None] = _unknown
    drops_egress: Callable[[str], int | None] = _unknown
    invalid: Callable[[], int | None] = _unknown
    others: Callable[[], OtherTables] = OtherTables

    def refused(self, name: Name) -> tuple[str, ...]:
        """The rejections of the newest version of a Service, if a file holds one that is refused."""
        return tuple(
            str(rejection)
            for rejection in self.result.rejections
            if (rejection.object.kind, rejection.object.name) == ("Service", str(name))
            and rejection.reason in (Reason.UNKNOWN_KIND, Reason.UNKNOWN_FIELD)
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. lines: sentences for people, the decisive one first.

    rule: the deciding rule as "chain: rule"; "" if no rule decides.
    also: other facts that matter: LOCAL_CHAIN, NIC_MISSING, OTHER_TABLES, TRACKED, STATELESS.
    """

    verdict: Verdict
    reason: ExplainReason
    lines: tuple[str, ...]
    service: Name | None = None
    rule: str = ""
    also: tuple[ExplainReason, ...] = ()

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "service": str(self.service) if self.service else None}

    def text(self) -> str:
        rule = [f"decided by {self.rule}"] if self.rule else []
        return "\n".join([f"{self.verdict}: {self.lines[0]}", *rule, *self.lines[1:]])
