"""Addresses, networks, ranges and sets of addresses: parsed, merged, cut, and in nft's notation."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import NamedTuple

from nftsync.objects.names import Malformed, quote, require

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_BROADCAST = IPv4Address("255.255.255.255")
_LONGEST = 128  # characters; two IPv6 addresses and a dash need 79
_LEADING_ZEROS = re.compile(r"(?<![0-9/])(?=[0-9]{1,9}(?![0-9]))0+(?=[0-9])")  # of an octet, which can have 9 digits
_BARE = re.compile(r"[0-9.]{7,15}|[0-9A-Fa-f:.]{2,45}")  # probably an address
_CIDR = re.compile(r"[0-9A-Fa-f.:]{2,45}/[0-9]{1,3}")


def parse_address(text: object) -> Address:
    """An IPv4 or IPv6 address that a Service can have, in its usual notation.

    Raises Malformed with a sentence.
    """
    address = read_address(text, f"{quote(text)} is not an IP address")
    if unmapped(address) is not address:
        raise Malformed(f"{quote(text)} is an IPv4 address in IPv6 notation: write {unmapped(address)}")
    special = address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
    if special or address == _BROADCAST:
        raise Malformed(f"{quote(text)} can never be a Service's address")
    return address


def read_address(text: object, complaint: str) -> Address:
    """The address in a text without a zone, which could hold anything. Raises Malformed."""
    try:
        return ip_address(text if isinstance(text, str) and "%" not in text else "")
    except ValueError:
        raise Malformed(complaint) from None


def unmapped(address: Address) -> Address:
    """The IPv4 address that an IPv4-mapped IPv6 address stands for; any other address as it is."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def parse_source_range(text: object) -> Network:
    """A CIDR. As in kube-proxy, it may have blanks around it, host bits and decimal leading zeros.

    Raises Malformed with a sentence.
    Source: Go's net.ParseCIDR before 1.17 (k8s.io/utils/net.ParseCIDRSloppy).
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise Malformed(f"{quote(text)} is not a CIDR")
    cidr = text.strip(" \t\r\n")
    require("/" in cidr, f"{quote(text)} has no prefix length: write e.g. 192.0.2.1/32")
    plain = cidr if ":" in cidr else _LEADING_ZEROS.sub("", cidr)
    network = _read_network(plain, f"{quote(text)} is not a CIDR such as 192.0.2.0/24")
    mapped = unmapped(network.network_address)
    if mapped.version != network.version and network.prefixlen >= 96:
        raise Malformed(f"{quote(text)} is an IPv4 range in IPv6 notation: write {mapped}/{network.prefixlen - 96}")
    return network


def _read_network(text: str, complaint: str) -> Network:
    """The network in a CIDR, without its host bits. Raises Malformed."""
    try:
        return ip_network(text if _CIDR.fullmatch(text) else "", strict=False)
    except ValueError:
        raise Malformed(complaint) from None


def collapse(networks: list[Network]) -> tuple[Network, ...]:
    """The networks sorted, without duplicates and overlaps.

    nft refuses overlaps, and does not merge networks of a concatenated set itself.
    """
    return (
        *collapse_addresses(network for network in networks if isinstance(network, IPv4Network)),
        *collapse_addresses(network for network in networks if isinstance(network, IPv6Network)),
    )


class Range(NamedTuple):
    """All addresses from `first` to `last`, both of one family. str() is "first-last"."""

    first: Address
    last: Address

    @classmethod
    def of(cls, network: Network) -> Range:
        return cls(network.network_address, network.broadcast_address)

    @property
    def version(self) -> int:
        return self.first.version

    def position(self) -> tuple[int, int]:
        """A sort key: IPv4 first, then by first address."""
        return int(self.first.version), int(self.first)

    @property
    def element(self) -> str:
        """The range as nft writes it in a set: an address, else a prefix, else first-last."""
        if self.first == self.last:
            return str(self.first)
        size = int(self.last) - int(self.first) + 1
        if size & (size - 1) or int(self.first) % size:
            return str(self)
        return f"{self.first}/{self.first.max_prefixlen + 1 - size.bit_length()}"

    def overlaps(self, other: Range) -> bool:
        return (
            self.version == other.version and int(self.first) <= int(other.last) and int(other.first) <= int(self.last)
        )

    def covers(self, other: Range) -> bool:
        return self.overlaps(other) and int(self.first) <= int(other.first) and int(other.last) <= int(self.last)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def parse_range(text: object) -> Range:
    """A CIDR or "first-last", as in MetalLB's address pools. Raises Malformed with a sentence.

    As in MetalLB, this masks a CIDR's host bits, accepts blanks around the dash, refuses a bare
    address, and takes IPv4-mapped IPv6 addresses for IPv4.
    Source: MetalLB's config.ParseCIDR, Go's net.ParseCIDR and net.ParseIP.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise Malformed(f"{quote(text)} is neither a CIDR nor a range of addresses")
    if "-" in text:
        first, last = (
            read_address(end, f"{quote(end)} in the range {quote(text)} is not an IP address")
            for end in map(str.strip, text.split("-", 1))
        )
    else:
        hint = f": for one address write {text}/{128 if ':' in text else 32}" if _BARE.fullmatch(text) else ""
        complaint = f"{quote(text)} is neither a CIDR nor a range of addresses{hint}"
        first, last = Range.of(_read_network(text, complaint))
        if unmapped(first).version != unmapped(last).version:
            return Range(first, last)  # the network is wider than the mapped addresses in it
    first, last = unmapped(first), unmapped(last)
    require(first.version == last.version, f"the range {quote(text)} begins in one address family and ends in another")
    require(int(first) <= int(last), f"the range {quote(text)} begins after its end")
    return Range(first, last)


