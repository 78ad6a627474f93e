"""Frames by any wire of the lab: what arrives, and what does not."""

from __future__ import annotations

import json

from tests.lab.features import kernel_has
from tests.lab.lab import Frame, Lab, Probe
from tests.labtools import SERVICE4, SERVICE6, needs_root

pytestmark = needs_root

PROBES = (Probe("tcp", SERVICE4, 80), Probe("udp", SERVICE6, 53))
OTHER_MAC = "02:00:00:00:00:77"


def test_a_frame_for_the_router_arrives_and_one_for_another_machine_does_not(lab: Lab) -> None:
    frames = [Frame(probe, mac) for probe in PROBES for mac in (Frame(probe).mac, OTHER_MAC)]
    assert lab.deliver_frames(lab.public, frames) == frames[::2]


def test_a_frame_for_a_macvlan_arrives_at_its_address_alone(lab: Lab) -> None:
    lab.router.ip(f"link add link public0 name mv0 address {OTHER_MAC} type macvlan mode bridge")
    frames = [Frame(probe, OTHER_MAC) for probe in PROBES]
    assert lab.deliver_frames(lab.public, frames) == []
    lab.router.ip("link set mv0 up")
    assert lab.deliver_frames(lab.public, frames) == frames


def test_a_tag_of_zero_is_none_and_another_tag_needs_a_vlan(lab: Lab) -> None:
    frames = [Frame(probe, tags=tags) for probe in PROBES for tags in ((), (0,), (100,), (0, 100))]
    assert [frame.tags for frame in lab.deliver_frames(lab.public, frames)] == [(), (0,)] * 2
    if kernel_has("vlan"):
        lab.router.ip("link add link public0 name public0.100 type vlan id 100", "link set public0.100 up")
        assert (100,) in [frame.tags for frame in lab.deliver_frames(lab.public, frames)]


def test_a_frame_comes_in_and_goes_out_by_another_uplink(lab: Lab) -> None:
    second = lab.uplink("wan1")
    inward = [Frame(probe) for probe in PROBES]
    assert lab.deliver_frames(second, inward) == inward
    outward = [Frame(Probe("tcp", str(address), 443)) for address in second.there]
    assert lab.deliver_frames(lab.inside, outward, [second]) == outward
    assert lab.deliver_frames(lab.inside, outward, [lab.public]) == [], "it went the other way"


def test_the_addresses_of_a_wire_move_to_a_bridge_and_back(lab: Lab) -> None:
    lab.router.ip("link add name bridge0 type bridge", "link set bridge0 up", "link set public0 master bridge0")
    for device, other in (("bridge0", "public0"), ("public0", "bridge0")):
        lab.router.ip(f"address flush dev {other}")
        lab.public.address(device)
        shown = json.loads(lab.router.run(["ip", "-json", "address", "show", "dev", device]).stdout)
        assert {each["local"] for each in shown[0]["addr_info"]} >= set(map(str, lab.public.here))
