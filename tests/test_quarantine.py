"""What the kernel does not take of one Service harms no other: the rest is applied, and what was open of it stays."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nftsync import objects
from nftsync.config import Config
from nftsync.inbox import Inbox
from nftsync.inputs import Inputs
from nftsync.kernel import Kernel, KernelError
from nftsync.lab import Lab
from nftsync.links import Links
from nftsync.nftresource import Nft, parse_nft
from nftsync.objects import Name, Reason, Service, parse_service
from nftsync.ratelimit import RateLimit, parse_ratelimit
from nftsync.reconcile import Reconciler
from nftsync.result import Outcome, SyncResult
from nftsync.store import Store
from tests.labtools import Raw, elements, eventually, needs_root, nft, no_metallb, service, tables

pytestmark = needs_root

POISON = "poison"  # a limit that passes for one here, and that the kernel answers with EOVERFLOW
GOOD4, BAD4, BESIDE4 = "172.30.254.1", "172.30.254.2", "172.30.254.3"


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser refuses every limit that is known to overflow: for a kernel that refuses one it has to be deceived."""

    def parse(text: str) -> RateLimit:
        return RateLimit(2**62, "week", 0, packets=False) if text == POISON else parse_ratelimit(text)

    monkeypatch.setattr(objects, "parse_ratelimit", parse)


