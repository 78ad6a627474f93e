"""Why a packet passes or does not, and what came of a Service: `nftsync explain`.

A packet is taken to come from the public NIC and to begin a new connection. It goes its way through the ruleset (docs/ruleset.md)
as the kernel would send it, except for the operator's own local chain, which is only mentioned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from nftsync.desired import Desired, Filters, Pinhole
from nftsync.guard import Boundary, Guard
from nftsync.objects import NAME, Address, Name, Network, Port, Protocol, Reason, Service, parse_address, quote
from nftsync.ruleset import FILTER, FORWARD, INPUT, OPERATOR_CR, OPERATOR_SVC, Settings, tables

_FORMS = "right is e.g. 192.0.2.1:80, 192.0.2.1:53/udp or [2001:db8::1]:443, with a source address before it or not, or NAMESPACE/NAME"
_TARGET = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15})):([0-9]{1,5})(?:/([A-Za-z]{1,8}))?")
_PROTOCOLS = {word: each for each in Protocol for word in (each.value, each.name)}
_SSH, _BGP = Port(Protocol.TCP, 22), Port(Protocol.TCP, 179)
_CLOSING = {Reason.INVALID_ADDRESS, Reason.INVALID_PORT, Reason.INVALID_PROTOCOL}  # what is refused so is a part that stays closed
_NAMED = 5  # of many, so many are named


class Verdict(StrEnum):
    """What becomes of a packet, or of all that a Service asks for."""

    PASSES = "passes"
    LIMITED = "limited"  # passes up to its limit
    DEPENDS = "depends"  # on the source, which was not given; of a Service: some of it is open, some is not
    DROPPED = "dropped"


class Cause(StrEnum):
    """Why, as one word for machines. The list is fixed."""

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
    NO_SUCH_PORT = "no_such_port"
    NOT_A_SERVICE = "not_a_service"
    WAITING = "waiting"
    NIC_MISSING = "nic_missing"
    NO_ROUTE = "no_route"
    EVERYTHING_PASSES = "everything_passes"
    ROUTER_PORT = "router_port"
    LOCAL_CHAIN = "local_chain"


@dataclass(frozen=True, slots=True)
class View:
    """What there is to explain with.

    services: every Service of type LoadBalancer, also those that the filters do not admit.
    settings: those in force; None while nothing is applied, and then `waiting` says why.
    own: the router's own addresses.
    routed: whether the router has a route to an address that does not lead back through the public NIC; None if not known.
    drops: how many packets the limit of a pinhole, by its key, has dropped; None if not known.
    """

    services: Mapping[Name, Service]
    desired: Desired
    guard: Guard
    filters: Filters
    boundary: Boundary
    settings: Settings | None
    waiting: str
    own: frozenset[Address]
    routed: Callable[[Address], bool | None]
    drops: Callable[[str], int | None]


@dataclass(frozen=True, slots=True)
class PacketQuery:
    """The first packet of a connection. source: None if it may be any. str() is its target."""

    source: Address | None
    destination: Address
    protocol: Protocol
    port: int

    @property
    def key(self) -> str:
        """Of the pinhole that would let it pass."""
        return f"{self.destination} . {self.protocol} . {self.port}"

    def __str__(self) -> str:
        return f"{self.destination} {self.protocol} {self.port}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. lines: sentences for people, the decisive one first.

    service: the one that it is about.  rule: "chain: rule" that decides a packet, "" if none does.  also: what else bears on it,
    LOCAL_CHAIN or NIC_MISSING.
    """

    verdict: Verdict
    reason: Cause
    lines: tuple[str, ...]
    service: Name | None = None
    rule: str = ""
    also: tuple[Cause, ...] = ()

    def as_json(self) -> dict[str, object]:
        service = str(self.service) if self.service else None
        words = {"verdict": str(self.verdict), "reason": str(self.reason), "also": list(map(str, self.also))}
        return {**words, "service": service, "rule": self.rule, "lines": list(self.lines)}

    def text(self) -> str:
        rule = (f"decided by {self.rule}",) if self.rule else ()
        return "\n".join((f"{self.verdict}: {self.lines[0]}", *rule, *self.lines[1:]))


# --- the question -------------------------------------------------------------------------------------


