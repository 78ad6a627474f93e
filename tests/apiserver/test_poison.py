"""Hundreds of Services that can't be opened, or not as they ask, keep none of the others waiting, and each is named."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apiserver.harness import ApiServer, eventually
from tests.apiserver.router import SERVICES, Router, fresh_router
from tests.lab.lab import PUBLIC, Lab

GOOD, BAD = 1000, 500
OPEN, CLOSED = "172.30.254.1", "172.30.254.2"
WRONG_LIMITS = ("2 Mbytes/second", "0/second", "fast", "400/minute burst 0 packets", "99999999999999999999 mbytes/week")


@pytest.fixture
def router(cluster: tuple[Lab, ApiServer], tmp_path: Path) -> Iterator[Router]:
    with fresh_router(*cluster, tmp_path) as made:
        yield made


def add(router: Router, name: str, address: str, **metadata: Any) -> None:
    service = {"metadata": {"name": name, **metadata}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}
    router.server.admin.post(SERVICES, service)
    router.server.admin.patch(f"{SERVICES}/{name}/status", {"status": {"loadBalancer": {"ingress": [{"ip": address}]}}})


def add_all(router: Router) -> None:
    """Every third Service is bad.

    Either its limit is not valid, which leaves it unlimited, or it has the address of the router,
    which stays closed.
    """
    for number in range(GOOD + BAD):
        if number % 3 < 2:
            add(router, f"good{number}", f"10.9.{number // 250}.{number % 250 + 1}" if number else OPEN)
        elif number % 2:
            add(router, f"bad{number}", str(PUBLIC[0]))
        else:
            wrong = WRONG_LIMITS[number % len(WRONG_LIMITS)]
            add(router, f"bad{number}", f"10.8.{number // 250}.{number % 250 + 1}", annotations={"ratelimit": wrong})


def opened() -> int:
    listed = json.loads(subprocess.check_output(["nft", "-j", "list", "set", "inet", "nftsync", "services4"]))[
        "nftables"
    ]
    return sum(len(each["set"].get("elem", ())) for each in listed if "set" in each)


def told(router: Router) -> Counter[str]:
    """How often Events say of each Service that it is rejected."""
    events = router.server.admin.get("/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    return Counter({
        each["regarding"]["name"]: each.get("series", {}).get("count", 1)
        for each in events if each["reason"] == "Rejected"
    })  # fmt: skip


def test_five_hundred_bad_ones_among_a_thousand_good_ones_harm_nobody_and_each_is_told(router: Router) -> None:
    add_all(router)
    router.start()
    eventually(lambda: opened() == GOOD + BAD / 2, "all are open that can be")
    assert router.lab.arrives("tcp", OPEN, 80)
    assert not router.lab.arrives("tcp", CLOSED, 80)
    reasons = [f'nftsync_rejections{{reason="{reason}"}}' for reason in ("invalid_ratelimit", "reserved_address")]
    eventually(lambda: [router.metric(each) for each in reasons] == [BAD / 2] * 2, "each is counted")
    bad = {f"bad{number}": 1 for number in range(GOOD + BAD) if number % 3 == 2}
    eventually(lambda: told(router) == bad, "there is one Event of each", 300)
