"""What the kernel does not take of one Service harms no other: the rest is applied, and what was open of it stays."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nftsync.kernel.nft import Kernel, KernelError
from nftsync.objects import service as objects
from nftsync.objects.names import Name, Reason
from nftsync.objects.ratelimit import RateLimit, parse_ratelimit
from nftsync.plan.result import Outcome
from nftsync.ruleset.text import Complaint
from tests.lab.lab import Lab
from tests.labtools import elements, eventually, needs_root, nft, service, tables
from tests.router import LabRouter, config_in

pytestmark = needs_root

POISON = "poison"  # a limit that passes for one here, and that the kernel answers with EOVERFLOW
GOOD4, BAD4, BESIDE4 = "172.30.254.1", "172.30.254.2", "172.30.254.3"


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser refuses every limit that is known to overflow: for a kernel that refuses one it has to be deceived."""

    def parse(text: str) -> RateLimit:
        return RateLimit(2**62, "week", 0, packets=False) if text == POISON else parse_ratelimit(text)

    monkeypatch.setattr(objects, "parse_ratelimit", parse)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[LabRouter]:
    with Lab() as lab, LabRouter(lab, config_in(tmp_path), nft()) as made:
        yield made


def opened(router: LabRouter) -> set[str]:
    """The pinholes that the kernel has."""
    return set(elements(router.lab, "services4"))


def quarantined(router: LabRouter) -> set[str]:
    return router.refused(Reason.QUARANTINED)


def key(address: str, port: int = 80) -> str:
    return f"{address} . tcp . {port}"


@pytest.mark.parametrize("started", [False, True], ids=["at the start", "later"])
def test_all_but_the_offender_is_applied_in_one_sync_and_it_is_named(router: LabRouter, started: bool) -> None:  # noqa: FBT001
    good, bad = service("good", GOOD4, limit="2 mbytes/second"), service("bad", BAD4, limit=POISON)
    if started:
        router.put(service("beside", BESIDE4))
        assert router.sync().outcome is Outcome.APPLIED
    router.put(good, bad)
    result = router.sync()
    assert result.outcome is Outcome.APPLIED
    assert opened(router) == {key(GOOD4), *([key(BESIDE4)] if started else [])}
    assert router.lab.arrives("tcp", GOOD4, 80)
    assert not router.lab.arrives("tcp", BAD4, 80)
    assert quarantined(router) == {"default/bad"}
    assert {change.service.name for change in result.changes} == {"default/good"}
    (told,) = (each for each in router.rejections() if each.reason is Reason.QUARANTINED)
    assert told.message.startswith("the kernel refuses this Service: ")
    assert "its open pinholes stay open" in told.message


def test_what_was_open_of_the_offender_stays_and_the_rest_changes(router: LabRouter) -> None:
    router.put(service("good", GOOD4), service("bad", BAD4))
    router.sync()
    router.put(service("good", GOOD4, ports=[("TCP", 443)]), service("bad", BAD4, ports=[("TCP", 443)], limit=POISON))
    result = router.sync()
    assert opened(router) == {key(GOOD4, 443), key(BAD4)}
    assert router.lab.arrives("tcp", BAD4, 80)
    assert not router.lab.arrives("tcp", BAD4, 443)
    assert {change.service.name for change in result.changes} == {"default/good"}
    assert router.pinholes().keys() == opened(router)


def test_while_one_is_in_quarantine_the_others_change_as_always_and_no_drift_is_seen(router: LabRouter) -> None:
    router.put(service("good", GOOD4), service("bad", BAD4))
    router.sync()
    router.put(service("bad", BAD4, limit=POISON))
    router.sync()
    router.put(service("beside", BESIDE4))
    assert router.sync().outcome is Outcome.APPLIED
    assert opened(router) == {key(GOOD4), key(BAD4), key(BESIDE4)}
    resynced = router.sync(resync=True)
    assert (resynced.outcome, resynced.drift, resynced.changes) == (Outcome.UNCHANGED, False, ())
    assert quarantined(router) == {"default/bad"}
    router.delete(service("good", GOOD4))
    router.sync()
    assert opened(router) == {key(BAD4), key(BESIDE4)}


