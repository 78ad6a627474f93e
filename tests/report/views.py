"""The results of syncs that no kernel has seen, and what is told of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from nftsync.config import AddressPolicy, Config, Filters
from nftsync.objects.address import Local, parse_range
from nftsync.objects.metallb import MetalLBConfig, Pool
from nftsync.objects.names import Name, ObjectRef, Reason, Rejection
from nftsync.objects.nft import Condition
from nftsync.objects.service import Service
from nftsync.plan.result import Outcome, SyncResult
from nftsync.plan.snapshot import Interfaces, Known, Origin, Snapshot
from nftsync.policy.confirm import Confirming
from nftsync.policy.pinholes import PinholeIndex
from nftsync.report.conditions import conditions
from nftsync.ruleset.settings import Settings
from tests.support import absent, side

REFUSED_NOTHING: Mapping[Name, str] = MappingProxyType({})


def result_of(  # noqa: PLR0913  # all that decides
    services: Iterable[Service],
    settings: Settings | None,
    *,
    filters: Filters | None = None,
    address_policy: AddressPolicy | None = None,
    pools: MetalLBConfig | None = None,
    local: Local | None = None,
    quarantined: Mapping[Name, str] = REFUSED_NOTHING,
) -> SyncResult:
    """The result of a sync that has applied all this.

    pools: MetalLB's.  quarantined: why the kernel refuses some of the Services.
    """
    config = Config(service_filter=filters or Filters(), address_policy=address_policy or AddressPolicy())
    listed, interfaces = Origin.LISTED, Interfaces(local=local or Local())
    snapshot = Snapshot(config, listed, Known(None, listed), Known(pools, listed), interfaces=interfaces)
    index = PinholeIndex(services, config.service_filter, snapshot.guard, quarantined=quarantined)
    return SyncResult(Outcome.APPLIED, snapshot=snapshot, settings=settings, pinholes=index.pinholes, index=index)


ONE_POOL = MetalLBConfig((Pool("public", "IPAddressPool metallb-system/public", (parse_range("192.0.2.0/24"),), True),))
SETTINGS = Settings(side("enp9s0"), enable_rateshape=True)
NOTHING_OLD: Mapping[str, str] = MappingProxyType({})


def standing(  # noqa: PLR0913  # each is a condition
    not_ready: str = "",
    *,
    pools: MetalLBConfig | None = ONE_POOL,
    nic_missing: bool = False,
    local_chain: str = "",
    stale: Mapping[str, str] = NOTHING_OLD,
    confirming: Confirming | None = None,
) -> tuple[Condition, ...]:
    """A router's conditions: all is in order but what is named."""
    result = result_of([], replace(SETTINGS, side=(absent if nic_missing else side)("enp9s0")), pools=pools)
    refused = (Rejection(ObjectRef("File", "/x"), Reason.INVALID_LOCAL_CHAIN, local_chain),) if local_chain else ()
    outcome = Outcome.FAILED if not_ready else Outcome.UNCHANGED
    told = replace(
        result, outcome=outcome, message=not_ready, rejections=refused, confirming=confirming or Confirming()
    )
    return conditions(told, stale)
