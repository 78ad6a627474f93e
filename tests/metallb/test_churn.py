"""A cluster that never rests: the kernel has what its statuses say, and nobody's trouble is anybody else's."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.apiserver.client import RefusedError
from tests.apiserver.harness import eventually
from tests.labtools import needs_root
from tests.metallb.lab import POOL4, POOL6, SERVICES, Kind, MetalLBLab
from tests.programs.cache import NEW

pytestmark = needs_root

CHANGES = int(os.environ.get("CHANGES", "2000"))
NAMES = [f"s{number}" for number in range(40)]
MOST_LINES = MOST_EVENTS = 40  # about one Service, whatever it does


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MetalLBLab]:
    with MetalLBLab(Kind("0.15.3", NEW), tmp_path_factory.mktemp("churn")) as made:
        yield made


def change(lab: MetalLBLab, draw: random.Random, present: set[str]) -> None:
    """A random change of a Service, or of the pool. present: names of Services. Raises RefusedError."""
    name, what = draw.choice(NAMES), draw.randrange(60)
    if what == 0:
        lab.pools(services=[draw.choice([POOL4, "172.30.254.0/25"])])
    elif name not in present:
        lab.add(name, *draw.sample(range(1, 9999), 2))
        present.add(name)
    elif what < 10:
        lab.delete(name)
        present.remove(name)
    else:
        spec = draw.choice(
            (
                {"ports": [{"name": f"p{port}", "port": port} for port in draw.sample(range(1, 9999), 3)]},
                {"loadBalancerIP": f"172.30.254.{draw.randrange(256)}"},
                {"type": draw.choice(["ClusterIP", "LoadBalancer"])},
            )
        )
        lab.server.admin.patch(f"{SERVICES}/{name}", {"spec": spec})


def restart(lab: MetalLBLab, program: str) -> None:
    """Kill a program, and start it again."""
    if program == "kube-apiserver":
        lab.server.restart()
    else:
        lab.kill(program)
        lab.start(program)


def test_after_thousands_of_changes_and_restarts_the_kernel_has_exactly_what_the_statuses_say(lab: MetalLBLab) -> None:
    draw = random.Random(15)
    lab.pools(services=[POOL4])
    lab.run_nftsync()
    present, programs = set[str](), itertools.cycle(("kube-apiserver", "controller", *lab.nodes))
    done = 0
    while done < CHANGES:
        with suppress(RefusedError):  # a ClusterIP Service can have no loadBalancerIP, and others of the kind
            change(lab, draw, present)
            done += 1
            if done % 200 == 0:
                restart(lab, next(programs))
    lab.pools(services=[POOL4])
    eventually(lambda: lab.pinholes() == lab.asked(), "the kernel has what the statuses say")
    assert lab.asked(), "there is something to say"
    status = lab.nftsync("status", "--json")
    assert status.returncode == 0, status.stdout
    lab.stop_nftsync()


def test_a_service_whose_address_comes_and_goes_for_ever_is_nobody_elses_trouble(lab: MetalLBLab) -> None:
    """A PreferDualStack Service in a cluster of one family, with a pool of both: MetalLB never makes up its mind."""
    lab.pools(services=[POOL4, POOL6])
    lab.run_nftsync()
    lab.add("undecided", ipFamilyPolicy="PreferDualStack")
    path = f"{SERVICES}/undecided"
    seen = {lab.server.admin.get(path)["metadata"]["resourceVersion"]}

    def flaps() -> bool:
        seen.add(lab.server.admin.get(path)["metadata"]["resourceVersion"])
        return len(seen) > 100

    eventually(flaps, "MetalLB writes this Service's status again and again")
    before = lab.log.read_text(encoding="utf-8").count("undecided")
    for number in range(10):
        lab.add(f"web{number}", ipFamilyPolicy="SingleStack")
        addresses = lab.has_address(f"web{number}", 1)
        lab.opens(*addresses)
        lab.delete(f"web{number}")
        lab.closes(*addresses)
    seen.clear()
    eventually(flaps, "it goes on")
    assert lab.log.read_text(encoding="utf-8").count("undecided") - before <= MOST_LINES
    events = lab.server.admin.get("/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    about = [each for each in events if each["regarding"]["name"] == "undecided"]
    assert sum(each.get("series", {}).get("count", 1) for each in about) <= MOST_EVENTS