def parse_query(words: Sequence[str]) -> PacketQuery | Name:
    """`[SRC] DST:PORT[/proto]` or `NAMESPACE/NAME`, one word each. Raises ValueError with a sentence."""
    if not 1 <= len(words) <= 2:
        raise ValueError(f"{len(words)} words are no question; {_FORMS}")
    *sources, target = words
    if ":" in target:
        return _parse_packet(sources[0] if sources else None, target)
    name = Name(*target.split("/")) if target.count("/") == 1 else None
    if name is None or not all(map(NAME.fullmatch, name)):
        raise ValueError(f"{quote(target)} is neither an address with a port nor a Service; {_FORMS}")
    if sources:
        raise ValueError(f"a source address cannot stand before the Service {name}; {_FORMS}")
    return name


def _parse_packet(source: str | None, target: str) -> PacketQuery:
    match = _TARGET.fullmatch(target)
    if match is None:
        raise ValueError(f"{quote(target)} is not an address with a port; {_FORMS}")
    port, protocol = match[3], match[4] or "tcp"
    if port.startswith("0") or int(port) > 65535:
        raise ValueError(f"port {port} is not a whole number from 1 to 65535 without leading zeros; {_FORMS}")
    if protocol not in _PROTOCOLS:
        raise ValueError(f"protocol {quote(protocol)} is not one of {', '.join(Protocol)}; {_FORMS}")
    destination = parse_address(match[1] or match[2])
    if source is None:
        return PacketQuery(None, destination, _PROTOCOLS[protocol], int(port))
    try:
        origin = parse_address(source)
    except ValueError:
        raise ValueError(f"{quote(source)} is not an address that a packet can come from; {_FORMS}") from None
    if origin.version != destination.version:
        raise ValueError(f"a packet from {origin} cannot go to {destination}: one is IPv4, the other IPv6")
    return PacketQuery(origin, destination, _PROTOCOLS[protocol], int(port))


# --- a packet -----------------------------------------------------------------------------------------


def explain_packet(view: View, query: PacketQuery) -> Explanation:
    """What becomes of a packet, which rule and which Service decide, and why."""
    if view.settings is None:
        return _waiting(view)
    return _with_remarks(view.settings, _packet(view, view.settings, query))


def _packet(view: View, settings: Settings, query: PacketQuery) -> Explanation:
    hole = view.desired.pinholes.get(query.key)
    if query.destination in view.own:
        decided = _to_router(view, settings, query)
    elif hole is None:
        decided = _reached(view, query, _without_pinhole(view, settings, query))
    else:
        others = _claimants(view, query, besides=hole.service)
        younger = (f"it is claimed by {_some(others)}, too: the older Service has it",) if others else ()
        decided = _reached(view, query, _through_pinhole(view, settings, query, hole))
        decided = replace(decided, lines=(*decided.lines, *younger, *_refused_parts(view, hole.service)))
    return _limited(view, settings, hole, decided)


def _to_router(view: View, settings: Settings, query: PacketQuery) -> Explanation:
    """operator-cr, then the last rule of input."""
    port, own = Port(query.protocol, query.port), f"{query.destination} is the router's own address"
    claimed = (f"Service {each} has it, too: what is for the router never gets there" for each in _holders(view, query))
    if port == _SSH and settings.enable_ssh:
        rule = _rule(settings, OPERATOR_CR, "tcp dport 22 ")
        return Explanation(Verdict.PASSES, Cause.ROUTER_PORT, (f"{own}; enable_ssh opens {query}", *claimed), rule=rule)
    line = f"{own}, and {query} is not open there"
    if port == _BGP and settings.enable_bgp:
        admitted = _holds(settings.bgp_peers or None, query)
        line = f"{own}; enable_bgp opens {query} to {_some(settings.bgp_peers) if settings.bgp_peers else 'everybody'}"
        if admitted or (admitted is None and settings.enable_dropall):
            source = {4: "ip saddr ", 6: "ip6 saddr "}[query.destination.version] if settings.bgp_peers else ""
            verdict, hint = (Verdict.PASSES, "") if admitted else (Verdict.DEPENDS, ": name a source address to know")
            rule = _rule(settings, OPERATOR_CR, source, "tcp dport 179 ")
            return Explanation(verdict, Cause.ROUTER_PORT, (line + hint, *claimed), rule=rule)
        line += f", and {query.source or 'no address of this family'} is not among them"
    return _not_accepted(settings, INPUT, query, Cause.ROUTER_PORT, (line, *claimed))


