"""What a process remembers is what was in force, whenever it ended; what nobody has decided about is decided once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nftsync.config import AddressPolicy, PoolMode
from nftsync.daemon.reconcile import Reconciler, Refused
from nftsync.files import journal as module
from nftsync.files.journal import Journal
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.objects.names import Name
from nftsync.plan.result import Outcome
from nftsync.ruleset.model import INET
from tests.lab.lab import Lab
from tests.labtools import needs_root, nft, rules, service
from tests.policy.test_pools import pool
from tests.router import LabRouter, config_in

pytestmark = needs_root

WEB4, OTHER4, OUTSIDE4 = "172.30.254.1", "172.30.254.2", "203.0.113.1"
POOL = pool("services", "172.30.254.0/24")


class Killed(BaseException):
    """The process is killed here."""


@pytest.fixture
def router(tmp_path: Path) -> Iterator[LabRouter]:
    with Lab() as lab, LabRouter(lab, config_in(tmp_path), nft()) as made:
        yield made


def keys(router: LabRouter) -> set[str]:
    held = router.kernel.read().ruleset.elements[INET]
    return {*held["services4"], *held["sources4"]}


def killed_after(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    """A process is killed when the kernel has taken its next transaction."""
    real = Kernel.apply

    def apply(kernel: Kernel, text: str) -> None:
        real(kernel, text)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Kernel, "apply", apply)
        patched.setattr(module, "GRACE", 10.0)
        with pytest.raises(Killed):
            run()


def test_settings_that_shut_a_door_are_not_forgotten_by_a_process_that_is_killed(
    router: LabRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.synced()
    router.put(nft(enable_ssh=False))
    killed_after(monkeypatch, router.sync)
    assert "dport 22" not in rules(router.lab)
    router.restart(listed=False)
    router.sync()
    assert "dport 22" not in rules(router.lab)


def test_settings_that_the_kernel_did_not_take_are_not_remembered(
    router: LabRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.synced()
    router.put(nft(enable_ssh=False))

    def refuse(*_: object) -> None:
        raise Refused

    with monkeypatch.context() as patched:
        patched.setattr(Reconciler, "_send", refuse)
        router.sync()
    router.restart(listed=False)
    spec = Journal(router.config.state).load().facts.spec
    assert spec is not None
    assert spec.enable_ssh


def test_pools_that_were_ignored_are_not_taken_for_none(router: LabRouter) -> None:
    router.put(POOL)
    router.synced()
    router.reload(address_policy=AddressPolicy(PoolMode.IGNORED))
    router.synced()
    router.restart(listed=False, address_policy=AddressPolicy())
    assert Journal(router.config.state).load().facts.pools is not None
    router.sync()
    assert router.admits(router._result.guard.pools[0].ranges[0].first)  # type: ignore[index]


@pytest.mark.parametrize("sources", [(), ("198.51.100.0/24",)], ids=["everybody", "some"])
def test_what_has_found_its_service_goes_with_it(router: LabRouter, sources: tuple[str, ...]) -> None:
    router.synced()
    router.restart(listed=False)
    router.lab.router.nft(f"add element inet nftsync services4 {{ {WEB4} . tcp . 80, {OTHER4} . tcp . 80 }}")
    for kind in ("Service", "Nft"):
        with router._caches[kind].relist() as relist:
            for raw in router._cluster[kind].values():
                relist.put(raw)
    router.sync()
    assert keys(router) == {f"{WEB4} . tcp . 80", f"{OTHER4} . tcp . 80"}, "MetalLB's lists are not complete"
    web = service("web", WEB4, sources=sources)
    router._caches["Service"].put(web)
    router.sync()
    assert keys(router) == {" . ".join([WEB4, "tcp", "80", *sources]), f"{OTHER4} . tcp . 80"}
    assert not router.sync(resync=True).drift
    router._caches["Service"].delete(web)
    router.sync()
    router.sync(resync=True)
    assert keys(router) == {f"{OTHER4} . tcp . 80"}


def test_tables_that_come_before_this_process_has_changed_any_are_not_emptied(router: LabRouter) -> None:
    router.put(service("web", WEB4))
    router.synced()
    saved = router.place.run(["nft", "list", "ruleset"]).stdout
    router.forget()
    router.lab.router.nft("flush ruleset")
    router._begin(listed=False)
    router.sync()
    router.lab.router.nft(saved)
    with router._caches["Nft"].relist() as relist:
        relist.put(nft())
    router.sync()
    assert keys(router) == {f"{WEB4} . tcp . 80"}


def test_addresses_without_a_service_of_an_earlier_version_put_no_list_in_doubt(router: LabRouter) -> None:
    router.put(service("web", WEB4))
    router.synced()
    router.restart(listed=False)
    memory = router._record.memory
    memory.services[Name("", f"{OTHER4}-0")] = replace(
        memory.services[Name("default", "web")], name=Name("", f"{OTHER4}-0")
    )
    router._connect(listed=False)
    with router._caches["Service"].relist() as relist:
        relist.put(service("web", WEB4))
    assert (relist.gone, relist.known) == (set(), 1)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("whole", [False, True], ids=["of one Service", "whole"])
def test_a_process_that_is_killed_while_an_endpoint_closes_leaves_it_closed(
    router: LabRouter,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    whole: bool,  # noqa: FBT001
) -> None:
    key = f"{WEB4} . tcp . 80"
    web = service("web", WEB4)
    router.put(web, service("other", OTHER4))
    router.synced()
    router.delete(web)
    real = Kernel.apply

    def apply(kernel: Kernel, text: str) -> None:
        if moment == "after":
            real(kernel, text)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Kernel, "apply", apply)
        patched.setattr(module, "GRACE", 10.0)
        with pytest.raises(Killed):
            router.sync(resync=True) if whole else router.place.call(router._reconciler.sync)
    assert key in Journal(router.config.state).load().closed
    if moment == "before":  # and a reboot
        router.lab.router.nft("flush ruleset")
        (router.config.runtime / "since-boot").unlink()
    router.restart(listed=False)
    router.sync()
    held = router.kernel.read().ruleset.elements[INET]
    assert set(held["closed4"]) == {key}
    assert set(held["services4"]) == {f"{OTHER4} . tcp . 80"}


def test_what_the_kernel_did_not_let_close_is_not_remembered_as_closed(
    router: LabRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = service("web", WEB4)
    router.put(web)
    router.synced()
    router.delete(web)

    def refuse(*_: object) -> None:
        raise KernelError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Kernel, "apply", refuse)
        patched.setattr(Kernel, "apply_lines", refuse)
        assert router.sync().outcome is Outcome.FAILED
    router._record.finish()
    assert Journal(router.config.state).load().closed == {}
    router.restart(listed=False)
    router.sync()
    assert keys(router) == {f"{WEB4} . tcp . 80"}
    router.lists()
    router.synced()
    assert set(router.kernel.read().ruleset.elements[INET]["closed4"]) == {f"{WEB4} . tcp . 80"}


def test_the_kernel_s_closed_endpoints_count_if_the_memory_has_lost_them(router: LabRouter) -> None:
    web = service("web", WEB4)
    router.put(web)
    router.synced()
    router.delete(web)
    router.synced()
    router.forget()
    router.restart()
    router.synced()
    assert set(router.kernel.read().ruleset.elements[INET]["closed4"]) == {f"{WEB4} . tcp . 80"}
    router._record.finish()
    assert set(Journal(router.config.state).load().closed) == {f"{WEB4} . tcp . 80"}


@pytest.mark.parametrize("sources", [(), ("198.51.100.0/24",)], ids=["everybody", "some"])
def test_what_nobody_has_decided_about_is_not_closed_and_its_refused_sources_are(
    router: LabRouter, sources: tuple[str, ...]
) -> None:
    web, key = service("web", WEB4, sources=sources), f"{WEB4} . tcp . 80"
    router.put(web)
    router.synced()
    router.forget()
    router._cluster["Service"].clear()
    router.restart(listed=False)
    router.sync()
    assert keys(router) == {" . ".join([key, *sources])}
    held = router.kernel.read().ruleset.elements[INET]
    assert set(held["closed4"]) == ({key} if sources else set())
    assert router._record.memory.closed == {}
    assert router._result.cut == {}
    router.lists()
    router.sync()
    assert keys(router) == set()
    assert set(router.kernel.read().ruleset.elements[INET]["closed4"]) == {key}
    assert set(router._result.cut) == {key}


def test_an_address_that_the_guard_refuses_does_not_count_as_closed(router: LabRouter) -> None:
    stray = service("stray", OUTSIDE4)
    router.put(POOL, stray)
    router.synced()
    router.restart(listed=False)
    router.sync()
    router.delete(stray)
    router.lists()
    router.synced()
    assert set(router.kernel.read().ruleset.elements[INET]["closed4"]) == set()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("deleted", [False, True])
def test_a_process_that_is_killed_in_a_change_leaves_no_mixture_of_two_versions(
    router: LabRouter,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    deleted: bool,  # noqa: FBT001
) -> None:
    old, new = (
        service("web", "172.30.254.1"),
        service("web", "172.30.254.1", ports=[("TCP", 443)], sources=["192.0.2.0/24"]),
    )
    router.put(old)
    router.synced()
    (router.delete if deleted else router.put)(old if deleted else new)

    def run() -> None:
        if moment == "after":
            router.sync()
        else:
            with monkeypatch.context() as patched:
                patched.setattr(Kernel, "apply", killed)
                router.sync()

    def killed(_: Kernel, __: str) -> None:
        raise Killed

    killed_after(monkeypatch, run)
    router.restart(listed=False)
    router.sync()
    found = router.kernel.read().ruleset.elements[INET]
    assert set(found["services4"]) == set()
    assert set(found["sources4"]) == (set() if deleted else {"172.30.254.1 . tcp . 443 . 192.0.2.0/24"})
