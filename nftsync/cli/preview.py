"""What nftsync would do, without a kernel: the ruleset of manifests, and the legal addresses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nftsync.cli.output import printable, table
from nftsync.cluster.api import Api, list_objects
from nftsync.cluster.backoff import ApiError
from nftsync.cluster.cache import Inputs, MetalLBCaches
from nftsync.cluster.kubeconfig import allowed
from nftsync.cluster.manifests import Manifests
from nftsync.cluster.watch import SMALL_PAGE
from nftsync.config import Config, PoolMode
from nftsync.daemon.control import ControlError, call
from nftsync.files.journal import Journal
from nftsync.files.localchainfile import read_local_chain
from nftsync.kernel.links import read_links
from nftsync.kernel.netlink import DumpError
from nftsync.objects.address import AddressSet, Local
from nftsync.objects.metallb import MetalLBConfig, Pool
from nftsync.objects.names import NFT, OF_POOLS, Malformed, ObjectRef, Reason, Rejection, metallb
from nftsync.objects.nft import METALLB_NAMESPACE, Nft, NftSpec, parse_nft, parse_spec
from nftsync.plan.memory import parse_pools
from nftsync.plan.plan import ChainInUse, settings_of
from nftsync.plan.result import Outcome, SyncResult, refused
from nftsync.plan.snapshot import Interfaces, Known, Origin, Snapshot
from nftsync.policy.guard import Guard, MetalLBObjects
from nftsync.policy.pinholes import PinholeIndex
from nftsync.policy.public import Link, public_side
from nftsync.report.explanation import View

_NO_CHAIN = ChainInUse("")
_STRICTEST = "there is no such resource: run would apply nothing; this is the strictest ruleset"


def preview(
    config: Config,
    inputs: Inputs,
    chain: ChainInUse = _NO_CHAIN,
    local: Local | None = None,
    links: Iterable[Link] | None = None,
) -> SyncResult:
    """The result of a first sync.

    Without a usable Nft resource, the settings are the strictest ones: every interface but lo
    counts as public.
    inputs: complete lists.  local: the router's addresses.  links: its interfaces; None to take the
    public ones as if they were there.
    """
    nft = next(iter(inputs.nfts.objects()), None)
    spec = nft.spec if nft else None
    if spec is not None:
        spec = replace(spec, nics=config.nics.over(spec.nics))
    ignored = config.address_policy.pool_mode is PoolMode.IGNORED
    objects = MetalLBObjects() if ignored else _metallb(inputs, spec).objects()
    pools, pool_rejections = objects.judge(None)
    snapshot = Snapshot(
        config,
        Origin.LISTED,
        Known(spec, Origin.LISTED if nft else Origin.UNKNOWN),
        Known(pools, Origin.LISTED),
        objects.speakers,
        Interfaces(None if links is None else public_side(links, spec.nics if spec else config.nics), local),
    )
    index = PinholeIndex(inputs.services.objects(), config.service_filter, snapshot.guard, config.caps)
    missing = () if nft else (Rejection(ObjectRef("Nft", str(config.nft)), Reason.MISSING_SETTINGS, _STRICTEST),)
    return SyncResult(
        Outcome.UNCHANGED,
        snapshot=snapshot,
        settings=settings_of(snapshot, {}, chain, index.pinholes.values()),
        pinholes=index.pinholes,
        index=index,
        nft=nft,
        rejections=(*inputs.rejections(), *missing, *refused(snapshot, nft, chain, pool_rejections, index)),
    )


def _metallb(inputs: Inputs, spec: NftSpec | None) -> MetalLBCaches:
    return inputs.metallb(spec.metallb_namespace, spec.metallb_configmap) if spec else inputs.metallb("", "")


def preview_here(config: Config, paths: Sequence[Path]) -> View:
    """The result of manifests on this router, with its own addresses, and all their Services."""
    from nftsync.kernel.interfaces import LinkError, local_now

    inputs, local, links = read(config, paths), None, None
    with suppress(LinkError, DumpError):
        local, links = local_now(), read_links()
    result = preview(config, inputs, local_chain(config), local, links)
    return View(result, {service.name: service for service in inputs.services.objects()})


def read(config: Config, paths: Sequence[Path]) -> Inputs:
    """The objects of files. Raises ManifestError if there is no file or folder at a path."""
    manifests = Manifests(paths, config.nft, Inputs.empty())
    manifests.read()
    return manifests.inputs


def local_chain(config: Config) -> ChainInUse:
    """This router's local chain. An invalid one is empty and becomes a rejection."""
    chain = read_local_chain(config.local_chain)
    return ChainInUse(chain.body or "", chain.error, "the chain is empty")