def _through_pinhole(view: View, settings: Settings, query: PacketQuery, hole: Pinhole) -> Explanation:
    """operator-svc, where a pinhole has been found."""
    opens, admitted = f"Service {hole.service} opens {query}", _holds(hole.sources, query)
    if admitted or (admitted is None and settings.enable_dropall):
        rule = _rule(settings, OPERATOR_SVC, f" @{'services' if hole.sources is None else 'sources'}{hole.version} ")
        verdict, hint = (Verdict.PASSES, "") if admitted else (Verdict.DEPENDS, ": name a source address to know")
        line = f"{opens} to {'everybody' if hole.sources is None else _some(hole.sources)}{hint}"
        return Explanation(verdict, Cause.OPEN, (line,), hole.service, rule)
    service = view.services.get(hole.service)
    if service is not None and service.sources == ():
        cause, line = Cause.INVALID, f"{opens} to nobody: none of its source ranges is valid"
    elif not hole.sources:
        cause, line = Cause.REFUSED_SOURCE, f"{opens} to nobody: none of its source ranges is IPv{hole.version}"
    else:
        outside = f", and {query.source} is not among them" if query.source else ""
        cause, line = Cause.REFUSED_SOURCE, f"{opens} only to {_some(hole.sources)}{outside}"
    return _not_accepted(settings, FORWARD, query, cause, (line,), hole.service)


def _without_pinhole(view: View, settings: Settings, query: PacketQuery) -> Explanation:
    """Forwarding, where no pinhole has been found."""
    holders, claimants = _holders(view, query), _claimants(view, query)
    if claimants:
        cause, line = _why_closed(view, view.services[claimants[0]], query)
        others = (f"Service {each}: {_why_closed(view, view.services[each], query)[1]}" for each in claimants[1:])
        lines = (f"Service {claimants[0]} asks for {query}, but {line}", *others)
        return _not_accepted(settings, FORWARD, query, cause, lines, claimants[0])
    if not holders:
        judged = view.guard.refusal(query.destination)
        lines = (f"no Service has the address {query.destination}", *(judged[1:] if judged else ()))
        return _not_accepted(settings, FORWARD, query, Cause.NO_SUCH_ADDRESS, lines)
    service = view.services[holders[0]]
    bar, parts = _bar(view, service, query.destination), tuple(_refused_parts(view, service.name))
    has = (f"Service {each} has {query.destination} with {_ports(view.services[each])}" for each in holders[:_NAMED])
    lines = (f"no Service has {query}; {'; '.join(has)}", *((bar[1],) if bar else ()), *parts)
    cause = Cause.INVALID if parts and not service.ports else Cause.NO_SUCH_PORT
    return _not_accepted(settings, FORWARD, query, cause, lines, service.name)


def _not_accepted(
    settings: Settings, chain: str, query: PacketQuery, cause: Cause, lines: tuple[str, ...], service: Name | None = None
) -> Explanation:
    """No rule accepts it: that of the pools decides, or the chain's last one."""
    if not settings.enable_dropall:
        everything = "everything passes, because enable_dropall is false"
        return Explanation(Verdict.PASSES, Cause.EVERYTHING_PASSES, (everything, *lines), service, _rule(settings, chain))
    guarded = chain == FORWARD and query.destination in settings.cluster
    rule = _rule(settings, OPERATOR_SVC, f" @pools{query.destination.version} ") if guarded else _rule(settings, chain)
    return Explanation(Verdict.DROPPED, cause, lines, service, rule)


def _reached(view: View, query: PacketQuery, decided: Explanation) -> Explanation:
    """What the rules let pass is not forwarded without a route."""
    if decided.verdict is Verdict.DROPPED or view.routed(query.destination) is not False:
        return decided
    line = f"the rules do not stop it, but the router has no route to {query.destination}, or only one back through the public NIC"
    return replace(decided, verdict=Verdict.DROPPED, reason=Cause.NO_ROUTE, lines=(line, *decided.lines), rule="")


