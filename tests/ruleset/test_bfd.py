"""BFD reaches the router from listed BGP peers, and from nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from nftsync.objects.nft import parse_nft
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from tests.lab.lab import CLIENT, PUBLIC, Lab, Probe
from tests.labtools import Firewall, needs_root, nft
from tests.support import side

pytestmark = needs_root

PEERS = tuple(ip_network(str(address)) for address in CLIENT)
STRANGERS = ("198.51.100.9", "2001:db8:100::9")


@pytest.fixture(scope="module")
def router() -> Iterator[tuple[Lab, Firewall]]:
    with Lab() as made:
        yield made, Firewall(made)


def load(firewall: Firewall, peers: tuple[Any, ...], **switches: bool) -> None:
    spec = parse_nft(nft(**switches), None).spec
    firewall.change(ruleset((), Settings.of(spec, side("public0"), local_chain="", bgp_peers=peers)))


def arrived(lab: Lab, family: int, **fields: Any) -> set[tuple[int, int]]:
    """Port and TTL of the UDP packets to the router that arrived, of those that could be BFD and their neighbours."""
    pairs = [(port, ttl) for port in (3783, 3784, 3785, 3786, 4784) for ttl in (1, 64, 253, 254, 255)]
    probes = [Probe("udp", str(PUBLIC[family]), port, ttl=ttl, **fields) for port, ttl in pairs]
    return {(probe.port, probe.ttl) for probe in lab.deliver(probes)}


@pytest.mark.parametrize("sport", [32768, 49152, 65535, 3785])
@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_a_listed_peer_speaks_bfd_from_any_source_port_with_the_ttl_of_its_kind(
    router: tuple[Lab, Firewall], family: int, sport: int
) -> None:
    lab, firewall = router
    load(firewall, PEERS)
    bfd = {(3784, 255), (3785, 254), (3785, 255), *((4784, ttl) for ttl in (1, 64, 253, 254, 255))}
    assert arrived(lab, family, sport=sport) == bfd


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_bfd_is_closed_for_others_without_a_list_and_without_enable_bgp(
    router: tuple[Lab, Firewall], family: int
) -> None:
    lab, firewall = router
    load(firewall, PEERS)
    assert arrived(lab, family, source=STRANGERS[family]) == set()
    load(firewall, (PEERS[1 - family],))
    assert arrived(lab, family) == set()
    load(firewall, ())
    assert arrived(lab, family) == set()
    load(firewall, PEERS, enable_bgp=False)
    assert arrived(lab, family) == set()
