"""All present rejections but those of unreadable files: settings, local chain, pools, Services."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nftsync.config import PoolMode
from nftsync.objects.names import ObjectRef, Reason, Rejection
from nftsync.objects.nft import Nft
from nftsync.plan.plan import ChainInUse
from nftsync.plan.snapshot import Origin, Snapshot
from nftsync.policy.pinholes import Desired


def refused(
    s: Snapshot, nft: Nft | None, chain: ChainInUse, pools: Iterable[Rejection], index: Desired
) -> Iterator[Rejection]:
    """nft: the last seen version of the resource.  pools: the rejections of MetalLB's objects."""
    config = s.config
    if nft is not None:
        yield from nft.rejections
    elif s.spec.listed:
        stays = "the last good settings stay" if s.spec.value else "nftsync applies nothing until you create one"
        yield Rejection(ObjectRef("Nft", str(config.nft)), Reason.MISSING_SETTINGS, f"there is no such resource; {stays}")
    if chain.error:
        yield Rejection(ObjectRef("File", str(config.local_chain)), Reason.INVALID_LOCAL_CHAIN, f"{chain.error}; {chain.instead}")
    if config.address_policy.pool_mode is not PoolMode.IGNORED:
        yield from pools
    for rejection in index.rejections():
        # While the pools are unknown, nobody knows whether an address is outside of them.
        if s.pools.origin is not Origin.UNKNOWN or rejection.reason is not Reason.OUTSIDE_POOLS:
            yield rejection