@pytest.mark.parametrize("limit", ["400/second", "2 mbytes/second burst 512 kbytes", None])
def test_what_was_open_of_the_offender_stays_as_it_was_limited_over_a_restart(
    router: LabRouter, limit: str | None
) -> None:
    router.put(service("bad", BAD4, limit=limit), service("good", GOOD4, limit="1 kbytes/second burst 5 kbytes"))
    router.sync()
    before = router.pinholes()
    limits = elements(router.lab, "limited4", "netdev") | elements(router.lab, "limited4-packets", "netdev")
    router.put(service("bad", BAD4, limit=POISON))
    router.restart()
    assert router.sync().changes == ()
    assert quarantined(router) == {"default/bad"}
    assert router.pinholes() == before, "or the next boot would load what the kernel does not take"
    assert elements(router.lab, "limited4", "netdev") | elements(router.lab, "limited4-packets", "netdev") == limits
    resynced = router.sync(resync=True)
    assert (resynced.outcome, resynced.drift, resynced.changes) == (Outcome.UNCHANGED, False, ())


def test_a_limit_that_changed_while_the_daemon_was_down_is_a_change(router: LabRouter) -> None:
    router.put(service("web", GOOD4, limit="2 mbytes/second"))
    router.sync()
    router.put(service("web", GOOD4, limit="1 mbytes/second"))
    router.restart()
    (change,) = router.sync().changes
    assert (change.service.name, change.opened, change.closed, change.limit_changed) == ("default/web", (), (), True)


def test_an_offender_that_is_mended_or_deleted_is_in_quarantine_no_longer(router: LabRouter) -> None:
    router.put(service("bad", BAD4, limit=POISON), service("worse", GOOD4, limit=POISON), service("beside", BESIDE4))
    router.sync()
    assert quarantined(router) == {"default/bad", "default/worse"}
    router.put(service("bad", BAD4, limit="2 mbytes/second"))
    router.sync()
    assert quarantined(router) == {"default/worse"}
    assert router.lab.arrives("tcp", BAD4, 80)
    router.delete(service("worse", GOOD4))
    router.sync()
    assert quarantined(router) == set()
    assert opened(router) == {key(BAD4), key(BESIDE4)}


def test_an_offender_that_was_open_closes_when_it_is_deleted(router: LabRouter) -> None:
    router.put(service("bad", BAD4))
    router.sync()
    router.put(service("bad", BAD4, limit=POISON))
    router.sync()
    assert opened(router) == {key(BAD4)}
    router.delete(service("bad", BAD4))
    router.sync()
    assert opened(router) == set()
    assert not router.lab.arrives("tcp", BAD4, 80)


