"""The daemon notices at once when another program changes our tables.

It repairs the change and names the program that made it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftsync.kernel import commits
from nftsync.kernel.commits import Commit, ForeignChanges
from nftsync.kernel.nft import Kernel
from tests.lab.lab import Lab
from tests.lab.namespace import Namespace
from tests.labtools import SERVICE4, SERVICE6, Daemon, but_closed, elements, eventually, needs_root, nft, rules, service
from tests.storm import storm

pytestmark = needs_root

REPAIRS = "nftsync_drift_repairs_total"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """It would look at the kernel by itself every ten minutes."""
    with Lab() as lab, Daemon(lab, tmp_path, interval=600) as made:
        made.put(nft(), service("web", SERVICE4, SERVICE6, limit="400/second"))
        yield made.start()


def meddle(daemon: Daemon, command: str) -> None:
    daemon.lab.router.run(["nft", command])


@pytest.mark.parametrize("command", [
    "flush ruleset",
    "delete table inet nftsync",
    "delete table netdev nftsync",
    "flush chain inet nftsync operator-svc",
    "insert rule inet nftsync forward accept",
    "add table inet nftsync { flags dormant; }; add chain inet nftsync forward { policy accept; }",
    "add chain inet nftsync _theirs { type filter hook forward priority -10; policy drop; }",
    "add chain inet nftsync theirs",
    "flush set inet nftsync services4",
    "delete element inet nftsync services6 { 2001:db8:254::1 . tcp . 80 }",
    "add element inet nftsync services4 { 172.30.254.99 . tcp . 80 }",
])  # fmt: skip
def test_it_is_repaired_long_before_the_next_resync_and_the_culprit_is_named(daemon: Daemon, command: str) -> None:
    good = but_closed(rules(daemon.lab))
    for number in range(3):
        time.sleep(0.5 * number)  # so long as somebody who goes on has to wait
        meddle(daemon, command)
        assert eventually(lambda: but_closed(rules(daemon.lab)) == good), daemon.log()
        assert daemon.lab.arrives("tcp", SERVICE4, 80)
        assert not daemon.lab.arrives("tcp", SERVICE4, 81)
        assert not daemon.lab.arrives("tcp", "172.30.254.99", 80)
    assert eventually(lambda: daemon.metric(REPAIRS) == 3)
    line = r"^nftsync: WARNING: (\S+) \(pid \d+\) changed nftsync's tables; nftsync repaired them; .*$"
    told = re.findall(line, daemon.log(), re.MULTILINE)
    assert told == ["'nft'"] * 3


def syncs(daemon: Daemon) -> float:
    return sum(
        daemon.metric("nftsync_syncs_total", {"result": result}) for result in ("applied", "unchanged", "failed")
    )


def test_what_happens_to_other_tables_concerns_nobody(daemon: Daemon) -> None:
    before = syncs(daemon)
    for _ in range(20):
        for command in (
            "add table inet fail2ban", "add set inet fail2ban s { type ipv4_addr; }",
            "add element inet fail2ban s { 192.0.2.1 }",
            "add table ip nftsync", "delete table ip nftsync", "delete table inet fail2ban",
        ):  # fmt: skip
            meddle(daemon, command)
    time.sleep(1.5)  # it would have looked by now
    assert syncs(daemon) == before
    assert daemon.metric(REPAIRS) == 0


def test_what_it_does_itself_is_not_looked_at_again(daemon: Daemon) -> None:
    before = syncs(daemon)
    daemon.put(service("more", "172.30.254.2"))
    assert eventually(lambda: daemon.lab.arrives("tcp", "172.30.254.2", 80))
    time.sleep(1.5)
    assert syncs(daemon) == before + 1


def test_somebody_who_goes_on_and_on_costs_ever_fewer_looks_and_is_repaired_in_the_end(daemon: Daemon) -> None:
    good, before = but_closed(rules(daemon.lab)), syncs(daemon)
    script = "".join(
        f"add element inet nftsync services4 {{ 172.30.254.{number} . tcp . 99 }}\n" for number in range(10, 210)
    )
    shell = 'while read -r line; do nft "$line"; done'
    began = time.monotonic()
    daemon.lab.router.run(["sh", "-c", shell], script)
    assert eventually(lambda: but_closed(rules(daemon.lab)) == good), daemon.log()
    looks = syncs(daemon) - before
    assert looks <= 4 + (time.monotonic() - began) / commits._LONGEST_PAUSE, "of two hundred"


@pytest.mark.parametrize("rate", [50, 0])
def test_somebody_who_goes_on_and_on_in_another_table_holds_up_neither_services_nor_repairs(
    tmp_path: Path, rate: int
) -> None:
    ports = [("TCP", port) for port in range(100, 125)]
    with Lab() as lab, Daemon(lab, tmp_path, interval=600) as daemon:
        daemon.put(
            nft(), *(service(f"s{n}", f"172.30.{254 - n // 200}.{n % 200 + 1}", ports=ports) for n in range(400))
        )
        daemon.start()
        good, late = elements(lab, "services4").keys(), service("late", "172.30.254.250", ports=[("TCP", 80)])
        with storm(lab.router, rate):
            meddle(daemon, "add element inet nftsync services4 { 172.30.254.251 . tcp . 80 }")
            assert eventually(lambda: daemon.metric(REPAIRS) == 1), daemon.log()
            daemon.put(late)
            assert eventually(lambda: lab.arrives("tcp", "172.30.254.250", 80)), daemon.log()
            assert not lab.arrives("tcp", "172.30.254.251", 80)
            assert daemon.get("/healthz").status == 200
        daemon.remove(late)
        assert eventually(lambda: elements(lab, "services4").keys() == good)


# --- on its own ---------------------------------------------------------------------------------------


class Listener:
    """A listener in a namespace, whose kernel is told to be somebody else's."""

    def __init__(self, namespace: Namespace, own: int | None) -> None:
        self.told: list[Commit | None] = []
        self.stop = threading.Event()
        self._thread = threading.Thread(target=namespace.call, args=(commits.listen, self.told.append, own, self.stop))
        self._thread.start()

    def end(self) -> None:
        self.stop.set()
        self._thread.join()


