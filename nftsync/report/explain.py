"""Explain a packet or a Service for `nftsync explain`: does it pass, and why?

The packet comes from the public NIC and begins a connection. This module follows it through
the rules (docs/ruleset.md). It mentions the operator's local chain but does not evaluate it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from nftsync.objects.address import Address, Network
from nftsync.objects.names import Name, Reason, quote
from nftsync.objects.service import Port, Protocol, Service
from nftsync.plan.result import SyncResult
from nftsync.policy.pinholes import Pinhole
from nftsync.report.query import PacketQuery, parse_query
from nftsync.ruleset.tables import FORWARD, INET, INPUT, OPERATOR_CR, OPERATOR_SVC, Settings, tables

_SSH, _BGP = Port(Protocol.TCP, 22), Port(Protocol.TCP, 179)
_SOURCE = {4: "ip saddr ", 6: "ip6 saddr "}
_CLOSING = {
    Reason.MALFORMED,
    Reason.INVALID_ADDRESS,
    Reason.INVALID_PORT,
    Reason.INVALID_PROTOCOL,
}  # the refused part is closed
_NAMED = 5  # the most items that a sentence names
_DETAILED = 200  # explain this many of a Service's pairs of address and port, and a few closed ones


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


def _unknown(_: object) -> None:
    """Answer None: not known."""


@dataclass(frozen=True, slots=True)
class View:
    """The facts for an explanation: a sync's result, and facts that it does not contain.

    services: all of type LoadBalancer, also those that the filters do not admit.
    routed: True if the router has a route to an address, other than back through the public NIC.
    drops: packets that a pinhole's limit has dropped, by the pinhole's key.
    routed and drops return None for "not known".
    """

    result: SyncResult
    services: Mapping[Name, Service]
    routed: Callable[[Address], bool | None] = _unknown
    drops: Callable[[str], int | None] = _unknown


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. lines: sentences for people, the decisive one first.

    rule: the deciding rule as "chain: rule"; "" if no rule decides.
    also: other facts that matter: LOCAL_CHAIN, NIC_MISSING.
    """

    verdict: Verdict
    reason: ExplainReason
    lines: tuple[str, ...]
    service: Name | None = None
    rule: str = ""
    also: tuple[ExplainReason, ...] = ()

    def as_json(self) -> dict[str, object]:
        words = {"verdict": self.verdict.value, "reason": self.reason.value, "also": [each.value for each in self.also]}
        return {
            **words,
            "service": str(self.service) if self.service else None,
            "rule": self.rule,
            "lines": list(self.lines),
        }

    def text(self) -> str:
        rule = [f"decided by {self.rule}"] if self.rule else []
        return "\n".join([f"{self.verdict}: {self.lines[0]}", *rule, *self.lines[1:]])


def explain(view: View, words: Sequence[str]) -> Explanation:
    """Answer a query; parse_query() reads it. Raises ValueError with a sentence."""
    query = parse_query(words)
    found = explain_service(view, query) if isinstance(query, Name) else explain_packet(view, query)
    remembered = view.result.remembered.get("services")
    return replace(found, lines=(*found.lines, f"Services are {remembered}")) if remembered else found


def explain_packet(view: View, query: PacketQuery) -> Explanation:
    """The fate of a packet, the rule and the Service that decide, and the reason."""
    settings, own = view.result.settings, view.result.local.addresses
    if settings is None:
        return _waiting(view.result)
    found = _to_router(settings, query) if query.destination in own else _through_router(view, settings, query)
    return _with_remarks(settings, found, view.services.get(found.service) if found.service else None)