def _limited(view: View, settings: Settings, hole: Pinhole | None, decided: Explanation) -> Explanation:
    """The ingress hook comes first on a packet's way, but what is dropped later is dropped anyhow."""
    if decided.verdict is Verdict.DROPPED or hole is None or hole.limit is None or hole.sources == ():
        return decided
    first, *rest = decided.lines
    if not settings.enable_rateshape:
        return replace(decided, lines=(first, f"its limit, {hole.limit}, is not in force: enable_rateshape is false", *rest))
    if settings.device is None:
        reason = Cause.NIC_MISSING if decided.reason is Cause.OPEN else decided.reason
        return replace(decided, reason=reason, lines=(f"{first}; its limit, {hole.limit}, is not in force", *rest))
    count = view.drops(hole.key)
    line = f"its limit is {hole.limit}" + (f"; packets dropped over it: {count}" if count is not None else "")
    verdict = Verdict.LIMITED if decided.verdict is Verdict.PASSES else decided.verdict
    return replace(decided, verdict=verdict, lines=(first, line, *rest))


# --- a Service ----------------------------------------------------------------------------------------


def explain_service(view: View, name: Name) -> Explanation:
    """What came of each address and port of a Service. It passes if all of them are open, to everybody or to whom it names."""
    service, settings = view.services.get(name), view.settings
    if settings is None:
        return _waiting(view)
    if service is None:
        line = f"there is no Service {name} of type LoadBalancer, and no other opens anything"
        return Explanation(Verdict.DROPPED, Cause.NOT_A_SERVICE, (line,))
    asked = [PacketQuery(None, address, *port) for address in service.addresses for port in service.ports]
    claims = [_claim(view, settings, service, query) for query in asked]
    refused = tuple(_refused_parts(view, name))
    if not claims:
        cause, line = _nothing_asked(view, service)
        return _with_remarks(settings, Explanation(Verdict.DROPPED, cause, (f"Service {name} opens nothing: {line}", *refused), name))
    verdicts = [each.verdict for each in claims]
    closed = verdicts.count(Verdict.DROPPED)
    if closed == len(claims):
        verdict = Verdict.DROPPED
    elif closed or any(each.reason in _CLOSING for each in service.rejections):
        verdict = Verdict.DEPENDS
    else:
        verdict = Verdict.LIMITED if Verdict.LIMITED in verdicts else Verdict.PASSES
    causes = [each.reason for each in claims if each.verdict is Verdict.DROPPED]
    causes += [Cause.INVALID] * bool(refused) + [each.reason for each in claims if each.reason is not Cause.OPEN]
    first = f"Service {name}: {len(claims) - closed} of {len(claims)} pinholes are open"
    lines = (first, *("; ".join(each.lines) for each in claims), *refused)
    return _with_remarks(settings, Explanation(verdict, next(iter(causes), Cause.OPEN), lines, name))


def _claim(view: View, settings: Settings, service: Service, query: PacketQuery) -> Explanation:
    """What came of one of its addresses and ports; to be open to whom it names is to be open."""
    hole = view.desired.pinholes.get(query.key)
    if hole is None or hole.service != service.name or query.destination in view.own:
        cause, line = _why_closed(view, service, query)
        return _reached(view, query, _not_accepted(settings, FORWARD, query, cause, (f"{query}: {line}",)))
    found = _reached(view, query, _through_pinhole(view, settings, query, hole))
    if found.verdict is Verdict.DEPENDS:
        found = replace(found, verdict=Verdict.PASSES, lines=(f"Service {hole.service} opens {query} to {_some(hole.sources or ())}",))
    return _limited(view, settings, hole, found)


def _nothing_asked(view: View, service: Service) -> tuple[Cause, str]:
    """Why a Service without an address or without a port is so."""
    for address in service.addresses:
        return (Cause.INVALID if service.rejections else Cause.NO_SUCH_PORT), f"it has the address {address}, but no port"
    if {each.reason for each in service.rejections} & {Reason.MALFORMED, Reason.INVALID_ADDRESS}:
        return Cause.INVALID, "no address of it could be understood"
    return _filtered(view, service) or (Cause.NO_ADDRESS_YET, "MetalLB has not given it an address yet")


# --- what they share ----------------------------------------------------------------------------------


def _holders(view: View, query: PacketQuery) -> list[Name]:
    """The Services that have the address, those that count first."""
    names = (each.name for each in view.services.values() if query.destination in each.addresses)
    return sorted(names, key=lambda name: (not view.filters.admit(view.services[name]), name))


