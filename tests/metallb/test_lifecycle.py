"""MetalLB's own controller and speakers say what opens on the router, judged by BGP routes and TCP connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apiserver.harness import eventually
from tests.labtools import needs_root
from tests.metallb.lab import POOL4, POOL6, SERVICES, Kind, MetalLBLab
from tests.programs.cache import NEW, OLD

pytestmark = needs_root

KINDS = (
    Kind("0.15.3", NEW),
    Kind("0.15.3", NEW, frr=True, dual=True),
    Kind("0.13.5", OLD),
    Kind("0.12.1", OLD),
)
FIRST, SECOND = "172.30.254.0/28", "172.30.254.16/28"
IN_FIRST, IN_SECOND = "172.30.254.3", "172.30.254.19"
SHARED = {"metallb.universe.tf/allow-shared-ip": "one", "metallb.io/allow-shared-ip": "one"}


@pytest.fixture(scope="module", params=KINDS, ids=str)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MetalLBLab]:
    with MetalLBLab(request.param, tmp_path_factory.mktemp("metallb")) as made:
        yield made


@pytest.fixture
def lab(running: MetalLBLab) -> Iterator[MetalLBLab]:
    """Without a Service, with one pool for each family that is announced, and with nftsync."""
    running.pools(services=[POOL4, POOL6] if running.kind.frr else [POOL4])
    running.run_nftsync()
    try:
        yield running
    finally:
        for service in running.server.admin.get(SERVICES)["items"]:
            if service["spec"]["type"] == "LoadBalancer":
                running.delete(service["metadata"]["name"])
        running.stop_nftsync()


def test_a_service_gets_address_route_and_pinhole_and_loses_all_three_when_it_is_deleted(lab: MetalLBLab) -> None:
    lab.add("web")
    addresses = lab.has_address("web")
    lab.opens(*addresses)
    assert not any(lab.connects(address, 81) for address in addresses), "the backends listen there, too"

    lab.delete("web")

    lab.closes(*addresses)
    lab.withdrawn(*addresses)


def test_what_was_there_before_nftsync_opens(lab: MetalLBLab) -> None:
    lab.stop_nftsync()
    lab.add("web", 80, 81)
    addresses = lab.has_address("web")
    lab.run_nftsync()
    lab.opens(*addresses)
    lab.opens(*addresses, port=81)


def test_a_service_follows_the_pool_from_which_it_asks_its_address(lab: MetalLBLab) -> None:
    lab.pools(first=[FIRST], second=[SECOND])
    lab.add("web", loadBalancerIP=IN_FIRST, ipFamilyPolicy="SingleStack")
    assert lab.has_address("web", 1) == [IN_FIRST]
    lab.opens(IN_FIRST)

    lab.server.admin.patch(f"{SERVICES}/web", {"spec": {"loadBalancerIP": IN_SECOND}})

    lab.opens(IN_SECOND)
    lab.closes(IN_FIRST)
    lab.withdrawn(IN_FIRST)


def test_a_service_closes_when_its_pool_goes(lab: MetalLBLab) -> None:
    lab.pools(first=[FIRST], second=[SECOND])
    for name, address in (("web", IN_FIRST), ("other", IN_SECOND)):
        lab.add(name, loadBalancerIP=address, ipFamilyPolicy="SingleStack")
        lab.has_address(name, 1)
    lab.opens(IN_FIRST, IN_SECOND)

    lab.pools(second=[SECOND])

    lab.closes(IN_FIRST)
    assert lab.connects(IN_SECOND)


def test_with_advertised_pools_only_a_service_is_open_as_long_as_its_pool_is_announced(lab: MetalLBLab) -> None:
    lab.stop_nftsync()
    lab.run_nftsync("advertised_pools_only = true")
    lab.pools(first=[FIRST])
    lab.add("web", loadBalancerIP=IN_FIRST, ipFamilyPolicy="SingleStack")
    lab.has_address("web", 1)
    lab.opens(IN_FIRST)

    lab.pools(silent=[FIRST])

    lab.closes(IN_FIRST)
    lab.withdrawn(IN_FIRST)


def test_services_that_share_an_address_open_and_close_for_themselves(lab: MetalLBLab) -> None:
    lab.pools(first=[FIRST])
    for name, port in (("web", 80), ("admin", 81)):
        lab.add(name, port, annotations=SHARED, loadBalancerIP=IN_FIRST, ipFamilyPolicy="SingleStack")
        assert lab.has_address(name, 1) == [IN_FIRST]
    lab.opens(IN_FIRST)
    lab.opens(IN_FIRST, port=81)

    lab.delete("web")

    lab.closes(IN_FIRST)
    assert lab.connects(IN_FIRST, 81)
    assert lab.announced(IN_FIRST)


def test_a_service_without_an_address_has_no_pinhole(lab: MetalLBLab) -> None:
    lab.pools(first=[FIRST])
    lab.add("web", loadBalancerIP=IN_SECOND, ipFamilyPolicy="SingleStack")
    lab.add("other", loadBalancerIP=IN_FIRST, ipFamilyPolicy="SingleStack")
    lab.opens(IN_FIRST)
    assert lab.addresses("web") == []
    eventually(lambda: lab.pinholes() == lab.asked(), "the kernel has what the statuses say")


def test_what_metallb_refuses_does_not_count_and_what_it_keeps_stays_open(lab: MetalLBLab) -> None:
    """An invalid part makes the configuration invalid, for MetalLB and for nftsync."""
    lab.pools(first=[FIRST])
    lab.add("web", loadBalancerIP=IN_FIRST, ipFamilyPolicy="SingleStack")
    lab.has_address("web", 1)
    lab.opens(IN_FIRST)

    lab.pools(first=[FIRST], second=["172.30.254.8-172.30.254.12"])  # it overlaps
    lab.add("other", loadBalancerIP=IN_SECOND, ipFamilyPolicy="SingleStack")

    eventually(lambda: "invalid_pools" in lab.nftsync("status").stdout, "nftsync names the mistake")
    assert lab.connects(IN_FIRST)
    assert lab.announced(IN_FIRST)
    assert lab.addresses("other") == []
