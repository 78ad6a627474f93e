"""Who listens for changes of network interfaces goes on listening."""

from __future__ import annotations

import errno
import threading

import pytest

from nftsync import links
from nftsync.links import LinkError, Links, listen
from nftsync.namespace import Namespace
from tests.labtools import eventually, needs_root

pytestmark = needs_root


def test_after_more_changes_than_the_socket_holds_it_looks_anew_and_hears_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    woken, stop, real = threading.Semaphore(0), threading.Event(), links._listen
    faults = [OSError(errno.ENOBUFS, "No buffer space available")]

    def listening(*arguments: object) -> None:
        if faults:
            raise faults.pop()
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(links, "_listen", listening)
    monkeypatch.setattr(links, "_CHECK", 0.05)
    namespace = Namespace()
    thread = threading.Thread(target=namespace.call, args=(listen, woken.release, stop))
    try:
        thread.start()
        assert woken.acquire(timeout=5), "what was lost is looked up"
        number = iter(range(1000))

        def heard() -> bool:
            namespace.ip(f"link add v{next(number)} type veth")
            return woken.acquire(timeout=0.1)

        assert eventually(heard)
    finally:
        stop.set()
        thread.join()
        namespace.close()


def test_a_refusal_of_the_kernel_is_a_link_error() -> None:
    namespace = Namespace()
    network = namespace.call(Links)
    try:
        namespace.ip("link set lo up")
        lo = network.index("lo")
        assert lo is not None
        network.add_ingress(lo)
        with pytest.raises(LinkError, match="add an ingress qdisc"):
            network.add_ingress(lo)
        assert network.index("absent0") is None
    finally:
        network.close()
        namespace.close()
