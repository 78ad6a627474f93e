"""The ruleset of manifests, without a kernel and without a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nftsync.cluster.cache import Inputs
from nftsync.cluster.manifests import Manifests
from nftsync.config import Config, PoolMode
from nftsync.files.localchainfile import read_local_chain
from nftsync.objects.address import Local
from nftsync.objects.names import ObjectRef, Reason, Rejection
from nftsync.plan.plan import ChainInUse, settings_of
from nftsync.plan.result import Outcome, SyncResult, refused
from nftsync.plan.snapshot import Interfaces, Known, Origin, Snapshot
from nftsync.policy.guard import MetalLBObjects
from nftsync.policy.pinholes import PinholeIndex
from nftsync.report.explain import View

_NO_CHAIN = ChainInUse("")
_STRICTEST = "there is no such resource: run would apply nothing; this is the strictest ruleset"


def preview(config: Config, inputs: Inputs, chain: ChainInUse = _NO_CHAIN, local: Local | None = None) -> SyncResult:
    """The result of a first sync, as if this machine had the public NIC.

    Without a usable Nft resource, the settings are the strictest ones: every interface but lo
    counts as public.
    inputs: complete lists.
    local: the router's addresses; this function does not look them up.
    """
    nft = next(iter(inputs.nfts.objects()), None)
    spec = nft.spec if nft else None
    if spec is not None:
        spec = replace(spec, public_nic=config.public_nic or spec.public_nic)
    ignored = config.address_policy.pool_mode is PoolMode.IGNORED
    metallb = MetalLBObjects() if ignored else inputs.metallb("").objects()
    pools, pool_rejections = metallb.judge(None)
    snapshot = Snapshot(
        config,
        Origin.LISTED,
        Known(spec, Origin.LISTED if nft else Origin.UNKNOWN),
        Known(pools, Origin.LISTED),
        metallb.speakers,
        Interfaces(local=local),
    )
    index = PinholeIndex(inputs.services.objects(), config.filters, snapshot.guard, config.caps)
    missing = () if nft else (Rejection(ObjectRef("Nft", str(config.nft)), Reason.MISSING_SETTINGS, _STRICTEST),)
    return SyncResult(
        Outcome.UNCHANGED,
        snapshot=snapshot,
        settings=settings_of(snapshot, {}, chain),
        pinholes=index.pinholes,
        index=index,
        nft=nft,
        rejections=(*inputs.rejections(), *missing, *refused(snapshot, nft, chain, pool_rejections, index)),
    )


def preview_here(config: Config, paths: Sequence[Path]) -> View:
    """The result of manifests on this router, with its own addresses, and all their Services."""
    from nftsync.kernel.interfaces import LinkError, local_now

    inputs = read(config, paths)
    try:
        local = local_now()
    except LinkError:
        local = None
    result = preview(config, inputs, local_chain(config), local)
    return View(result, {service.name: service for service in inputs.services.objects()})


def read(config: Config, paths: Sequence[Path]) -> Inputs:
    """The objects of files. Raises ManifestError if there is no file or folder at a path."""
    manifests = Manifests(paths, config.nft, Inputs.empty())
    manifests.read()
    return manifests.inputs


def local_chain(config: Config) -> ChainInUse:
    """This router's local chain. An invalid one is empty and becomes a rejection."""
    body, error = read_local_chain(config.local_chain)
    return ChainInUse(body or "", error, "the chain is empty")
