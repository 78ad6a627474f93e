"""The limits of a NIC that also carries VLANs count the frames that come in at the NIC itself, and no others."""

from __future__ import annotations

import pytest

from nftsync.config import Filters
from nftsync.objects.nft import parse_nft
from nftsync.objects.service import parse_service
from nftsync.policy.pinholes import PinholeIndex
from nftsync.policy.public import PublicSide
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from tests.lab.lab import Frame, Lab, Probe
from tests.labtools import SERVICE4, SERVICE6, Firewall, needs_root, nft, service

pytestmark = needs_root

LIMITED = service("limited", SERVICE4, SERVICE6, ports=[("UDP", 53)], limit="1/week burst 3 packets")


@pytest.fixture
def trunk(lab: Lab, firewall: Firewall) -> Lab:
    """A lab whose public NIC counts as one with VLANs, whether this kernel knows VLANs or not."""
    parsed = parse_service(LIMITED, None)
    assert parsed
    side = PublicSide(frozenset({"public0"}), devices=("public0",), trunks=frozenset({"public0"}))
    settings = Settings.of(parse_nft(nft(), None).spec, side, local_chain="")
    firewall.change(ruleset(PinholeIndex([parsed], Filters()).pinholes.values(), settings))
    return lab


@pytest.mark.parametrize("tags", [(), (0,)], ids=["untagged", "a priority alone"])
@pytest.mark.parametrize("address", [SERVICE4, SERVICE6])
def test_a_frame_of_no_vlan_counts(trunk: Lab, address: str, tags: tuple[int, ...]) -> None:
    frames = [Frame(Probe("udp", address, 53), tags=tags)] * 9
    assert len(trunk.deliver_frames(trunk.public, frames)) == 3


@pytest.mark.parametrize("tags", [(100,), (0, 100), (100, 200)])
@pytest.mark.parametrize("address", [SERVICE4, SERVICE6])
def test_a_frame_of_a_vlan_does_not_count(trunk: Lab, address: str, tags: tuple[int, ...]) -> None:
    trunk.deliver_frames(trunk.public, [Frame(Probe("udp", address, 53), tags=tags)] * 9)
    assert len(trunk.deliver_frames(trunk.public, [Frame(Probe("udp", address, 53))] * 9)) == 3
