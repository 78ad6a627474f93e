"""The router's network interfaces through rtnetlink: is the public NIC there, its ingress qdisc, and who changes.

Source: rtnetlink(7), tc(8). pyroute2's errors are wrapped here.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_LINK

INGRESS_KINDS = ("ingress", "clsact")  # either one offers the ingress hook; a NIC can have one of them
_CHECK = 1.0  # seconds until a stopped listener notices


class LinkError(Exception):
    """The kernel refused to tell of a network interface, or to change it."""


class Links:
    """Network interfaces of this network namespace. One thread owns a Links. Changes need CAP_NET_ADMIN."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def close(self) -> None:
        self._netlink.close()

    def index(self, name: str) -> int | None:
        """The interface's index, or None while there is no such interface."""
        with _wrapped(f"look for the interface {name}"):
            found = self._netlink.link_lookup(ifname=name)
            return int(found[0]) if found else None

    def ingress_kind(self, index: int) -> str | None:
        """Which qdisc of INGRESS_KINDS the interface has, if any."""
        with _wrapped("list queueing disciplines"):
            kinds = [qdisc.get_attr("TCA_KIND") for qdisc in self._netlink.get_qdiscs(index=index) if qdisc["index"] == index]
        return next((str(kind) for kind in kinds if kind in INGRESS_KINDS), None)

    def add_ingress(self, index: int) -> None:
        """Give the interface an ingress qdisc. Raises LinkError."""
        with _wrapped("add an ingress qdisc"):
            self._netlink.tc("add", "ingress", index)

    def remove_ingress(self, index: int) -> None:
        """Take its ingress qdisc away again. Raises LinkError."""
        with _wrapped("remove an ingress qdisc"):
            self._netlink.tc("del", "ingress", index)


@contextmanager
def _wrapped(doing: str) -> Iterator[None]:
    try:
        yield
    except (NetlinkError, OSError) as fault:
        raise LinkError(f"the kernel refused to {doing}: {fault}") from fault


def listen(wake: Callable[[], None], stop: threading.Event) -> None:
    """Call `wake` whenever a network interface appears, changes or goes, until `stop`. Blocks: for a thread of its own."""
    while not stop.is_set():
        try:
            _listen(wake, stop)
        except (NetlinkError, OSError):  # ENOBUFS: more happened than the socket holds; what it was has to be looked up
            wake()
            stop.wait(_CHECK)


def _listen(wake: Callable[[], None], stop: threading.Event) -> None:
    with IPRoute() as netlink:
        netlink.bind(groups=RTMGRP_LINK)
        while not stop.is_set():
            if select.select([netlink], [], [], _CHECK)[0]:
                for _ in netlink.get():
                    pass
                wake()