def explain_service(view: View, name: Name) -> Explanation:
    """The state of each address and port of a Service.

    The Service passes if all of them are open to everybody, or to its source ranges.
    """
    service, settings = view.services.get(name), view.result.settings
    if settings is None:
        return _waiting(view.result)
    if service is None:
        line = f"there is no Service {name} of type LoadBalancer, and no other opens anything"
        return Explanation(Verdict.DROPPED, ExplainReason.NOT_A_SERVICE, (line,))
    asked = [PacketQuery(None, address, *port) for address in service.addresses for port in service.ports]
    closed = [query for query in asked[_DETAILED:] if not _opens(view, settings, query, service)]
    told = [*asked[:_DETAILED], *closed[:_NAMED]]  # also name closed pairs after many open ones
    parts = [_through_router(view, settings, query, service) for query in told]
    causes = [each.reason for each in parts if each.verdict is Verdict.DROPPED]
    if not asked:
        cause, line = _why_closed(view, service, None)
        found = Explanation(Verdict.DROPPED, cause, (f"Service {name} opens nothing: {line}",), name)
        return _with_remarks(settings, found, service)
    opened = len(asked) - len(causes) - len(closed[_NAMED:])
    if not opened:
        verdict = Verdict.DROPPED
    elif opened < len(asked) or any(each.reason in _CLOSING for each in service.rejections):
        verdict = Verdict.DEPENDS
    else:
        verdict = Verdict.LIMITED if service.limit and settings.device else Verdict.PASSES
    causes += [ExplainReason.INVALID for _ in service.rejections] + [
        each.reason for each in parts if each.reason is not ExplainReason.OPEN
    ]
    first = f"Service {name}: {opened} of {len(asked)} pairs of address and port are open"
    more = [f"… and {len(asked) - len(told)} more pairs"] if len(asked) > len(told) else []
    lines = (first, *("; ".join(each.lines) for each in parts), *more)
    return _with_remarks(settings, Explanation(verdict, (*causes, ExplainReason.OPEN)[0], lines, name), service)


def _opens(view: View, settings: Settings, query: PacketQuery, service: Service) -> bool:
    """True if the Service has this pinhole and packets can pass: _through_router() in short."""
    hole = view.result.pinholes.get(query.key)
    held = hole is not None and hole.service == service.name and hole.sources != ()
    return (held or not settings.enable_dropall) and view.routed(query.destination) is not False


def _to_router(settings: Settings, query: PacketQuery) -> Explanation:
    """Follow operator-cr, then the last rule of input."""
    port, words = Port(query.protocol, query.port), [f"tcp dport {query.port} "]
    ranges: Sequence[Network] | None = ()
    line = f"{query.destination} is the router's own address; {query} is not open there"
    if port == _SSH and settings.enable_ssh:
        ranges, line = None, f"{query.destination} is the router's own address; enable_ssh opens {query} to everybody"
    elif port == _BGP and settings.enable_bgp:
        ranges = settings.bgp_peers or None
        words += [_SOURCE[query.destination.version]] if ranges else []
        line = f"{query.destination} is the router's own address; enable_bgp opens {query} to {_whom(ranges)}"
    found = Explanation(_verdict(settings, ranges, query), ExplainReason.ROUTER_PORT, (line,))
    if found.verdict is Verdict.DROPPED:
        return _not_accepted(settings, INPUT, query, found)
    return replace(found, rule=_rule(settings, OPERATOR_CR, *words))


def _through_router(view: View, settings: Settings, query: PacketQuery, asker: Service | None = None) -> Explanation:
    """Follow operator-svc, then the last rule of forward. asker: explain this Service; None for any."""
    hole = view.result.pinholes.get(query.key)
    if hole is None or (asker is not None and asker.name != hole.service):
        found = _without_pinhole(view, query, [asker] if asker else view.services.values())
    else:
        service, verdict = view.services.get(hole.service), _verdict(settings, hole.sources, query)
        nobody = ExplainReason.INVALID if service and service.sources == () else ExplainReason.REFUSED_SOURCE
        cause = nobody if verdict is Verdict.DROPPED else ExplainReason.OPEN
        rule = _rule(settings, OPERATOR_SVC, f" @{'services' if hole.sources is None else 'sources'}{hole.version} ")
        line = f"Service {hole.service} opens {query} to {_whom(hole.sources)}"
        found = Explanation(verdict, cause, (line,), hole.service, rule)
    if found.verdict is Verdict.DROPPED:
        found = _not_accepted(settings, FORWARD, query, found)
    if found.verdict is not Verdict.DROPPED and view.routed(query.destination) is False:
        line = f"the router has no route to {query.destination}, or only one back through the public NIC"
        return replace(
            found, verdict=Verdict.DROPPED, reason=ExplainReason.NO_ROUTE, lines=(line, *found.lines), rule=""
        )
    return _limited(view, settings, hole, found)