# --- the legal addresses -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AllowedAddresses:
    """The pools that count, each with its legal addresses only, and the rejected ones.

    pools: None if every address is legal.  no_pool: see Guard.
    """

    pool_mode: PoolMode
    pools: tuple[Pool, ...] | None
    rejections: tuple[Rejection, ...]
    no_pool: str = ""

    @classmethod
    def of(cls, config: Config, guard: Guard, rejections: tuple[Rejection, ...]) -> AllowedAddresses:
        legal = guard.legal
        if legal is None:
            return cls(config.address_policy.pool_mode, None, rejections, guard.no_pool)
        own = Pool("allowed_prefixes", "the local configuration", legal.ranges, advertised=False)
        # Ranges stay separate, so that their author recognises them.
        pools = tuple(
            replace(pool, ranges=tuple(part for whole in pool.ranges for part in (AddressSet((whole,)) & legal).ranges))
            for pool in ((own,) if guard.pools is None else guard.pools)
        )
        return cls(config.address_policy.pool_mode, pools, rejections, guard.no_pool)

    def json(self) -> str:
        pools = [
            {"name": pool.name, "source": pool.source, "ranges": list(map(str, pool.ranges))}
            for pool in self.pools or ()
        ]
        rejections = [
            {"object": str(rejection.object), "reason": rejection.reason, "message": rejection.message}
            for rejection in self.rejections
        ]
        return json.dumps({"pools": pools, "rejections": rejections}, indent=2)

    def text(self) -> str:
        if self.pools is None:
            return f'every address is legal: nftsync uses no pool (pools = "{self.pool_mode}")'
        if not self.pools:
            return f"no address is legal: {self.no_pool or 'there is no pool'}"
        none = "none (allowed_prefixes)"
        rows = [
            (printable(pool.name), pool.source, ", ".join(part.element for part in pool.ranges) or none)
            for pool in self.pools
        ]
        return "\n".join(table([("POOL", "SOURCE", "ADDRESSES"), *rows]))


def allowed_in_manifests(config: Config, paths: Sequence[Path]) -> AllowedAddresses:
    """The legal addresses of manifests. Raises ManifestError if there is nothing at a path."""
    inputs = read(config, paths)
    result = preview(config, inputs)
    of_pools = (rejection for rejection in result.rejections if rejection.reason in OF_POOLS)
    return AllowedAddresses.of(config, result.guard, (*inputs.rejections(), *of_pools))


def allowed_in_cluster(config: Config) -> AllowedAddresses:
    """The legal addresses of the cluster, from one look at the API.

    If the API server is away, the running daemon answers. Raises ApiError if none runs.
    Without a valid MetalLB configuration, the last one that this machine's daemon saw counts.
    """
    known, rejections = None, tuple[Rejection, ...]()
    try:
        with closing(Api(config.kubeconfig, allowed=allowed(unsafe=config.unsafe_kubeconfig))) as api:
            api.connect()
            if config.address_policy.pool_mode is not PoolMode.IGNORED:
                known, rejections = known_of_cluster(api, config, _spec(api, config))
    except ApiError as error:
        daemon = KnownOfDaemon.ask(config, error)
        message = f"{error}. The running daemon answers in its place"
        away = Rejection(ObjectRef("File", str(config.kubeconfig)), Reason.UNREADABLE, message)
        known, rejections = daemon.pools, (away, *daemon.rejections)
    return AllowedAddresses.of(config, Guard.of(config.address_policy, known), rejections)


@dataclass(frozen=True, slots=True)
class KnownOfDaemon:
    """What the running daemon knows of the cluster."""

    spec: NftSpec | None
    pools: MetalLBConfig | None
    rejections: tuple[Rejection, ...]

    @classmethod
    def ask(cls, config: Config, error: ApiError) -> KnownOfDaemon:
        """Raises `error` if no daemon answers."""
        try:
            answer = call(config.runtime, {"command": "cluster"})
            spec, pools = answer["spec"], answer["pools"]
            refused = ((each["object"].partition(" "), each) for each in answer["rejections"])
            return cls(
                None if spec is None else parse_spec(spec),
                None if pools is None else parse_pools(pools),
                tuple(
                    Rejection(ObjectRef(kind, name), Reason(each["reason"]), each["message"])
                    for (kind, _, name), each in refused
                ),
            )
        except (ControlError, ValueError, TypeError, KeyError):
            raise error from None


def nft_of_cluster(api: Api, config: Config) -> Nft | None:
    """The Nft resource that counts, None if there is none. Raises ApiError and Malformed."""
    found: list[object] = []
    list_objects(api, NFT.watched(config.nft.namespace, config.nft.name), found.append)
    return parse_nft(found[0], None) if found else None


def _spec(api: Api, config: Config) -> NftSpec | None:
    """The settings in the Nft resource, None if there are no usable ones."""
    try:
        nft = nft_of_cluster(api, config)
    except Malformed:
        nft = None
    return nft.spec if nft else None


def known_of_cluster(
    api: Api, config: Config, spec: NftSpec | None
) -> tuple[MetalLBConfig | None, tuple[Rejection, ...]]:
    """MetalLB's present configuration, and its rejections. Raises ApiError.

    Without a valid one, the last one that this machine's daemon saw.
    """
    namespace, config_map = (spec.metallb_namespace, spec.metallb_configmap) if spec else (METALLB_NAMESPACE, "")
    caches, unread = MetalLBCaches.empty(config_map=config_map), []
    for resource, cache in zip(metallb(namespace, config_map), caches.caches, strict=True):
        kind = ObjectRef(resource.kind, namespace)
        try:
            with cache.relist() as relist:
                list_objects(api, resource, relist.put, page=SMALL_PAGE)  # ConfigMaps can be large
        except ApiError as error:
            if error.status == 403:
                unread.append(Rejection(kind, Reason.UNREADABLE, str(error)))
            elif error.status != 404:
                raise
        except Malformed as error:
            unread.append(Rejection(kind, Reason.MALFORMED, str(error)))
    seen = Journal(config.state).load().facts.pools
    present, rejections = caches.objects().judge(seen)
    return present or seen, (*unread, *rejections)
