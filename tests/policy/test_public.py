"""Which interfaces count as public, for the links that routers have."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nftsync.objects.nft import Nics
from nftsync.policy.public import Link, PublicSide, Uplink, public_side

WAN, LAN = Link(2, "enp1s0"), Link(3, "enp6s0", addressed=True)
RED = (Link(2, "enp1s0", master=4), Link(3, "enp6s0", master=4), Link(4, "red", kind="vrf"))


def seen(*links: Link, public: str = "enp1s0", inside: str = "", uplinks: tuple[Uplink, ...] = ()) -> PublicSide:
    """The public side among these links and lo. public, inside: names with blanks between."""
    return public_side([Link(1, "lo"), *links], Nics(tuple(public.split()), tuple(inside.split())), uplinks)


@dataclass(frozen=True)
class Case:
    """links: all but lo.  names, devices, warned: with blanks between; `warned` has the first words of warnings."""

    links: tuple[Link, ...]
    names: str
    devices: str
    public: str = "enp1s0"
    inside: str = ""
    warned: str = ""
    trunks: str = ""


CASES = {
    "a NIC alone": Case((WAN, LAN), "enp1s0", "enp1s0"),
    "an alternative name stands for the real one": Case(
        (Link(2, "ens18", frozenset({"enp1s0", "x"})), LAN), "ens18", "ens18"
    ),
    "a real name wins over an alternative one": Case((WAN, Link(4, "x", frozenset({"enp1s0"}))), "enp1s0", "enp1s0"),
    "packets of a bridge's port appear as the bridge": Case(
        (Link(2, "enp1s0", master=4), LAN, Link(4, "br0", kind="bridge", addressed=True)), "br0 enp1s0", "enp1s0"
    ),
    "a bond in a bridge": Case(
        (Link(2, "enp1s0", master=4), Link(4, "bond0", kind="bond", master=5), Link(5, "br0", kind="bridge"), LAN),
        "bond0 br0 enp1s0",
        "enp1s0",
    ),
    "a named bond carries the limits itself": Case(
        (Link(2, "enp1s0", master=4), Link(5, "enp2s0", master=4), Link(4, "bond0", kind="bond", addressed=True)),
        "bond0",
        "bond0",
        public="bond0",
    ),
    "a VRF may hold the cluster's NIC, too": Case(RED, "enp1s0", "enp1s0"),
    "a VRF stands for itself and all its ports": Case(RED, "enp1s0 enp6s0 red", "enp1s0 enp6s0", "red", warned="red"),
    "a VRF with an inside port stands for its other ports": Case(RED, "enp1s0", "enp1s0", "red", "enp6s0"),
    "untagged frames come in by a VLAN's parent": Case(
        (WAN, Link(4, "enp1s0.100", kind="vlan", lower=2, addressed=True)),
        "enp1s0 enp1s0.100",
        "enp1s0 enp1s0.100",
        public="enp1s0.100",
        trunks="enp1s0",
    ),
    "a parent with an address stays inside and is told": Case(
        (Link(2, "enp1s0", addressed=True), Link(4, "enp1s0.100", kind="vlan", lower=2)),
        "enp1s0.100",
        "enp1s0.100",
        public="enp1s0.100",
        warned="enp1s0",
    ),
    "a parent that is a bridge's port has the bridge's purpose": Case(
        (Link(2, "enp1s0", master=5), Link(4, "v", kind="vlan", lower=2), Link(5, "br", kind="bridge", addressed=True)),
        "v",
        "v",
        public="v",
        warned="enp1s0",
    ),
    "the same trunk can carry the inside": Case(
        (WAN, Link(4, "enp1s0.100", kind="vlan", lower=2), Link(5, "enp1s0.200", kind="vlan", lower=2, master=6),
         Link(6, "br-lan", kind="bridge", addressed=True)),
        "enp1s0 enp1s0.100",
        "enp1s0 enp1s0.100",
        public="enp1s0.100",
        trunks="enp1s0",
        warned="enp1s0.200",
    ),
    "a VLAN without an address is public, one with an address is told": Case(
        (WAN, Link(4, "enp1s0.100", kind="vlan", lower=2), Link(5, "enp1s0.200", kind="vlan", lower=2, addressed=True)),
        "enp1s0 enp1s0.100",
        "enp1s0 enp1s0.100",
        trunks="enp1s0",
        warned="enp1s0.200",
    ),
    "a VLAN in a VLAN of the bridge of a public port": Case(
        (Link(2, "enp1s0", master=4), Link(4, "br0", kind="bridge"), Link(5, "br0.7", kind="vlan", lower=4),
         Link(6, "br0.7.8", kind="vlan", lower=5)),
        "br0 br0.7 br0.7.8 enp1s0",
        "br0.7 br0.7.8 enp1s0",
        trunks="br0.7 enp1s0",
    ),
    "the parent of the VLAN in a named bridge": Case(
        (WAN, Link(4, "enp1s0.100", kind="vlan", lower=2, master=5), Link(5, "br-wan", kind="bridge", addressed=True)),
        "br-wan enp1s0",
        "enp1s0 enp1s0.100",
        public="br-wan",
        trunks="enp1s0",
    ),
    "a named bridge with a macvlan: the hook of the parent sees its packets": Case(
        (WAN, Link(4, "m", kind="macvlan", lower=2, master=5), Link(5, "br-wan", kind="bridge", addressed=True)),
        "br-wan enp1s0",
        "enp1s0",
        public="br-wan",
    ),
    "packets come in by every port of a public port's bridge but an inside one": Case(
        (Link(2, "enp1s0", master=4), Link(5, "enp2s0", master=4), Link(6, "enp3s0", master=4),
         Link(4, "br0", kind="bridge", addressed=True)),
        "br0 enp1s0",
        "enp1s0 enp2s0",
        inside="enp3s0",
        warned="enp3s0",
    ),
    "a macvlan on a VLAN: the hook of the parent sees its packets": Case(
        (WAN, Link(4, "v", kind="vlan", lower=2), Link(5, "m", kind="macvlan", lower=4, addressed=True)),
        "enp1s0 m v",
        "enp1s0 v",
        public="m",
        trunks="enp1s0",
    ),
    "a macvlan whose parent is not public has the hook itself": Case(
        (Link(2, "enp1s0", addressed=True), Link(5, "m", kind="macvlan", lower=2)), "m", "m", "m", warned="enp1s0"
    ),
    "PPP over Ethernet": Case((WAN, Link(4, "ppp0", kind="ppp", lower=2, addressed=True)), "enp1s0 ppp0",
                              "enp1s0 ppp0", "ppp0"),
    "a tunnel without an address": Case((WAN, Link(4, "gre1", kind="gre", lower=2)), "enp1s0 gre1", "enp1s0 gre1"),
    "a tunnel with an address is inside, and no news": Case(
        (WAN, Link(4, "gre1", kind="gre", lower=2, addressed=True)), "enp1s0", "enp1s0"
    ),
    "the bridge of a public NIC is public, even if it is in inside_nics": Case(
        (Link(2, "enp1s0", master=4), Link(4, "br0", kind="bridge")), "br0 enp1s0", "enp1s0", inside="br0", warned="br0"
    ),
    "a VLAN of a public NIC in an inside bridge is inside": Case(
        (WAN, Link(4, "enp1s0.5", kind="vlan", lower=2, master=5), Link(5, "br0", kind="bridge")),
        "enp1s0",
        "enp1s0",
        inside="br0",
        trunks="enp1s0",
    ),
    "the bridge of an inside VLAN is inside": Case(
        (WAN, Link(4, "enp1s0.5", kind="vlan", lower=2, master=5), Link(5, "br0", kind="bridge")),
        "enp1s0",
        "enp1s0",
        inside="enp1s0.5",
        trunks="enp1s0",
    ),
    "another bridge of Open vSwitch stays inside": Case(
        (Link(2, "enp1s0", master=4), Link(4, "ovs-system", kind="openvswitch"),
         Link(5, "br-ex", kind="openvswitch", addressed=True), Link(6, "br-int", kind="openvswitch", addressed=True)),
        "br-ex enp1s0 ovs-system",
        "enp1s0",
        inside="br-int",
    ),
    "an interface that is named as both is public": Case(
        (Link(2, "enp1s0", frozenset({"alt"})), LAN), "enp1s0", "enp1s0", inside="alt", warned="alt"
    ),
    "several NICs, one of them away": Case(
        (WAN, Link(4, "enp2s0"), LAN), "enp1s0 enp2s0 ppp0", "enp1s0 enp2s0", public="enp1s0 enp2s0 ppp0"
    ),
    "ports of Open vSwitch appear as an internal port": Case(
        (Link(2, "enp1s0", master=4), Link(4, "ovs-system", kind="openvswitch"),
         Link(5, "br-ex", kind="openvswitch", master=4, addressed=True)),
        "br-ex enp1s0 ovs-system",
        "enp1s0",
    ),
    "links that point at each other end the search": Case(
        (Link(2, "enp1s0", lower=4), Link(4, "y", kind="vlan", lower=2)), "enp1s0 y", "enp1s0 y", trunks="enp1s0"
    ),
    "a name that nft cannot write": Case((Link(2, 'a"b', frozenset({"enp1s0"})),), "", "", warned="nft"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_public_interfaces(name: str) -> None:
    case = CASES[name]
    found = seen(*case.links, public=case.public, inside=case.inside)
    assert sorted(found.names or ()) == case.names.split()
    assert list(found.devices) == case.devices.split()
    assert sorted(found.trunks) == case.trunks.split()
    assert [warning.split()[0] for warning in found.warnings] == case.warned.split()
    assert all(warning.isprintable() for warning in found.warnings)


def test_without_any_named_nic_every_interface_is_public_and_the_sentence_says_so() -> None:
    found = seen(LAN, public="eth9 eth8")
    assert (found.names, found.devices, found.missing) == (None, (), ("eth9", "eth8"))
    assert found.absence == (
        "eth9 and eth8 are not there: every interface counts as public, and no ingress limit is in force"
    )
    assert seen(LAN, public="eth9", inside="enp6s0").absence.startswith("eth9 is not there: every interface that is")


def test_a_nic_that_is_away_stays_public_beside_the_others() -> None:
    found = seen(WAN, LAN, public="enp1s0 ppp0")
    assert set(found.names or ()) == {"enp1s0", "ppp0"}
    assert found.absence == "ppp0 is not there: only the other public NICs are"
    assert str(found) == "enp1s0"


def test_inside_are_the_named_interfaces_and_their_masters_and_nobody_else() -> None:
    assert seen(WAN, LAN).inside is None
    bridged = (WAN, Link(3, "enp6s0", frozenset({"lan"}), master=4), Link(4, "br-lan", kind="bridge", addressed=True))
    assert set(seen(*bridged, inside="lan").inside or ()) == {"lan", "enp6s0", "br-lan"}
    both = (Link(2, "enp1s0", master=4), Link(3, "enp6s0", master=4), Link(4, "br0", kind="bridge", addressed=True))
    assert set(seen(*both, inside="enp6s0").inside or ()) == {"enp6s0"}, "public packets carry the bridge's name, too"
    away = seen(WAN, inside="wg0")
    assert set(away.inside or ()) == {"wg0"}
    assert away.warnings == ("there is no interface wg0, which inside_nics names",)


def test_an_uplink_that_is_not_public_is_told_unless_you_called_it_inside() -> None:
    other, route = Link(4, "enp2s0"), (Uplink(4, "a default route"), Uplink(2, "a default route"), Uplink(77, "x"))
    assert seen(WAN, other, uplinks=route).warnings == ("enp2s0 has a default route, but does not count as public",)
    assert seen(WAN, other, inside="enp2s0", uplinks=route).warnings == ()


def test_before_a_look_the_names_count_as_they_are() -> None:
    assert PublicSide.unseen(Nics(("a", "b"), ("c",))) == PublicSide(
        frozenset({"a", "b"}), inside=frozenset({"c"}), devices=("a", "b"), named=("a", "b")
    )
    assert PublicSide.unseen(Nics()).names is None


def test_a_nic_stays_public_under_another_name_unless_that_name_is_inside() -> None:
    nics, other = Nics(("enp1s0", "wan1"), ("lan0",)), Link(5, "wan1")
    before = public_side([WAN, other], nics)
    renamed = public_side([Link(2, "eth7"), other], nics, (), before)
    assert renamed.indices == {2, 5}
    assert (renamed.missing, renamed.devices) == (("enp1s0",), ("eth7", "wan1"))
    assert renamed.absence == "enp1s0 is called 'eth7' now, which is public until nftsync restarts"
    assert public_side([Link(2, "lan0"), other], nics, (), renamed).indices == {5}
    both = public_side([Link(2, "eth7"), Link(5, "eth8")], nics, (), renamed)
    assert both.names is None, "every interface is public while no name is there"
    assert public_side([Link(2, "eth7"), other], nics, (), both).indices == {2, 5}
    plugged = public_side([Link(2, "eth7"), Link(9, "enp1s0"), other], nics, (), renamed)
    assert plugged.indices == {9, 5}
    assert not plugged.absence


def test_a_name_that_nft_cannot_write_is_not_inside() -> None:
    assert seen(WAN, Link(3, "lan0", master=4), Link(4, 'br"', kind="bridge"), inside="lan0").inside == frozenset(
        {"lan0"}
    )