def _claimants(view: View, query: PacketQuery, besides: Name | None = None) -> list[Name]:
    """The Services that ask for the address and port; besides one, those that count."""
    asking = (name for name in _holders(view, query) if Port(query.protocol, query.port) in view.services[name].ports)
    return [name for name in asking if besides is None or (name != besides and view.filters.admit(view.services[name]))]


def _why_closed(view: View, service: Service, query: PacketQuery) -> tuple[Cause, str]:
    """Why a Service does not have the pinhole that it asks for."""
    if bar := _bar(view, service, query.destination):
        return bar
    owner = view.desired.pinholes.get(query.key)
    if owner is not None and owner.service != service.name:
        return Cause.LOST_TO_OLDER, f"it belongs to the older Service {owner.service} and is inherited when that one goes"
    return Cause.WAITING, "it has not been applied yet; the next sync does it"


def _bar(view: View, service: Service, address: Address) -> tuple[Cause, str] | None:
    """Why a Service opens nothing at an address."""
    if filtered := _filtered(view, service):
        return filtered
    if (refusal := view.guard.refusal(address)) is None:
        return None
    reason, line = refusal
    outside = reason is Reason.OUTSIDE_POOLS and view.boundary.advertised_only
    return Cause(reason), line + ("; only pools announced over BGP count (advertised_pools_only)" if outside else "")


def _filtered(view: View, service: Service) -> tuple[Cause, str] | None:
    """Which filter does not admit a Service."""
    filters, namespace = view.filters, service.name.namespace
    if namespace in filters.exclude_namespaces or (filters.namespaces and namespace not in filters.namespaces):
        key = "is in exclude_namespaces" if namespace in filters.exclude_namespaces else "is not in the filter namespaces"
        return Cause.FILTERED_NAMESPACE, f"its namespace {namespace} {key}"
    if filters.load_balancer_classes and service.load_balancer_class not in filters.load_balancer_classes:
        others = _some(map(quote, sorted(filters.load_balancer_classes)))
        return Cause.OTHER_CLASS, f"its class {quote(service.load_balancer_class)} is not in load_balancer_classes ({others})"
    return None


def _holds(ranges: Sequence[Network] | None, query: PacketQuery) -> bool | None:
    """Whether they hold the packet's source; None if it was not given and matters. ranges: None for everybody."""
    if ranges is None:
        return True
    fitting = [each for each in ranges if each.version == query.destination.version]
    if query.source is not None:
        return any(query.source in each for each in fitting)
    return True if any(each.prefixlen == 0 for each in fitting) else None if fitting else False


def _rule(settings: Settings, chain: str, *words: str) -> str:
    """The last rule of a chain that has all these words in it."""
    rules = tables(settings)[FILTER].chains[chain].rules.splitlines()
    return f"{chain}: {next(rule.strip() for rule in reversed(rules) if all(word in rule for word in words))}"


def _refused_parts(view: View, name: Name) -> Iterator[str]:
    service = view.services.get(name)
    return map(str, service.rejections if service else ())


def _ports(service: Service) -> str:
    return _some(f"{protocol} {number}" for protocol, number in service.ports) or "no port"


def _some(items: Iterable[object]) -> str:
    shown = list(map(str, items))
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return ", ".join(shown[:_NAMED]) + more


def _waiting(view: View) -> Explanation:
    line = f"nothing is applied yet: {view.waiting}; until then what the kernel held before decides"
    return Explanation(Verdict.DEPENDS, Cause.WAITING, (line,))


def _with_remarks(settings: Settings, found: Explanation) -> Explanation:
    """What else bears on it, whatever it is about."""
    lines, also = list(found.lines), []
    if any(line.strip() and not line.lstrip().startswith("#") for line in settings.local_chain.splitlines()):
        also.append(Cause.LOCAL_CHAIN)
        lines.append("the local chain comes first and is not empty: a rule of yours may decide otherwise")
    if settings.enable_rateshape and settings.device is None:
        also.append(Cause.NIC_MISSING)
        nic = settings.public_nic or "(not known)"
        lines.append(f"the public NIC {nic} is not there: no limit is in force; once it is there, the rules go by its name")
    return replace(found, lines=tuple(lines), also=tuple(also))
