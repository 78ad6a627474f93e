"""Answers `nftsync explain`: the fate of a packet in nftsync's rules, and in the tables beside them."""

from collections.abc import Sequence
from dataclasses import replace

from nftsync.objects.names import Name
from nftsync.report.explain import explain_packet, explain_service
from nftsync.report.explanation import ExplainReason, Explanation, Verdict, View
from nftsync.report.others import THROUGH, TO_ROUTER
from nftsync.report.query import PacketQuery, parse_query


def explain(view: View, words: Sequence[str]) -> Explanation:
    """Answer a query; parse_query() reads it. Raises ValueError with a sentence."""
    query = parse_query(words)
    answer = explain_service(view, query) if isinstance(query, Name) else explain_packet(view, query)
    answer = _with_other_tables(view, query, answer)
    remembered = view.result.remembered.get("services")
    return replace(answer, lines=(*answer.lines, f"Services are {remembered}")) if remembered else answer


def _with_other_tables(view: View, query: PacketQuery | Name, answer: Explanation) -> Explanation:
    """Add the chains of other tables that can drop a packet which nftsync lets pass.

    If one drops by its policy, the packet's fate depends on rules that nftsync does not know.
    """
    if answer.verdict is Verdict.DROPPED:
        return answer
    if isinstance(query, Name):
        versions = {address.version for address in view.services[query].addresses} if query in view.services else ()
    else:
        versions = {query.destination.version}
    to_router = isinstance(query, PacketQuery) and query.destination in view.result.local.addresses
    settings = view.result.settings
    devices = settings.side.devices if settings else ()
    met = view.others().on(TO_ROUTER if to_router else THROUGH, versions, devices)
    lines = tuple(met.lines())
    also = (*answer.also, ExplainReason.OTHER_TABLES) if met.chains else answer.also
    if not met.drops_by_policy:
        return replace(answer, lines=(*answer.lines, *lines), also=also)
    reason = ExplainReason.OTHER_TABLES if answer.reason is ExplainReason.OPEN else answer.reason
    return replace(answer, verdict=Verdict.DEPENDS, reason=reason, lines=(*lines, *answer.lines), also=also)