@dataclass(frozen=True, slots=True)
class AddressSet:
    """A set of addresses: sorted ranges, IPv4 first, overlaps and neighbours merged.

    So sets with the same addresses are equal.
    """

    ranges: tuple[Range, ...] = ()

    @classmethod
    def of(cls, ranges: Iterable[Range]) -> AddressSet:
        merged: list[Range] = []
        for part in sorted(ranges, key=Range.position):
            if merged and merged[-1].version == part.version and int(part.first) <= int(merged[-1].last) + 1:
                merged[-1] = Range(merged[-1].first, max(merged[-1].last, part.last, key=int))
            else:
                merged.append(part)
        return cls(tuple(merged))

    def __contains__(self, address: object) -> bool:
        return isinstance(address, IPv4Address | IPv6Address) and self.covers(Range(address, address))

    def covers(self, part: Range) -> bool:
        """Whether the set contains a whole range."""
        before = bisect_right(self.ranges, part.position(), key=Range.position)
        return before > 0 and self.ranges[before - 1].covers(part)

    def __or__(self, other: AddressSet) -> AddressSet:
        return AddressSet.of((*self.ranges, *other.ranges))

    def __and__(self, other: AddressSet) -> AddressSet:
        return self - (self - other)

    def __sub__(self, other: AddressSet) -> AddressSet:
        return AddressSet(tuple(part for whole in self.ranges for part in _without(whole, other.overlapping(whole))))

    def overlapping(self, part: Range) -> tuple[Range, ...]:
        """The ranges that share an address with `part`. Bisects: a set can have thousands."""
        start = bisect_left(self.ranges, part.position(), key=lambda known: (known.version, int(known.last)))
        end = bisect_right(self.ranges, (part.version, int(part.last)), key=Range.position)
        return self.ranges[start:end]


def _without(rest: Range, holes: Iterable[Range]) -> Iterator[Range]:
    """The range without the holes. holes: sorted; each overlaps the range."""
    for hole in holes:
        if int(rest.first) < int(hole.first):
            yield Range(rest.first, hole.first - 1)
        if int(rest.last) <= int(hole.last):
            return
        rest = Range(hole.last + 1, rest.last)
    yield rest


@dataclass(frozen=True, slots=True)
class Local:
    """The router's own addresses and networks.

    The addresses include broadcast and subnet-router anycast addresses.
    """

    addresses: frozenset[Address] = frozenset()
    networks: frozenset[Network] = frozenset()
