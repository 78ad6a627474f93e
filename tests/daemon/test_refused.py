"""What the kernel refuses leaves nothing behind: neither in the journal, nor for the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nftsync.files.journal import Journal
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.objects import service as objects
from nftsync.objects.names import Name, Reason
from nftsync.objects.ratelimit import RateLimit, parse_ratelimit
from nftsync.plan import memory as records
from nftsync.plan.result import Outcome
from nftsync.ruleset.text import Complaint
from tests.lab.lab import Lab
from tests.labtools import elements, needs_root, nft, rules, service
from tests.router import LabRouter, config_in

pytestmark = needs_root

POISON = "poison"  # a limit that passes for one here, and that the kernel answers with EOVERFLOW
GOOD4, BAD4, BESIDE4 = "172.30.254.1", "172.30.254.2", "172.30.254.3"


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser refuses every limit that is known to overflow: for a kernel that refuses one it has to be deceived."""
    poisonous = RateLimit(2**62, "week", 0, packets=False)

    def parse(text: str) -> RateLimit:
        return poisonous if text in (POISON, str(poisonous)) else parse_ratelimit(text)

    monkeypatch.setattr(objects, "parse_ratelimit", parse)
    monkeypatch.setattr(records, "parse_ratelimit", parse)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[LabRouter]:
    with Lab() as lab, LabRouter(lab, config_in(tmp_path), nft()) as made:
        yield made


def opened(router: LabRouter) -> set[str]:
    return {key.partition(" ")[0] for key in elements(router.lab, "services4")}


def refuse_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes nothing of the limits' table, whatever is asked of it."""
    real, real_lines = Kernel.apply, Kernel.apply_lines

    def apply(kernel: Kernel, text: str) -> None:
        if "netdev" in text:
            raise KernelError("no such device")
        real(kernel, text)

    def apply_lines(kernel: Kernel, lines: list[str]) -> list[Complaint]:
        found = [
            Complaint(number, "no such device")
            for number, line in enumerate(lines)
            if line.startswith("add table netdev")
        ]
        return found or real_lines(kernel, lines)

    monkeypatch.setattr(Kernel, "apply", apply)
    monkeypatch.setattr(Kernel, "apply_lines", apply_lines)


def test_a_service_that_no_transaction_took_is_not_remembered_when_it_is_gone(
    router: LabRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.synced()
    router.put(service("web", GOOD4))
    with monkeypatch.context() as busy:

        def refuse(*_: object) -> None:
            raise KernelError("busy")

        busy.setattr(Kernel, "apply", refuse)
        busy.setattr(Kernel, "apply_lines", refuse)
        assert router.sync(resync=True).outcome is Outcome.FAILED
    router.delete(service("web", GOOD4))
    router.synced()
    router.restart(listed=False)
    router.sync()
    assert opened(router) == set()
    assert not Journal(router.config.state).load().services


def test_a_version_that_was_taken_while_nothing_was_limited_and_is_refused_later_harms_nobody(
    router: LabRouter,
) -> None:
    router.put(nft(enable_rateshape=False), service("bad", BAD4, limit=POISON), service("good", GOOD4))
    router.synced()
    router.put(nft())
    router.synced()
    router.put(service("beside", BESIDE4))
    router.synced()
    assert opened(router) == {GOOD4, BAD4, BESIDE4}, "and what was open of it stays"
    assert router.refused(Reason.QUARANTINED) == {"default/bad"}
    router.restart(listed=False)
    router.lab.router.nft("flush ruleset")
    assert router.sync().outcome is Outcome.WAITING
    assert opened(router) == {GOOD4, BAD4, BESIDE4}


def test_a_remembered_version_that_the_kernel_refuses_does_not_keep_the_others_out(router: LabRouter) -> None:
    """As after a kill between the record and the refusal, or with another kernel after a reboot."""
    router.put(service("good", GOOD4))
    router.synced()
    router.restart(listed=False)
    journal = Journal(router.config.state)
    memory = journal.load()
    bad = objects.parse_service(service("bad", BAD4, limit=POISON), None)
    assert bad is not None
    memory.services[Name("default", "bad")] = bad
    journal.replace(memory)
    journal.finish()
    router.restart(listed=False)
    router.lab.router.nft("flush ruleset")
    assert router.sync().outcome is Outcome.WAITING
    assert GOOD4 in opened(router)


def test_a_service_that_moved_while_limits_were_refused_does_not_open_its_old_port_again(
    router: LabRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = "2 mbytes/second burst 512 kbytes"
    router.put(service("web", GOOD4, limit=limit))
    router.synced()
    refuse_limits(monkeypatch)
    router.put(service("web", GOOD4, ports=[("TCP", 443)], limit=limit))
    result = router.sync()
    assert "pinholes are up to date" in result.message, result.message
    assert set(elements(router.lab, "services4")) == {f"{GOOD4} . tcp . 443"}
    router.restart(listed=False)
    router.sync()
    assert set(elements(router.lab, "services4")) == {f"{GOOD4} . tcp . 443"}


def test_limits_that_the_kernel_refuses_leave_those_that_stand_alone(
    router: LabRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.put(service("web", GOOD4, limit="2 mbytes/second burst 512 kbytes"))
    router.synced()
    before = [line for line in rules(router.lab).splitlines() if "@limited" in line]
    assert before
    refuse_limits(monkeypatch)
    router.put(nft(enable_ssh=False), service("web", GOOD4, limit="400/second"))
    assert router.sync().outcome is Outcome.FAILED
    assert [line for line in rules(router.lab).splitlines() if "@limited" in line] == before
    assert "dport 22" not in rules(router.lab)
