"""What `explain` needs, of Services and settings that no kernel has seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from nftsync.config import Boundary, Config, Filters
from nftsync.objects.address import Local
from nftsync.objects.metallb import Configuration
from nftsync.objects.names import Name
from nftsync.objects.service import Service
from nftsync.plan.result import Outcome, SyncResult
from nftsync.plan.snapshot import Interfaces, Known, Origin, Snapshot
from nftsync.policy.pinholes import Desired
from nftsync.ruleset.tables import Settings

REFUSED_NOTHING: Mapping[Name, str] = MappingProxyType({})


def result_of(  # noqa: PLR0913  # all that decides
    services: Iterable[Service],
    settings: Settings | None,
    *,
    filters: Filters | None = None,
    boundary: Boundary | None = None,
    pools: Configuration | None = None,
    local: Local | None = None,
    quarantined: Mapping[Name, str] = REFUSED_NOTHING,
) -> SyncResult:
    """That of a sync which has applied all this. pools: MetalLB's.  quarantined: why the kernel refuses some of the Services."""
    config = Config(filters=filters or Filters(), boundary=boundary or Boundary())
    listed, interfaces = Origin.LISTED, Interfaces(local=local or Local())
    snapshot = Snapshot(config, listed, Known(None, listed), Known(pools, listed), interfaces=interfaces)
    index = Desired.of(services, config.filters, snapshot.guard, quarantined=quarantined)
    return SyncResult(Outcome.APPLIED, snapshot=snapshot, settings=settings, pinholes=index.pinholes, index=index)