def _without_pinhole(view: View, query: PacketQuery, services: Iterable[Service]) -> Explanation:
    """Explain why no pinhole matches. services: candidates; admitted ones come first in the answer."""
    holders = [each for each in services if query.destination in each.addresses]
    holders.sort(key=lambda each: (not view.result.config.filters.admit(each), each.name))
    asking = [each for each in holders if Port(query.protocol, query.port) in each.ports]
    if not holders:
        refusal = view.result.guard.refusal(query.destination)
        lines = (f"no Service has the address {query.destination}", *(refusal[1:] if refusal else ()))
        return Explanation(Verdict.DROPPED, ExplainReason.NO_SUCH_ADDRESS, lines)
    if not asking:
        ports = (_some(f"{protocol} {number}" for protocol, number in each.ports) or "no port" for each in holders)
        others = _some(f"Service {each.name} for {shown}" for each, shown in zip(holders, ports, strict=True))
        first, line = holders[0], f"no Service asks for {query}; at this address asks {others}"
        cause = ExplainReason.INVALID if first.rejections and not first.ports else ExplainReason.NO_SUCH_PORT
        return Explanation(Verdict.DROPPED, cause, (line,), first.name)
    found = [(each.name, *_why_closed(view, each, query)) for each in asking]
    lines = tuple(f"Service {name} asks for {query}, but {line}" for name, _, line in found)
    return Explanation(Verdict.DROPPED, found[0][1], lines, found[0][0])


def _not_accepted(settings: Settings, chain: str, query: PacketQuery, found: Explanation) -> Explanation:
    """Explain a packet that no rule accepts: the pools' rule or the chain's last rule decides."""
    if not settings.enable_dropall:
        lines = ("everything passes: enable_dropall is false", *found.lines)
        found = replace(found, verdict=Verdict.PASSES, reason=ExplainReason.EVERYTHING_PASSES, lines=lines)
    elif chain == FORWARD and query.destination in settings.cluster:
        return replace(found, rule=_rule(settings, OPERATOR_SVC, f" @pools{query.destination.version} "))
    return replace(found, rule=_rule(settings, chain))


def _limited(view: View, settings: Settings, hole: Pinhole | None, found: Explanation) -> Explanation:
    """Add the rate limit. The ingress hook comes first, but a later drop makes it irrelevant."""
    if found.verdict is Verdict.DROPPED or hole is None or hole.limit is None or hole.sources == ():
        return found
    first, *rest = found.lines
    if settings.device:
        count, verdict = view.drops(hole.key), Verdict.LIMITED if found.verdict is Verdict.PASSES else found.verdict
        line = f"its limit is {hole.limit}" + ("" if count is None else f"; packets dropped over it: {count}")
        return replace(found, verdict=verdict, lines=(first, line, *rest))
    missing = settings.enable_rateshape and found.reason is ExplainReason.OPEN
    why = "the public NIC is not there" if settings.enable_rateshape else "enable_rateshape is false"
    line = f"its limit, {hole.limit}, is not in force: {why}"
    return replace(found, reason=ExplainReason.NIC_MISSING if missing else found.reason, lines=(first, line, *rest))


