"""Explain a packet or a Service for `nftsync explain`: does it pass, and why?

The packet comes from the public NIC and begins a connection. This module follows it through
the rules (docs/ruleset.md). It mentions the operator's local chain but does not evaluate it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from nftsync.objects.address import Network
from nftsync.objects.names import Name, Reason, quote, some
from nftsync.objects.ratelimit import RateLimit
from nftsync.objects.service import Port, Protocol, Service
from nftsync.plan.result import SyncResult
from nftsync.policy.pinholes import Pinhole
from nftsync.report.explanation import ExplainReason, Explanation, Verdict, View
from nftsync.report.query import PacketQuery
from nftsync.report.remarks import with_remarks
from nftsync.ruleset.inet import BFD
from nftsync.ruleset.model import INET, INPUT, OPERATOR_CR, OPERATOR_SVC
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import tables

# The refused part of a Service is closed.
_CLOSING = {Reason.MALFORMED, Reason.INVALID_ADDRESS, Reason.INVALID_PORT, Reason.INVALID_PROTOCOL}
_NAMED = 5  # the most items that a sentence names
_DETAILED = 200  # explain this many of a Service's pairs of address and port, and a few closed ones


def explain_packet(view: View, query: PacketQuery) -> Explanation:
    """The fate of a packet, the rule and the Service that decide, and the reason."""
    settings = view.result.settings
    if settings is None:
        return _waiting(view.result)
    to_router = query.destination in view.result.local.addresses
    answer = _to_router(settings, query) if to_router else _through_router(view, settings, query)
    return with_remarks(view, settings, answer, query)


def explain_service(view: View, name: Name) -> Explanation:
    """The state of each address and port of a Service.

    The Service passes if all of them are open to everybody, or to its source ranges.
    """
    service, settings = view.services.get(name), view.result.settings
    if settings is None:
        return _waiting(view.result)
    if service is None:
        line = f"there is no Service {name} of type LoadBalancer, and no other opens anything"
        return Explanation(Verdict.DROPPED, ExplainReason.NOT_A_SERVICE, (line, *view.refused(name)))
    pairs = [PacketQuery(None, address, *port) for address in service.addresses for port in service.ports]
    if not pairs:
        reason, line = _why_closed(view, service, None)
        lines = (f"Service {name} opens nothing: {line}",)
        return with_remarks(view, settings, Explanation(Verdict.DROPPED, reason, lines, name))
    closed = [query for query in pairs[_DETAILED:] if not _opens(view, settings, query, service)]
    detailed = [*pairs[:_DETAILED], *closed[:_NAMED]]  # also name closed pairs after many open ones
    parts = [_through_router(view, settings, query, service) for query in detailed]
    dropped = [part.reason for part in parts if part.verdict is Verdict.DROPPED]
    opened = len(pairs) - len(dropped) - len(closed[_NAMED:])
    verdict = Verdict.LIMITED if service.limit and settings.devices else Verdict.PASSES
    if opened < len(pairs) or any(rejection.reason in _CLOSING for rejection in service.rejections):
        verdict = Verdict.DEPENDS if opened else Verdict.DROPPED
    invalid = [ExplainReason.INVALID for _ in service.rejections]
    others = [part.reason for part in parts if part.reason is not ExplainReason.OPEN]
    reason = [*dropped, *invalid, *others, ExplainReason.OPEN][0]
    more = len(pairs) - len(detailed)
    lines = (
        f"Service {name}: {opened} of {len(pairs)} pairs of address and port are open",
        *("; ".join(part.lines) for part in parts),
        *([f"… and {more} more pairs"] if more else ()),
    )
    return with_remarks(view, settings, Explanation(verdict, reason, lines, name))


def _opens(view: View, settings: Settings, query: PacketQuery, service: Service) -> bool:
    """True if the Service has this pinhole and packets can pass: _through_router() in short."""
    hole = view.result.pinholes.get(query.key)
    own = hole is not None and hole.service == service.name and hole.sources != ()
    return (own or not settings.enable_dropall) and view.routed(query.destination) is not False


def _to_router(settings: Settings, query: PacketQuery) -> Explanation:
    """Follow operator-cr, then the last rule of input."""
    bfd = settings.enable_bgp and bool(settings.bgp_peers)
    switches = {
        Port(Protocol.TCP, 22): ("enable_ssh", settings.enable_ssh, None),
        Port(Protocol.TCP, 179): ("enable_bgp", settings.enable_bgp, settings.bgp_peers or None),
        **{
            Port(Protocol.UDP, port): (f"enable_bgp (BFD, TTL {ttl})", bfd, settings.bgp_peers)
            for port, ttl in BFD.items()
        },
    }
    switch, is_open, peers = switches.get(Port(query.protocol, query.port), ("", False, None))
    ranges = peers if is_open else ()
    fate = f"{switch} opens {query} to {_whom(ranges)}" if is_open else f"{query} is not open there"
    lines = (f"{query.destination} is the router's own address; {fate}",)
    answer = Explanation(_verdict(settings, ranges, query), ExplainReason.ROUTER_PORT, lines)
    if answer.verdict is Verdict.DROPPED:
        return _not_accepted(settings, INPUT, query, answer)
    source = "ip saddr " if query.destination.version == 4 else "ip6 saddr "
    words = (f"{query.protocol} dport ", f" {query.port} ", source if peers else "")
    return replace(answer, rule=_rule(settings, OPERATOR_CR, *words))


def _through_router(view: View, settings: Settings, query: PacketQuery, asker: Service | None = None) -> Explanation:
    """Follow operator-svc, then the last rule of forward. asker: explain this Service; None for any."""
    hole = view.result.pinholes.get(query.key)
    if hole is None or (asker is not None and asker.name != hole.service):
        answer = _without_pinhole(view, query, [asker] if asker else view.services.values())
    else:
        service = view.services.get(hole.service)
        verdict = _verdict(settings, hole.sources, query)
        refused = ExplainReason.INVALID if service and service.sources == () else ExplainReason.REFUSED_SOURCE
        answer = Explanation(
            verdict,
            refused if verdict is Verdict.DROPPED else ExplainReason.OPEN,
            (f"Service {hole.service} opens {query} to {_whom(hole.sources)}",),
            hole.service,
            _rule(settings, OPERATOR_SVC, f" @{'services' if hole.sources is None else 'sources'}{hole.version} "),
        )
    if answer.verdict is Verdict.DROPPED:
        is_closed = query.key in view.result.closed or (hole is not None and hole.sources is not None)
        answer = _not_accepted(settings, OPERATOR_SVC, query, answer, is_closed=is_closed)
    if answer.verdict is not Verdict.DROPPED and view.routed(query.destination) is False:
        line = f"the router has no route to {query.destination}, or only one back through the public NIC"
        return Explanation(Verdict.DROPPED, ExplainReason.NO_ROUTE, (line, *answer.lines), answer.service)
    return _limited(view, settings, hole, answer)


def _without_pinhole(view: View, query: PacketQuery, services: Iterable[Service]) -> Explanation:
    """Explain why no pinhole matches. services: candidates; admitted ones come first in the answer."""
    holders = [service for service in services if query.destination in service.addresses]
    holders.sort(key=lambda service: (not view.result.config.service_filter.admit(service), service.name))
    asking = [service for service in holders if Port(query.protocol, query.port) in service.ports]
    if not holders:
        refusal = view.result.guard.refusal(query.destination) or ()
        lines: tuple[str, ...] = (f"no Service has the address {query.destination}", *refusal[1:])
        return Explanation(Verdict.DROPPED, ExplainReason.NO_SUCH_ADDRESS, lines)
    if not asking:
        first = holders[0]
        others = some((f"Service {service.name} for {_ports(service)}" for service in holders), _NAMED)
        reason = ExplainReason.INVALID if first.rejections and not first.ports else ExplainReason.NO_SUCH_PORT
        line = f"no Service asks for {query}; at this address asks {others}"
        return Explanation(Verdict.DROPPED, reason, (line,), first.name)
    closed = [(service.name, *_why_closed(view, service, query)) for service in asking]
    lines = tuple(f"Service {name} asks for {query}, but {line}" for name, _, line in closed)
    return Explanation(Verdict.DROPPED, closed[0][1], lines, closed[0][0])


def _ports(service: Service) -> str:
    return some((f"{protocol} {number}" for protocol, number in service.ports), _NAMED) or "no port"


def _not_accepted(
    settings: Settings, chain: str, query: PacketQuery, answer: Explanation, *, is_closed: bool = False
) -> Explanation:
    """Explain a packet that no rule accepts: the last rules of operator-svc or of the chain decide.

    is_closed: whether the destination is a closed endpoint.
    """
    if not settings.enable_dropall:
        lines = ("everything passes: enable_dropall is false", *answer.lines)
        answer = replace(answer, verdict=Verdict.PASSES, reason=ExplainReason.EVERYTHING_PASSES, lines=lines)
    elif is_closed:
        return replace(answer, rule=_rule(settings, OPERATOR_SVC, f" @closed{query.destination.version} "))
    elif chain == OPERATOR_SVC and query.destination in settings.cluster:
        return replace(answer, rule=_rule(settings, OPERATOR_SVC, f" @pools{query.destination.version} "))
    return replace(answer, rule=_rule(settings, chain))


def _limited(view: View, settings: Settings, hole: Pinhole | None, answer: Explanation) -> Explanation:
    """Add the rate limits. The ingress hook comes first, but a later drop makes it irrelevant."""
    if answer.verdict is Verdict.DROPPED or hole is None or hole.sources == ():
        return answer
    lines, why_not = list[str](), "" if settings.enable_rateshape else "enable_rateshape is false"
    if hole.limit is not None:
        refused = "the kernel refuses the rate limits" if settings.limits_refused else ""
        no_device = "" if settings.devices else why_not or refused or "the public NIC is not there"
        lines.append(_limit("limit", hole.limit, no_device, view.drops(hole.key)))
        if not no_device and answer.verdict is Verdict.PASSES:
            answer = replace(answer, verdict=Verdict.LIMITED)
        if no_device and not (why_not or refused) and answer.reason is ExplainReason.OPEN:
            answer = replace(answer, reason=ExplainReason.NIC_MISSING)
    if hole.limit_egress is not None:
        no_way_out = why_not or ("every interface counts as public" if settings.side.names is None else "")
        lines.append(_limit("limit for what it sends", hole.limit_egress, no_way_out, view.drops_egress(hole.key)))
    return replace(answer, lines=(answer.lines[0], *lines, *answer.lines[1:]))


def _limit(what: str, limit: RateLimit, why_not: str, drops: int | None) -> str:
    if why_not:
        return f"its {what}, {limit}, is not in force: {why_not}"
    return f"its {what} is {limit}" + ("" if drops is None else f"; packets dropped over it: {drops}")


def _why_closed(view: View, service: Service, query: PacketQuery | None) -> tuple[ExplainReason, str]:
    """The first reason why a Service lacks a pinhole. query: None if it asks for none at all."""
    index, filters = view.result.index, view.result.config.service_filter
    in_namespaces = replace(filters, load_balancer_classes=frozenset()).admit(service)
    classes = some(map(quote, sorted(filters.load_balancer_classes)), _NAMED)
    checks: list[tuple[object, str, str]] = [
        (
            not in_namespaces,
            ExplainReason.FILTERED_NAMESPACE,
            f"namespaces and exclude_namespaces leave {service.name.namespace} out",
        ),
        (
            not filters.admit(service),
            ExplainReason.OTHER_CLASS,
            f"its class {quote(service.load_balancer_class)} is not in load_balancer_classes ({classes})",
        ),
    ]
    if query is None:
        refused = any(rejection.reason in _CLOSING for rejection in service.rejections)
        other = service.load_balancer_class if not filters.load_balancer_classes else None
        checks += [
            (refused, ExplainReason.INVALID, "its refused parts leave no address and port"),
            (
                other,
                ExplainReason.OTHER_CLASS,
                f"it has no address, and only the load balancer of its class {quote(other)} may give it one: "
                "MetalLB serves the one class in its option --lb-class, or else only Services without a class",
            ),
            (True, ExplainReason.NO_ADDRESS_YET, "MetalLB has not given it an address yet"),
        ]
    else:
        refusal, why = view.result.guard.refusal(query.destination) or index.held_back(service.name) or ("", "")
        advertised_only = view.result.config.address_policy.advertised_only and not view.result.guard.no_pool
        if refusal == Reason.OUTSIDE_POOLS and advertised_only:
            why += "; only pools announced over BGP count (advertised_pools_only)"
        owner = index.pinholes[query.key].service if query.key in index.pinholes else service.name
        checks += [
            (refusal, refusal, why),
            (
                owner != service.name,
                ExplainReason.LOST_TO_OLDER,
                f"the older Service {owner} has it. Service {service.name} gets it when {owner} is deleted",
            ),
            (True, ExplainReason.WAITING, "it is not applied yet; the next sync applies it"),
        ]
    return next((ExplainReason(reason), line) for applies, reason, line in checks if applies)


def _verdict(settings: Settings, ranges: Sequence[Network] | None, query: PacketQuery) -> Verdict:
    """The verdict of a rule for these ranges, None for all. DEPENDS if an unknown source matters."""
    family = [network for network in ranges or () if network.version == query.destination.version]
    if ranges is None or any(query.source in network if query.source else network.prefixlen == 0 for network in family):
        return Verdict.PASSES
    return Verdict.DEPENDS if family and query.source is None and settings.enable_dropall else Verdict.DROPPED


def _whom(ranges: Sequence[Network] | None) -> str:
    if ranges is None:
        return "everybody"
    return f"{some(ranges, _NAMED)} alone" if ranges else "nobody: no valid range is of this family"


def _rule(settings: Settings, chain: str, *words: str) -> str:
    """The last rule of a chain that contains these words, as in nft's input."""
    rules = tables(settings)[INET].chains[chain].rules.splitlines()
    return f"{chain}: {next(rule.strip() for rule in reversed(rules) if all(word in rule for word in words))}"


def _waiting(result: SyncResult) -> Explanation:
    if not result.filters:
        return Explanation(Verdict.PASSES, ExplainReason.WAITING, (f"everything passes: {result.message}",))
    line = f"nothing is applied yet: {result.message}; until then the previous rules of the kernel decide"
    return Explanation(Verdict.DEPENDS, ExplainReason.WAITING, (line,))