class Router:
    """A reconciler in the lab's router and the objects that it is told of."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self._services = Inbox[Service](parse_service, lambda: None, time.monotonic)
        nfts = Inbox[Nft](parse_nft, lambda: None, time.monotonic)
        with self._services.listing(), nfts.listing() as listing:
            listing.put(nft())
        metallb = no_metallb()
        self.kernel: Kernel = lab.router.call(Kernel)
        self.links: Links = lab.router.call(Links)
        inputs = Inputs(self._services, nfts, lambda _: metallb)
        config = Config(state=folder, local_chain=folder / "local-chain.nft", own_tables=False)
        self.reconciler = Reconciler(config, inputs, self.kernel, self.links, Store(folder))

    def put(self, *services: Raw) -> None:
        for each in services:
            self._services.put(each)

    def delete(self, *services: Raw) -> None:
        for each in services:
            self._services.delete(each)

    def sync(self, *, resync: bool = False) -> SyncResult:
        result: SyncResult = self.lab.router.call(self.reconciler.sync, resync=resync)
        return result

    def refused(self) -> set[str]:
        return {str(each.object) for each in self.reconciler.rejections() if each.reason is Reason.QUARANTINED}

    def opened(self) -> set[str]:
        return set(elements(self.lab, "services4"))


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    with Lab() as lab:
        made = Router(lab, tmp_path)
        yield made
        made.links.close()


def key(address: str, port: int = 80) -> str:
    return f"{address} . tcp . {port}"


@pytest.mark.parametrize("started", [False, True], ids=["at the start", "later"])
def test_all_but_the_offender_is_applied_in_one_sync_and_it_is_named(router: Router, started: bool) -> None:  # noqa: FBT001
    good, bad = service("good", GOOD4, limit="2 mbytes/second"), service("bad", BAD4, limit=POISON)
    if started:
        router.put(service("beside", BESIDE4))
        assert router.sync().outcome is Outcome.APPLIED
    router.put(good, bad)
    result = router.sync()
    assert result.outcome is Outcome.APPLIED
    assert router.opened() == {key(GOOD4), *([key(BESIDE4)] if started else [])}
    assert router.lab.arrives("tcp", GOOD4, 80)
    assert not router.lab.arrives("tcp", BAD4, 80)
    assert router.refused() == {"Service default/bad"}
    assert {change.service.name for change in result.changes} == {"default/good"}
    (told,) = (each for each in router.reconciler.rejections() if each.reason is Reason.QUARANTINED)
    assert told.message.startswith("the kernel does not take what it asks for: ")
    assert "what was open of it before stays" in told.message


def test_what_was_open_of_the_offender_stays_and_the_rest_changes(router: Router) -> None:
    router.put(service("good", GOOD4), service("bad", BAD4))
    router.sync()
    router.put(service("good", GOOD4, ports=[("TCP", 443)]), service("bad", BAD4, ports=[("TCP", 443)], limit=POISON))
    result = router.sync()
    assert router.opened() == {key(GOOD4, 443), key(BAD4)}
    assert router.lab.arrives("tcp", BAD4, 80)
    assert not router.lab.arrives("tcp", BAD4, 443)
    assert {change.service.name for change in result.changes} == {"default/good"}
    assert router.reconciler.opened().keys() == router.opened()


def test_while_one_is_in_quarantine_the_others_change_as_always_and_no_drift_is_seen(router: Router) -> None:
    router.put(service("good", GOOD4), service("bad", BAD4))
    router.sync()
    router.put(service("bad", BAD4, limit=POISON))
    router.sync()
    router.put(service("beside", BESIDE4))
    assert router.sync().outcome is Outcome.APPLIED
    assert router.opened() == {key(GOOD4), key(BAD4), key(BESIDE4)}
    resynced = router.sync(resync=True)
    assert (resynced.outcome, resynced.drift, resynced.changes) == (Outcome.UNCHANGED, False, ())
    assert router.refused() == {"Service default/bad"}
    router.delete(service("good", GOOD4))
    router.sync()
    assert router.opened() == {key(BAD4), key(BESIDE4)}


def test_an_offender_that_is_mended_or_deleted_is_in_quarantine_no_longer(router: Router) -> None:
    router.put(service("bad", BAD4, limit=POISON), service("worse", GOOD4, limit=POISON), service("beside", BESIDE4))
    router.sync()
    assert router.refused() == {"Service default/bad", "Service default/worse"}
    router.put(service("bad", BAD4, limit="2 mbytes/second"))
    router.sync()
    assert router.refused() == {"Service default/worse"}
    assert router.lab.arrives("tcp", BAD4, 80)
    router.delete(service("worse", GOOD4))
    router.sync()
    assert router.refused() == set()
    assert router.opened() == {key(BAD4), key(BESIDE4)}


def test_an_offender_that_was_open_closes_when_it_is_deleted(router: Router) -> None:
    router.put(service("bad", BAD4))
    router.sync()
    router.put(service("bad", BAD4, limit=POISON))
    router.sync()
    assert router.opened() == {key(BAD4)}
    router.delete(service("bad", BAD4))
    router.sync()
    assert router.opened() == set()
    assert not router.lab.arrives("tcp", BAD4, 80)


def test_who_inherits_a_pinhole_of_an_offender_gets_it(router: Router) -> None:
    younger, older = service("younger", BAD4), service("older", BAD4)
    younger["metadata"]["creationTimestamp"] = "2024-01-01T00:00:00Z"
    older["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    router.put(younger)
    router.sync()
    poisoned: Any = service("younger", BAD4, ports=[("TCP", 80), ("TCP", 81)], limit=POISON)
    poisoned["metadata"]["creationTimestamp"] = "2024-01-01T00:00:00Z"
    router.put(poisoned)
    router.sync()
    assert router.reconciler.opened()[key(BAD4)].service == Name("default", "younger")
    router.put(older)
    router.sync()
    assert router.reconciler.opened()[key(BAD4)].service == Name("default", "older")
    assert router.opened() == {key(BAD4)}


def test_a_refusal_that_is_nobodys_fault_quarantines_nobody(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    router.put(service("good", GOOD4))
    router.sync()
    tries = 0

    def full(_: Kernel, text: str) -> None:
        nonlocal tries
        tries += 1
        raise KernelError("Could not process rule: No buffer space available")

    with monkeypatch.context() as patched:
        patched.setattr(Kernel, "apply", full)
        router.put(*(service(f"s{number}", f"172.30.254.{number}") for number in range(10, 200)))
        result = router.sync()
    assert result.outcome is Outcome.FAILED
    assert "No buffer space available" in result.message
    assert tries <= 4, "not every Service is tried"
    assert router.refused() == set()
    assert router.lab.arrives("tcp", GOOD4, 80)
    assert router.sync().outcome is Outcome.APPLIED
    assert len(router.opened()) == 191


def test_of_a_thousand_good_ones_and_five_hundred_offenders_all_good_ones_are_open_in_seconds(router: Router) -> None:
    crowd = [
        service(f"s{number}", f"172.30.{number // 250}.{number % 250 + 1}", limit=POISON if number % 3 == 0 else "400/second")
        for number in range(1500)
    ]
    router.put(*crowd)
    began = time.monotonic()
    assert router.sync().outcome is Outcome.APPLIED
    seconds = time.monotonic() - began
    print(f"1,000 good and 500 refused Services: {seconds:.2f} s")
    assert seconds < 5
    assert len(router.opened()) == 1000
    assert len(router.refused()) == 500
    assert len(router.reconciler.rejections()) == 500, "each is named once"


def test_who_may_pass_does_not_wait_for_limits_that_the_kernel_refuses(router: Router) -> None:
    """Such as those of a NIC that went after it was looked at; here, because the table is in somebody else's hands."""
    owner = router.lab.router.popen(["nft", "--interactive"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert owner.stdin
    owner.stdin.write("add table netdev nftsync { flags owner; }\n")
    owner.stdin.flush()
    assert eventually(lambda: "netdev nftsync" in tables(router.lab))
    router.put(service("good", GOOD4, limit="2 mbytes/second"), service("bad", BAD4, limit=POISON))
    result = router.sync()
    assert (result.outcome, result.message) == (
        Outcome.FAILED, "what may pass is up to date, limits are not: Could not process rule: Operation not permitted"
    )  # fmt: skip
    assert router.lab.arrives("tcp", GOOD4, 80)
    assert not router.lab.arrives("tcp", "172.30.254.9", 80)
    router.put(service("later", BESIDE4))
    assert router.sync().outcome is Outcome.FAILED
    assert router.lab.arrives("tcp", BESIDE4, 80)
    owner.kill()
    owner.communicate()
    assert eventually(lambda: "netdev nftsync" not in tables(router.lab))
    assert router.sync().outcome is Outcome.APPLIED
    assert set(elements(router.lab, "limited4", "netdev")) == {key(GOOD4)}
    assert router.refused() == {"Service default/bad"}