def test_who_inherits_a_pinhole_of_an_offender_gets_it(router: LabRouter) -> None:
    younger, older = service("younger", BAD4), service("older", BAD4)
    younger["metadata"]["creationTimestamp"] = "2024-01-01T00:00:00Z"
    older["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    router.put(younger)
    router.sync()
    poisoned: Any = service("younger", BAD4, ports=[("TCP", 80), ("TCP", 81)], limit=POISON)
    poisoned["metadata"]["creationTimestamp"] = "2024-01-01T00:00:00Z"
    router.put(poisoned)
    router.sync()
    assert router.pinholes()[key(BAD4)].service == Name("default", "younger")
    router.put(older)
    router.sync()
    assert router.pinholes()[key(BAD4)].service == Name("default", "older")
    assert opened(router) == {key(BAD4)}


def test_a_refusal_that_is_nobodys_fault_quarantines_nobody(router: LabRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    router.put(service("good", GOOD4))
    router.sync()
    tries = 0

    def full(_: Kernel, text: str) -> None:
        nonlocal tries
        tries += 1
        raise KernelError("Could not process rule: No buffer space available")

    def complain(_: Kernel, lines: Sequence[str]) -> list[Complaint]:
        nonlocal tries
        tries += 1
        return [Complaint(len(lines), "Could not process rule: No buffer space available")]

    with monkeypatch.context() as patched:
        patched.setattr(Kernel, "apply", full)
        patched.setattr(Kernel, "apply_lines", complain)
        router.put(*(service(f"s{number}", f"172.30.254.{number}") for number in range(10, 200)))
        result = router.sync()
    assert result.outcome is Outcome.FAILED
    assert "No buffer space available" in result.message
    assert tries <= 4, "not every Service is tried"
    assert quarantined(router) == set()
    assert router.lab.arrives("tcp", GOOD4, 80)
    assert router.sync().outcome is Outcome.APPLIED
    assert len(opened(router)) == 191


def test_of_a_thousand_good_ones_and_five_hundred_offenders_all_good_ones_are_open_after_a_few_transactions(
    router: LabRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = Counter[str]()

    def counted(name: str) -> Callable[..., object]:
        real = getattr(Kernel, name)

        def count(*arguments: object) -> object:
            tries[name] += 1
            return real(*arguments)

        return count

    for name in ("apply", "apply_lines"):
        monkeypatch.setattr(Kernel, name, counted(name))
    crowd = [
        service(
            f"s{number}",
            f"172.30.{number // 250}.{number % 250 + 1}",
            limit=POISON if number % 3 == 0 else "400/second",
        )
        for number in range(1500)
    ]
    router.put(*crowd)
    assert router.sync().outcome is Outcome.APPLIED
    assert tries.total() < 20, "and not one for each"
    assert len(opened(router)) == 1000
    assert len(quarantined(router)) == 500
    assert len(router.rejections()) == 500, "each is named once"


@pytest.mark.parametrize("limits", [{"limit": POISON}, {"egress": POISON}, {"limit": POISON, "egress": "5/second"}])
@pytest.mark.parametrize("address", [GOOD4, BAD4])
def test_a_limit_that_the_kernel_refuses_blames_its_own_service_even_at_a_shared_address(
    router: LabRouter, limits: dict[str, str], address: str
) -> None:
    good = service("good", GOOD4, ports=[("UDP", 53)], limit="2 mbytes/second", egress="1 mbytes/second")
    router.put(good, service("bad", address, limit=limits.get("limit"), egress=limits.get("egress")))
    assert router.sync().outcome is Outcome.APPLIED
    assert quarantined(router) == {"default/bad"}
    assert set(elements(router.lab, "limited4", "netdev")) == {f"{GOOD4} . udp . 53"}
    assert "2 mbytes/second" in router.lab.router.run(["nft", "list", "set", "netdev", "nftsync", "fragments4"]).stdout
    assert set(elements(router.lab, "limited-egress4")) == {f"{GOOD4} . udp . 53"}


def test_who_may_pass_does_not_wait_for_limits_that_the_kernel_refuses(router: LabRouter) -> None:
    """Such as those of a NIC that went after it was looked at; here, because the table is in somebody else's hands."""
    owner = router.lab.router.popen(["nft", "--interactive"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert owner.stdin
    owner.stdin.write("add table netdev nftsync { flags owner; }\n")
    owner.stdin.flush()
    assert eventually(lambda: "netdev nftsync" in tables(router.lab))
    router.put(service("good", GOOD4, limit="2 mbytes/second"), service("bad", BAD4, limit=POISON))
    result = router.sync()
    assert (result.outcome, result.message) == (
        Outcome.FAILED,
        "pinholes: 1 opened; pinholes are up to date, rate limits are not: Could not process rule: Operation "
        "not permitted",
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
    assert quarantined(router) == {"default/bad"}