def test_a_task_knows_itself_from_another() -> None:
    namespace = Namespace()
    own = namespace.call(commits.identity)
    assert own is not None
    listener = Listener(namespace, own)
    try:
        kernel: Kernel = namespace.call(Kernel)

        def other() -> bool:
            namespace.run(["nft", "add table inet nftsync; delete table inet nftsync"])
            return bool(listener.told)

        assert eventually(other), "it listens"
        heard = len(listener.told)
        for number in range(100):
            kernel.apply(f"add table inet nftsync\nadd chain inet nftsync c{number}\n")
        kernel.apply("delete table inet nftsync")
        namespace.run(["nft", "add table netdev nftsync"])
        assert eventually(lambda: len(listener.told) > heard)
        assert len(listener.told) == heard + 1
        assert {each.program for each in listener.told if each} == {"nft"}
    finally:
        listener.end()
        namespace.close()


def test_after_more_than_the_socket_holds_it_is_said_that_something_was_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "_BUFFER", 4096)
    namespace = Namespace()
    listener = Listener(namespace, None)
    try:
        text = "add table inet nftsync; add set inet nftsync s { type ipv4_addr; };"
        elements = ", ".join(f"10.0.{number // 250}.{number % 250}" for number in range(5000))

        def much() -> bool:
            namespace.run(
                ["nft", "-f", "-"], f"{text}\nadd element inet nftsync s {{ {elements} }}\nflush set inet nftsync s\n"
            )
            return None in listener.told

        assert eventually(much)
        listener.told.clear()
        namespace.run(["nft", "delete table inet nftsync"])
        assert eventually(lambda: listener.told), "it goes on"
    finally:
        listener.end()
        namespace.close()


def test_the_name_that_a_program_gives_itself_is_printable_and_in_quotes() -> None:
    assert str(Commit(7, "\x1b[2J\nä")) == r"'\x1b[2J\n\xe4' (pid 7)"


def test_repairs_of_what_goes_on_come_ever_more_slowly_and_after_a_quiet_time_at_once_again() -> None:
    now, woken = [1000.0], []
    foreign_changes = ForeignChanges(lambda: woken.append(1), lambda: now[0])
    assert foreign_changes.due == float("inf")
    waits = []
    for _ in range(8):
        foreign_changes.tell(Commit(1, "nft"))
        waits.append(max(0.0, foreign_changes.due - now[0]))
        now[0] = max(now[0], foreign_changes.due)
        assert foreign_changes.take() == "'nft' (pid 1)"
        assert foreign_changes.due == float("inf")
    assert waits == [0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    now[0] += 11
    foreign_changes.tell(None)
    assert foreign_changes.due <= now[0]
    assert foreign_changes.take() == "somebody else"
    assert len(woken) == 9
    assert foreign_changes.take() == "", "a resync by the clock is nobody's"


def test_who_listens_is_told_of_others_alone_though_an_own_commit_has_ten_thousand_elements() -> None:
    namespace = Namespace()
    elements = ", ".join(f"10.0.{number // 250}.{number % 250}" for number in range(10_000))
    load = (
        "add table inet nftsync\nadd set inet nftsync s { type ipv4_addr; }\n"
        f"add element inet nftsync s {{ {elements} }}\n"
    )
    kernel: Kernel = namespace.call(Kernel)
    listener = Listener(namespace, namespace.call(commits.identity))

    def other() -> bool:
        namespace.run(["nft", "add table inet nftsync; delete table inet nftsync"])
        return bool(listener.told)

    try:
        assert eventually(other), "it listens"
        for _ in range(5):
            kernel.apply(load)
            kernel.apply("delete table inet nftsync")
        namespace.run(["nft", "add table netdev nftsync"])
        heard = len(listener.told)
        assert eventually(lambda: len(listener.told) > heard or heard > 1)
    finally:
        listener.end()
        namespace.close()
    assert {commit.program for commit in listener.told if commit} == {"nft"}
    assert None not in listener.told, "nothing was missed"
