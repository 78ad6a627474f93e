"""What manifests would give, without a kernel and without a cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nftsync.config import Config
from nftsync.desired import Desired, Pinhole
from nftsync.inbox import Inbox
from nftsync.manifests import Manifests
from nftsync.nftresource import parse_nft
from nftsync.objects import ObjectRef, Reason, Rejection, parse_service
from nftsync.ruleset import Ruleset, Settings, ruleset


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be applied, and everything that would be refused."""

    settings: Settings
    pinholes: tuple[Pinhole, ...]
    rejections: tuple[Rejection, ...]

    @property
    def ruleset(self) -> Ruleset:
        return ruleset(self.pinholes, self.settings)


def preview(chosen: Config, paths: Sequence[Path], local_chain: str) -> Preview:
    """Compute a ruleset from files, as if the public NIC was there. Raises ManifestError if a path is not there.

    Without a usable Nft resource the strictest settings are shown: every interface but lo counts as public.
    """
    services = Inbox(parse_service, lambda: None, time.monotonic)
    resources = Inbox(parse_nft, lambda: None, time.monotonic)
    manifests = Manifests(paths, chosen.nft, services, resources)
    manifests.read()
    desired = Desired.of(services.objects(), chosen.filters)
    rejections = list(manifests.rejections)
    spec = None
    for nft in resources.objects():
        spec = nft.spec
        rejections.extend(nft.rejections)
    if not resources.objects():
        message = "there is no such resource: run would apply nothing; this is the strictest ruleset"
        rejections.append(Rejection(ObjectRef("Nft", str(chosen.nft)), Reason.MISSING_SETTINGS, message))
    rejections.extend(desired.rejections())
    settings = Settings.of(spec, public_nic=chosen.public_nic, attached=True, local_chain=local_chain)
    return Preview(settings, tuple(desired.pinholes.values()), tuple(rejections))
