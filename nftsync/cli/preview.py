"""What manifests would give, without a kernel and without a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nftsync.cluster.cache import Inbox
from nftsync.cluster.manifests import Manifests
from nftsync.cluster.metallb import MetalLB
from nftsync.config import Config, Enforcement
from nftsync.objects.address import Address, Network
from nftsync.objects.names import Name, ObjectRef, Reason, Rejection
from nftsync.objects.nft import parse_nft
from nftsync.objects.service import Service, parse_service
from nftsync.policy.guard import Guard
from nftsync.policy.pinholes import Desired, Pinhole
from nftsync.policy.pools import Pools
from nftsync.report.explain import View
from nftsync.ruleset.elements import ruleset
from nftsync.ruleset.localchain import LocalChainError, parse_local_chain
from nftsync.ruleset.tables import Ruleset, Settings


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be applied, and everything that would be refused.

    own: the router's addresses.  services: all of type LoadBalancer.  unread: rejections of files and of MetalLB's objects,
    which are among the others, too.
    """

    settings: Settings
    guard: Guard
    own: frozenset[Address]
    services: Mapping[Name, Service]
    desired: Desired
    unread: tuple[Rejection, ...]
    rejections: tuple[Rejection, ...]

    def view(self, chosen: Config) -> View:
        """To explain with: what the kernel and the routes say is not known."""
        return View(
            self.services, self.desired, self.guard, chosen.filters, chosen.boundary, self.settings, "", self.own,
            routed=lambda _: None, drops=lambda _: None, opened=self.desired.pinholes,
        )  # fmt: skip

    @property
    def pinholes(self) -> tuple[Pinhole, ...]:
        return tuple(self.desired.pinholes.values())

    @property
    def ruleset(self) -> Ruleset:
        return ruleset(self.pinholes, self.settings)


def preview(
    chosen: Config, paths: Sequence[Path], local_chain: str, own: Iterable[Address] = (), attached: Iterable[Network] = ()
) -> Preview:
    """Compute a ruleset from files, as if the public NIC was there. Raises ManifestError if a path is not there.

    Without a usable Nft resource the strictest settings are shown: every interface but lo counts as public. own, attached: the
    router's addresses and the networks they are in, which are not looked up here.
    """
    own = frozenset(own)
    services = Inbox(parse_service, _nobody, time.monotonic)
    resources = Inbox(parse_nft, _nobody, time.monotonic)
    metallb = MetalLB.empty(_nobody, time.monotonic)
    manifests = Manifests(paths, chosen.nft, services, resources, metallb)
    manifests.read()
    pools = Pools(None)
    if chosen.boundary.enforcement is not Enforcement.IGNORED:
        pools.look(metallb.objects(), 0.0)
    guard = Guard.of(chosen.boundary, pools.known, own, attached)
    desired = Desired.of(services.objects(), chosen.filters, guard, chosen.caps)
    unread = (*manifests.rejections, *pools.rejections)
    rejections = list(unread)
    spec = None
    for nft in resources.objects():
        spec = nft.spec
        rejections.extend(nft.rejections)
    if not resources.objects():
        message = "there is no such resource: run would apply nothing; this is the strictest ruleset"
        rejections.append(Rejection(ObjectRef("Nft", str(chosen.nft)), Reason.MISSING_SETTINGS, message))
    rejections.extend(desired.rejections())
    settings = Settings.of(
        spec,
        public_nic=chosen.public_nic,
        local_chain=local_chain,
        bgp_peers=chosen.bgp_peers,
        cluster=guard.cluster,
    )
    found = {service.name: service for service in services.objects()}
    return Preview(settings, guard, own, found, desired, unread, tuple(rejections))


def _nobody() -> None:
    """Waits for no change."""


def local_chain(chosen: Config) -> tuple[str, list[Rejection]]:
    """This router's; an unusable one is empty here, and refused."""
    try:
        return parse_local_chain(chosen.local_chain.read_text(encoding="utf-8")), []
    except FileNotFoundError:
        return "", []
    except (OSError, UnicodeDecodeError, LocalChainError) as fault:
        message = f"{fault.strerror if isinstance(fault, OSError) else fault}; the chain is empty"
        return "", [Rejection(ObjectRef("File", str(chosen.local_chain)), Reason.INVALID_LOCAL_CHAIN, message)]