def _why_closed(view: View, service: Service, query: PacketQuery | None) -> tuple[ExplainReason, str]:  # noqa: PLR0911  # each is a reason
    """The reason why a Service lacks a pinhole. query: None if the Service asks for none at all."""
    filters = view.result.config.filters
    if not replace(filters, load_balancer_classes=frozenset()).admit(service):
        return ExplainReason.FILTERED_NAMESPACE, f"namespaces and exclude_namespaces leave {service.name.namespace} out"
    if not filters.admit(service):
        classes = _some(map(quote, sorted(filters.load_balancer_classes)))
        return (
            ExplainReason.OTHER_CLASS,
            f"its class {quote(service.load_balancer_class)} is not in load_balancer_classes ({classes})",
        )
    if query is None and any(each.reason in _CLOSING for each in service.rejections):
        return ExplainReason.INVALID, "its refused parts leave no address and port"
    if query is None:
        waits = (ExplainReason.NO_ADDRESS_YET, "MetalLB has not given it an address yet")
        return (ExplainReason.NO_SUCH_PORT, "it has no port") if service.addresses else waits
    if refusal := view.result.guard.refusal(query.destination):
        unannounced = refusal[0] is Reason.OUTSIDE_POOLS and view.result.config.address_policy.advertised_only
        return ExplainReason(refusal[0]), refusal[
            1
        ] + "; only pools announced over BGP count (advertised_pools_only)" * unannounced
    owner = view.result.index.pinholes.get(query.key)
    if held_back := view.result.index.held_back(service.name):
        return ExplainReason(held_back[0]), held_back[1]
    if owner is None or owner.service == service.name:
        return ExplainReason.WAITING, "it is not applied yet; the next sync applies it"
    return (
        ExplainReason.LOST_TO_OLDER,
        f"the older Service {owner.service} has it. Service {service.name} gets it when {owner.service} is deleted",
    )


def _verdict(settings: Settings, ranges: Sequence[Network] | None, query: PacketQuery) -> Verdict:
    """The verdict of a rule for these ranges, None for all. DEPENDS if an unknown source matters."""
    held = [each for each in ranges or () if each.version == query.destination.version]
    if ranges is None or any(query.source in each if query.source else each.prefixlen == 0 for each in held):
        return Verdict.PASSES
    return Verdict.DEPENDS if held and query.source is None and settings.enable_dropall else Verdict.DROPPED


def _whom(ranges: Sequence[Network] | None) -> str:
    return (
        "everybody"
        if ranges is None
        else f"{_some(ranges)} alone"
        if ranges
        else "nobody: no valid range is of this family"
    )


def _rule(settings: Settings, chain: str, *words: str) -> str:
    """The last rule of a chain that contains these words, as in nft's input."""
    rules = tables(settings)[INET].chains[chain].rules.splitlines()
    return f"{chain}: {next(rule.strip() for rule in reversed(rules) if all(word in rule for word in words))}"


def _some(items: Iterable[object]) -> str:
    shown = list(map(str, items))
    return ", ".join(shown[:_NAMED]) + (f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else "")


def _waiting(result: SyncResult) -> Explanation:
    if not result.filters:
        return Explanation(Verdict.PASSES, ExplainReason.WAITING, (f"everything passes: {result.message}",))
    line = f"nothing is applied yet: {result.message}; until then the previous rules of the kernel decide"
    return Explanation(Verdict.DEPENDS, ExplainReason.WAITING, (line,))


def _with_remarks(settings: Settings, found: Explanation, service: Service | None) -> Explanation:
    """Add the Service's rejections and remarks that matter for every answer."""
    lines, also = [*found.lines, *map(str, service.rejections if service else ())], []
    if any(line.strip() and not line.lstrip().startswith("#") for line in settings.local_chain.splitlines()):
        also.append(ExplainReason.LOCAL_CHAIN)
        lines.append("the local chain comes first and is not empty: your own rule may decide differently")
    if settings.nic_missing:
        also.append(ExplainReason.NIC_MISSING)
        lines.append(
            f"there is no interface {settings.public_nic}: every interface counts as public, and no limit is in force"
        )
    return replace(found, lines=tuple(lines), also=tuple(also))
