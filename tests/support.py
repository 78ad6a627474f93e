"""Helpers of several tests: a network namespace for rulesets, and strategies for hostile input."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest
import yaml
from hypothesis import strategies as st
from nftables import Nftables

from nftsync.config import Filters
from nftsync.kernel.nft import Kernel
from nftsync.objects.address import Network
from nftsync.objects.names import Name
from nftsync.objects.nft import Nics
from nftsync.objects.ratelimit import RateLimit
from nftsync.objects.service import Port, Protocol, Service
from nftsync.policy.pinholes import PinholeIndex
from nftsync.policy.public import Link, PublicSide, public_side
from nftsync.ruleset.model import INET, NAME, NETDEV, Elements, Ruleset
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset

ROOT = Path(__file__).parent.parent


def side(*names: str) -> PublicSide:
    """Public interfaces of these names."""
    return PublicSide.unseen(Nics(names))


def absent(*names: str) -> PublicSide:
    """The public side while none of these public NICs is there."""
    return public_side((), Nics(names))


_CLONE_NEWNET = 0x40000000

P = ParamSpec("P")
T = TypeVar("T")


class Netns:
    """A network namespace with its own thread: only `run` works inside it.

    It has lo and the objects that `run` makes. close() deletes it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns")
        self._thread.submit(_unshare).result()
        self.kernel = self.run(Kernel)
        self._nft = self.run(Nftables)
        self._nft.set_stateless_output(True)
        self._nft.set_terse_output(True)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` inside."""
        return self._thread.submit(function, *args, **kwargs).result()

    def command(self, *argv: str, text: str = "", check: bool = True) -> str:
        """Run a program inside; returns its output."""
        done = self.run(_run, argv, text)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)[:200]}: {done.stderr}")
        return done.stdout if not done.returncode else done.stderr

    def nft(self, text: str) -> str:
        """Run nft commands, whole or not at all."""
        return self.command("nft", "-f", "-", text=text)

    def listing(self) -> str:
        """Our tables as nft lists them, without elements and counters."""
        listed = [self._nft.cmd(f"list table {family} {NAME}") for family in (INET, NETDEV)]
        return "\n".join(output for code, output, _ in listed if code == 0)

    def add_nics(self, first: str, second: str) -> None:
        """Two NICs, tied to each other."""
        self.command("ip", "link", "add", first, "type", "veth", "peer", "name", second)

    def close(self) -> None:
        del self.kernel, self._nft
        self._thread.shutdown()


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _run(argv: tuple[str, ...], text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=False)


def count_yaml_events(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the events that PyYAML makes of texts from now on: a measure of their cost."""
    parse, counted = yaml.parse, Counter[str]()

    def counting(*arguments: Any, **options: Any) -> Iterator[Any]:
        for event in parse(*arguments, **options):
            counted["events"] += 1
            yield event

    monkeypatch.setattr(yaml, "parse", counting)
    return counted


# --- strategies ---------------------------------------------------------------------------------------

json_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "LoadBalancer", "80"])
)
json_values = st.recursive(
    json_leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)

seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}


@st.composite
def limits(draw: st.DrawFn) -> RateLimit:
    """Limits that the kernel accepts."""
    per = draw(st.sampled_from(sorted(seconds)))
    if draw(st.booleans()):
        rate = draw(st.integers(1, 1000) | st.integers(1, 10**9))
        return RateLimit(
            rate, per, draw(st.integers(1, min(2**32 - 1, (2**64 - 1) // (seconds[per] * 10**9 // rate)))), packets=True
        )
    room = (2**64 - 1) // (seconds[per] * 10**9)
    rate = draw(st.integers(1, room - 1) | st.sampled_from([1024, 1024 * 1024]).filter(lambda each: each < room))
    return RateLimit(rate, per, draw(st.integers(0, min(room - rate, 2**32 - 1))), packets=False)


_networks: st.SearchStrategy[Network] = st.sampled_from(
    [
        *map(
            IPv4Network,
            ("0.0.0.0/0", "10.0.0.0/8", "128.0.0.0/1", "198.51.100.0/24", "198.51.100.7/32", "203.0.113.128/25"),
        ),
        *map(IPv6Network, ("::/0", "2001:db8::/32", "2001:db8:7::1/128", "::ffff:0:0/96", "64:ff9b::/96", "fe80::/10")),
    ]
)
_addresses = ("192.0.2.1", "192.0.2.2", "203.0.113.9", "2001:db8::1", "64:ff9b::102:304", "::102:304")


def separate(networks: tuple[Network, ...]) -> tuple[Network, ...]:
    """Networks without those inside of another one, as parsed Services have them."""

    def held(inner: Any, outer: Any) -> bool:
        return inner != outer and inner.version == outer.version and bool(inner.subnet_of(outer))

    return tuple(sorted((each for each in set(networks) if not any(held(each, other) for other in networks)), key=str))


@st.composite
def services(draw: st.DrawFn, names: tuple[str, ...] = ("a", "b", "c")) -> Service:
    """Parsed Services that meet each other's addresses and ports often."""
    chosen = st.lists(st.sampled_from(_addresses), unique=True, max_size=2)
    ports = st.lists(
        st.builds(Port, st.sampled_from(Protocol), st.sampled_from([53, 80, 65535])), unique=True, max_size=3
    )
    return Service(
        name=Name(draw(st.sampled_from(["default", "other"])), draw(st.sampled_from(names))),
        uid=draw(st.sampled_from(["", "u1", "u2"])),
        created=draw(st.sampled_from(["", "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"])),
        load_balancer_class=draw(st.sampled_from(["", "example.com/other"])),
        addresses=tuple(ip_address(each) for each in draw(chosen)),
        ports=tuple(draw(ports)),
        sources=draw(st.none() | st.lists(_networks, max_size=3).map(tuple).map(separate)),
        limit=draw(st.none() | limits()),
        rejections=(),
        limit_egress=draw(st.none() | limits()),
    )


# --- rulesets in a kernel ------------------------------------------------------------------------------

NICS = ("pub0", "pub1")

LOCAL_CHAINS = (
    "",
    "\t\ttcp dport 9 accept\n",
    '\t\tip saddr { 192.0.2.1, 192.0.2.2 } counter comment "a } brace" # {\n\t\tudp dport 9 drop\n',
)


@st.composite
def router_settings(draw: st.DrawFn) -> Settings:
    """Settings for a router that has both NICS."""
    chosen = draw(st.lists(st.sampled_from(NICS), unique=True, max_size=len(NICS)))
    inside = [nic for nic in NICS if nic not in chosen] if draw(st.booleans()) else []
    links = [Link(number, nic) for number, nic in enumerate(NICS, 2) if draw(st.booleans())]
    nics = Nics(tuple(chosen), tuple(inside))
    interfaces = draw(st.sampled_from([PublicSide(), PublicSide.unseen(nics), public_side(links, nics)]))
    bgp, dropall, rateshape, ssh, stateless = draw(st.tuples(*5 * [st.booleans()]))
    local_chain = draw(st.sampled_from(LOCAL_CHAINS))
    return Settings(interfaces, bgp, dropall, rateshape, ssh, local_chain, stateless=stateless)


def rulesets() -> st.SearchStrategy[Ruleset]:
    """Rulesets of random Services and random settings."""
    several = st.lists(services(), max_size=4, unique_by=lambda each: each.name)
    desired = several.map(lambda found: PinholeIndex(found, Filters()).pinholes.values())
    return st.builds(ruleset, desired, router_settings())


def filled(elements: Mapping[str, Elements]) -> dict[str, Elements]:
    """Elements without empty sets."""
    return {
        family: {name: members for name, members in sets.items() if members}
        for family, sets in elements.items()
        if any(sets.values())
    }


def blocks(listing: str) -> list[str]:
    """The sets and chains of a listing, in an order that does not depend on when each was made."""
    return sorted(re.findall(r"^table [^\n]*|^\t\w+ [^{]*\{.*?^\t}", listing, re.MULTILINE | re.DOTALL))


@dataclass(frozen=True)
class Fresh:
    """The rules of a freshly loaded ruleset, as nft lists them and as readback reads them."""

    listing: str
    rules: str

    @classmethod
    def of(cls, netns: Netns) -> Fresh:
        return cls(netns.listing(), netns.run(netns.kernel.read_tables).rules)


def same(netns: Netns, wanted: Ruleset, fresh: Fresh) -> None:
    """Assert that the kernel holds exactly this."""
    found = netns.run(netns.kernel.read)
    assert filled(found.ruleset.elements) == filled(wanted.elements)
    assert found.ruleset.tables.keys() == wanted.tables.keys()
    for family, table in wanted.tables.items():
        standing = found.ruleset.tables[family]
        assert (standing.sets, standing.foreign_objects, standing.flags) == (table.sets, (), table.flags)
        assert {name: chain.hook for name, chain in standing.chains.items()} == {
            name: chain.hook for name, chain in table.chains.items()
        }
    assert blocks(netns.listing()) == blocks(fresh.listing)
    assert found.rules == fresh.rules, "it does not matter in which order things were made"
