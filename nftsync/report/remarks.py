"""Remarks beside the answer of `nftsync explain`: facts that can change the fate of a packet."""

from collections.abc import Iterable
from dataclasses import replace

from nftsync.objects.service import Service
from nftsync.report.explanation import ExplainReason, Explanation, Verdict, View
from nftsync.report.query import PacketQuery
from nftsync.ruleset.established import accepting_rule
from nftsync.ruleset.settings import Settings


def with_remarks(view: View, settings: Settings, answer: Explanation, query: PacketQuery | None = None) -> Explanation:
    """Add the Service's rejections and remarks that matter for every answer. query: None for a whole Service."""
    service = view.services.get(answer.service) if answer.service else None
    own_rules = any(line.strip() and not line.lstrip().startswith("#") for line in settings.local_chain.splitlines())
    remarks = (
        (
            own_rules,
            ExplainReason.LOCAL_CHAIN,
            "the local chain comes first and is not empty: your own rule may decide differently",
        ),
        (
            settings.side.absence,
            ExplainReason.NIC_MISSING,
            settings.side.absence,
        ),
        (
            accepted := _accepted_by_local_chain(settings, answer, query),
            ExplainReason.LOCAL_CHAIN,
            accepted,
        ),
        *_tracking(view, settings, service if answer.verdict is not Verdict.DROPPED else None),
    )
    also = [(reason, line) for applies, reason, line in remarks if applies]
    refused = (*map(str, service.rejections), *view.refused(service.name)) if service else ()
    lines = (*answer.lines, *refused, *(line for _, line in also))
    return replace(answer, lines=lines, also=tuple(dict.fromkeys(reason for reason, _ in also)))


def _accepted_by_local_chain(settings: Settings, answer: Explanation, query: PacketQuery | None) -> str:
    """A sentence about the local chain if it accepts packets that are dropped here; "" if it does not."""
    if answer.verdict is not Verdict.DROPPED:
        return ""
    rule = accepting_rule(settings.local_chain, settings.side.names, query.port if query else None)
    return f"line {rule.line} of the local chain accepts packets of an existing connection: {rule.text}" if rule else ""


def _tracking(view: View, settings: Settings, service: Service | None) -> Iterable[tuple[object, ExplainReason, str]]:
    """The remarks about later packets of a connection to an open Service. None: it is not open."""
    if service is None:
        return
    if settings.is_stateless and all(address in settings.cluster for address in service.addresses):
        line = "stateless: its packets are not tracked, so its answers pass at every router"
        yield True, ExplainReason.STATELESS, line
        return
    invalid = view.invalid()
    line = "answers of a connection that began at another router are dropped as invalid"
    line = f"{line} ({invalid} packets so far); for routers in pairs set stateless = true"
    yield invalid is not None, ExplainReason.TRACKED, line
    line = f"stateless is not in force while {settings.side} counts as public"
    yield settings.stateless and not settings.is_stateless, ExplainReason.STATELESS, line
