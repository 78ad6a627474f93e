"""The cost of a packet on its way through the router.

Measured without a firewall, with ours, and with a rule per Service.

Each firewall stands in a lab of its own. One thread sends on one CPU; over veth pairs the kernel
carries each packet through router and node before it takes the next one, so the time per packet
that arrived is its cost along the whole way.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from statistics import median

from nftsync.config import Filters
from nftsync.objects.nft import NftSpec, Nics
from nftsync.objects.service import parse_service
from nftsync.policy.pinholes import PinholeIndex
from nftsync.policy.public import PublicSide
from nftsync.ruleset.model import INET, OPERATOR_SVC, Chain, Ruleset
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from nftsync.ruleset.text import render
from tests.bench.measure import NIC, Goal, address_of, in_turns, service, spread, table
from tests.lab.lab import Lab
from tests.lab.probe import CLIENT, MARK, PEER_MAC, ROUTER_MAC, Probe, packet

COUNT = 10_000
BATCH = 64  # packets for one system call
SECONDS = 0.1  # of sending, for one sample
ROUNDS = 51
LENGTH = 100  # bytes of the IP packet
MIDDLE, LAST = COUNT // 2 + 1, COUNT - 1  # neither is rate-limited

NO_FIREWALL, OURS, OURS_LIMITS = (
    "no firewall",
    f"nftsync, {COUNT} pinholes",
    f"nftsync, {COUNT} pinholes, enable_rateshape",
)
OLD_MIDDLE, OLD_LAST = f"{COUNT} rules in a line, the middle one", f"{COUNT} rules in a line, the last one"


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]  # noqa: RUF012 ctypes' form


class _Message(ctypes.Structure):
    """struct mmsghdr, sendmmsg(2)."""

    _fields_ = [  # noqa: RUF012 ctypes' form
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)), ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t), ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    ]  # fmt: skip


def _lab(opened: ExitStack, rules: str) -> Lab:
    lab = opened.enter_context(Lab(public_nic=NIC, services=("172.20.0.0/16",)))
    if rules:
        lab.router.nft(rules)
    return lab


def _sender(opened: ExitStack, lab: Lab, number: int) -> Callable[[], float]:
    """Sends to one Service for a while; returns the seconds per packet. Every packet has to arrive."""
    probe = Probe("udp", address_of(number), 443, sport=40_000, length=LENGTH)
    frame = (
        bytes.fromhex((ROUTER_MAC + PEER_MAC).replace(":", ""))
        + b"\x08\x00"
        + packet(probe, CLIENT, 1, bytes(MARK.size))
    )
    vector = _Vector(frame, len(frame))
    messages = (_Message * BATCH)(*(_Message(vectors=ctypes.pointer(vector), vector_count=1) for _ in range(BATCH)))
    wire = opened.enter_context(lab.client.socket(socket.AF_PACKET, socket.SOCK_RAW))
    wire.bind(("eth0", 0))
    count = opened.enter_context(lab._counter("udp", address_of(number), 443))
    sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg

    def send() -> float:
        before, sent = count()[0], 0
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < SECONDS:
            handed = sendmmsg(wire.fileno(), messages, BATCH, 0)
            if handed < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            sent += handed
        arrived = count()[0] - before
        if arrived < 0.999 * sent:
            raise AssertionError(f"{arrived} of {sent} packets arrived")
        return passed / sent

    return send


def _rulesets() -> dict[str, str]:
    """The firewalls' text. The rules in a line stand where ours has its one look-up; all else is the same."""
    parsed = [parse_service(service(number, protocol="UDP"), None) for number in range(COUNT)]
    pinholes = PinholeIndex([each for each in parsed if each], Filters()).pinholes.values()
    nics = Nics((NIC,))
    spec, side = NftSpec(nics), PublicSide.unseen(nics)
    limited = Settings.of(spec, side, local_chain="")
    plain = Settings.of(replace(spec, enable_rateshape=False), side, local_chain="")
    ours = ruleset(pinholes, plain)
    line = "".join(
        f'\t\tiifname "{NIC}" ip daddr {address_of(number)} udp dport 443 accept\n' for number in range(COUNT)
    )
    standing = ours.tables[INET]
    old = replace(standing, sets={}, chains={**standing.chains, OPERATOR_SVC: Chain(line)})
    return {OURS: render(ours), OURS_LIMITS: render(ruleset(pinholes, limited)), OLD_LAST: render(Ruleset({INET: old}))}


def run() -> list[Goal]:
    allowed = os.sched_getaffinity(0)
    with ExitStack() as opened:
        labs = {name: _lab(opened, rules) for name, rules in {NO_FIREWALL: "", **_rulesets()}.items()}
        contestants = {name: _sender(opened, lab, LAST) for name, lab in labs.items()}
        contestants[OLD_MIDDLE] = _sender(opened, labs[OLD_LAST], MIDDLE)
        opened.callback(partial(os.sched_setaffinity, 0, allowed))
        os.sched_setaffinity(0, {max(allowed)})
        in_turns(contestants, 2)  # to warm up
        samples = in_turns(contestants, ROUNDS)
    table(
        f"A UDP packet of {LENGTH} bytes from client through router to node, in µs",
        ("", "median", "95 %", "samples"),
        [[name, *spread(taken, 1e6)] for name, taken in samples.items()],
    )
    added = {
        name: [each - free for each, free in zip(taken, samples[NO_FIREWALL], strict=True)]
        for name, taken in samples.items()
    }
    table(
        "What the firewall adds to that, taken turn by turn, in µs",
        ("", "median", "95 %", "samples"),
        [[name, *spread(taken, 1e6)] for name, taken in added.items() if name != NO_FIREWALL],
    )
    return [
        _goal(f"{what}: {old} / {OURS_LIMITS}", median(costs[old]) / median(costs[OURS_LIMITS]))
        for what, costs in (("the whole way", samples), ("added by the firewall", added))
        for old in (OLD_MIDDLE, OLD_LAST)
    ]


def _goal(what: str, ratio: float) -> Goal:
    return Goal(f"{what}: {ratio:.0f} times (goal: at least 40)", ratio >= 40)
