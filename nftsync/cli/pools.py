"""`nftsync pools`: the legal addresses, and the object behind each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nftsync.cli.preview import preview, read
from nftsync.cluster.api import Api, list_objects
from nftsync.cluster.backoff import ApiError
from nftsync.cluster.cache import MetalLBCaches
from nftsync.cluster.kubeconfig import allowed
from nftsync.config import Config, PoolMode
from nftsync.files.journal import Journal
from nftsync.objects.address import AddressSet, Range
from nftsync.objects.metallb import MetalLBConfig, Pool
from nftsync.objects.names import NFT, Malformed, ObjectRef, Reason, Rejection, metallb
from nftsync.objects.nft import METALLB_NAMESPACE, Nft, parse_nft
from nftsync.policy.guard import Guard


@dataclass(frozen=True, slots=True)
class Legal:
    """The pools that count, each with its legal addresses only, and the rejected ones.

    guarded: False if every address is legal.
    """

    pool_mode: PoolMode
    guarded: bool
    pools: tuple[Pool, ...]
    rejections: tuple[Rejection, ...]

    def json(self) -> str:
        pools = [{"name": pool.name, "source": pool.source, "ranges": list(map(str, pool.ranges))} for pool in self.pools]
        rejections = [
            {"object": str(each.object), "reason": each.reason, "message": each.message} for each in self.rejections
        ]
        return json.dumps({"pools": pools, "rejections": rejections}, indent=2)

    def text(self) -> str:
        if not self.guarded:
            return f'every address is legal: nftsync uses no pool (pools = "{self.pool_mode}")'
        if not self.pools:
            return "no address is legal: there is no pool"
        rows = [("POOL", "SOURCE", "ADDRESSES"), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{name:{widths[0]}}  {source:{widths[1]}}  {ranges}" for name, source, ranges in rows)

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        for pool in self.pools:
            yield ascii(pool.name)[1:-1], pool.source, ", ".join(each.element for each in pool.ranges) or "none (allowed_prefixes)"


def allowed_in_manifests(chosen: Config, paths: Sequence[Path]) -> Legal:
    """The legal addresses of manifests.

    Raises ManifestError if there is no file or folder at a path.
    """
    inputs = read(chosen, paths)
    shown = preview(chosen, inputs)
    of_pools = (each for each in shown.rejections if each.reason is Reason.INVALID_POOLS)
    return _legal(chosen, shown.guard, (*inputs.rejections(), *of_pools))


def allowed_in_cluster(chosen: Config) -> Legal:
    """The legal addresses of the cluster, from one look at the API. Raises ApiError.

    Without a valid MetalLB configuration, the last one that this machine's daemon saw counts.
    """
    api = Api(chosen.kubeconfig, allowed=allowed(unsafe=chosen.unsafe_kubeconfig))
    try:
        api.connect()
        if chosen.address_policy.pool_mode is PoolMode.IGNORED:
            return _legal(chosen, Guard.of(chosen.address_policy, None), ())
        known, rejections = known_of_cluster(api, chosen, _namespace(api, chosen))
        return _legal(chosen, Guard.of(chosen.address_policy, known), rejections)
    finally:
        api.close()


def _legal(chosen: Config, guard: Guard, rejections: tuple[Rejection, ...]) -> Legal:
    legal = guard.legal or AddressSet()
    if not guard.guarded and guard.legal is not None:
        allowed = Pool("allowed_prefixes", "the local configuration", legal.ranges, advertised=False)
        return Legal(chosen.address_policy.pool_mode, True, (allowed,), rejections)
    pools = tuple(replace(pool, ranges=_cut(pool.ranges, legal)) for pool in guard.pools or ())
    return Legal(chosen.address_policy.pool_mode, guard.guarded, pools, rejections)


def _cut(ranges: tuple[Range, ...], legal: AddressSet) -> tuple[Range, ...]:
    """The legal part of each range. Ranges stay separate, so that their author recognises them."""
    return tuple(part for each in ranges for part in (AddressSet((each,)) & legal).ranges)


def nft_of_cluster(api: Api, chosen: Config) -> Nft | None:
    """The Nft resource that counts, None if there is none. Raises ApiError and Malformed."""
    found: list[object] = []
    list_objects(api, NFT.watched(chosen.nft.namespace, chosen.nft.name), found.append)
    return parse_nft(found[0], None) if found else None


def _namespace(api: Api, chosen: Config) -> str:
    """The namespace that the Nft resource names."""
    with suppress(Malformed):
        nft = nft_of_cluster(api, chosen)
        if nft is not None and nft.spec is not None:
            return nft.spec.metallb_namespace
    return METALLB_NAMESPACE


def known_of_cluster(api: Api, chosen: Config, namespace: str) -> tuple[MetalLBConfig | None, tuple[Rejection, ...]]:
    """MetalLB's present configuration, and its rejections. Raises ApiError.

    Without a valid one, the last one that this machine's daemon saw.
    """
    found, unread = _read_metallb(api, namespace)
    seen = Journal(chosen.state).load().facts.pools
    present, rejections = found.objects().judge(seen)
    return present or seen, (*unread, *rejections)


def _read_metallb(api: Api, namespace: str) -> tuple[MetalLBCaches, tuple[Rejection, ...]]:
    """MetalLB's present objects, and a rejection for each unreadable kind. Raises ApiError."""
    found, rejections = MetalLBCaches.empty(), []
    for resource, cache in zip(metallb(namespace), found.caches, strict=True):
        try:
            with cache.relist() as relist:
                list_objects(api, resource, relist.put)
        except ApiError as fault:
            if fault.status not in (403, 404):
                raise
            cache.unreadable()
            if fault.status == 403:
                rejections.append(Rejection(ObjectRef(resource.kind, namespace), Reason.UNREADABLE, str(fault)))
        except Malformed as fault:
            cache.unreadable()
            rejections.append(Rejection(ObjectRef(resource.kind, namespace), Reason.MALFORMED, str(fault)))
    return found, tuple(rejections)
