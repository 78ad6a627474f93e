"""Which network interfaces are the public network.

You name the public NICs. Their packets can reach the filter under the name of another interface: a
bridge, a bond, a VLAN. So nftsync works the interfaces out from the kernel's links.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from nftsync.objects.nft import Nics

VRF = "vrf"
OVS = "openvswitch"  # an internal port; ports of hardware have the datapath as master
_SHARED = ("macvlan", "macvtap", "ipvlan", "ipvtap")  # the parent's ingress hook sees their packets, too
_OWN_WIRE = ("vlan", *_SHARED)
_WRITABLE = re.compile(r"[!#-)+-\[\]-~]{1,15}")


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface. Source: rtnetlink(7), ip-link(8).

    kind: of a virtual interface (IFLA_INFO_KIND), else "".  master: index of its master, 0 for none.
    lower: index of the interface that carries it in this namespace, such as a VLAN's parent; 0 for
    none.
    addressed: whether it has an address. IPv6's link-local ones do not count.
    """

    index: int
    name: str
    altnames: frozenset[str] = frozenset()
    kind: str = ""
    master: int = 0
    lower: int = 0
    addressed: bool = False


@dataclass(frozen=True, slots=True)
class Uplink:
    """A route that can lead to the public network. what: "a default route", or a network and its source."""

    index: int
    what: str


@dataclass(frozen=True, slots=True)
class PublicSide:
    """The interfaces that count as the public network.

    names: their names, and those of missing public NICs; None if every interface that is not inside
    is public.
    indices: their indices (if_nametoindex(3)). An index keeps an interface public under another name.
    inside: the names that count as inside; None for every interface that is not public.
    devices: the interfaces whose ingress hooks together see each packet once, as it comes in.
    trunks: those of `devices` whose hook also sees the packets of VLANs, which come in there as well.
    named: the public NICs as you named them.  missing: the names that no interface has.
    found: the name of each public NIC that is there, with its index.
    renamed: those of `missing` whose interface is still there, with its present name. It stays public.
    warnings: sentences about interfaces that you may have forgotten.
    """

    names: frozenset[str] | None = None
    indices: frozenset[int] = frozenset()
    inside: frozenset[str] | None = None
    devices: tuple[str, ...] = ()
    trunks: frozenset[str] = frozenset()
    named: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    found: frozenset[tuple[str, int]] = frozenset()
    renamed: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def unseen(cls, nics: Nics) -> "PublicSide":
        """The interfaces before a look at the kernel's links: the named ones, as if they were there."""
        inside = frozenset(nics.inside) or None
        return cls(frozenset(nics.public) or None, inside=inside, devices=tuple(sorted(nics.public)), named=nics.public)

    @property
    def absence(self) -> str:
        """The consequence of missing public NICs, as a sentence; "" if all are there."""
        told = [f"{name} is called {now!a} now, which is public until nftsync restarts" for name, now in self.renamed]
        if lost := [name for name in self.missing if name not in dict(self.renamed)]:
            gone = f"{' and '.join(lost)} {'is' if len(lost) == 1 else 'are'} not there"
            other = f"{self} counts as public, and no ingress limit is in force"
            told.append(f"{gone}: {other if self.names is None else 'only the other public NICs are'}")
        return "; ".join(told)

    def __str__(self) -> str:
        """For people: the public interfaces, and the missing ones."""
        if self.names is None:
            return "every interface" if self.inside is None else "every interface that is not inside"
        return ", ".join(sorted(self.names - set(self.missing)))


def is_writable(name: str) -> bool:
    """Whether nft's text can hold an interface's name: it has no quote, wildcard or backslash."""
    return _WRITABLE.fullmatch(name) is not None


def public_side(
    links: Iterable[Link], nics: Nics, uplinks: Collection[Uplink] = (), before: PublicSide | None = None
) -> PublicSide:
    """The public interfaces among all links. before: those of an earlier look."""
    picture = _Picture(links, nics, dict(before.found) if before else {})
    picture.grow()
    public = picture.public
    written = {index: link for index, link in public.items() if is_writable(link.name)}
    names = frozenset(link.name for link in written.values())
    devices = sorted((link for link in picture.devices() if is_writable(link.name)), key=lambda link: link.name)
    return PublicSide(
        names | set(picture.missing) if public else None,
        frozenset(public),
        picture.inside(),
        tuple(link.name for link in devices),
        frozenset(link.name for link in devices if picture.carries_vlans(link)),
        nics.public,
        picture.missing,
        picture.found,
        picture.renamed,
        (
            *picture.warnings(),
            *(f"nft cannot write the name of the public interface {public[i].name!a}" for i in public.keys() - written),
            *picture.warnings_of(uplinks),
        ),
    )


class _Picture:
    """The links of one network namespace, the ways between them, and the public ones by index."""

    def __init__(self, links: Iterable[Link], nics: Nics, before: Mapping[str, int]) -> None:
        """before: the indices of the public NICs at an earlier look."""
        self._links = {link.index: link for link in links}
        self._inside = {name: self._named(name) for name in nics.inside}
        found = {name: self._named(name) for name in nics.public}
        self.missing = tuple(name for name, link in found.items() if link is None)
        for name in self.missing:  # somebody may have renamed it; its wire is the same
            link = self._links.get(before.get(name, 0))
            found[name] = link if link not in (*self._inside.values(), *found.values()) else None
        self.found = frozenset((name, link.index) for name, link in found.items() if link)
        is_any_there = len(self.missing) < len(found)  # else every interface counts as public
        self.renamed = tuple((name, link.name) for name in self.missing if is_any_there and (link := found[name]))
        self._roots = [link for link in found.values() if link and is_any_there]
        # The same interface under two names: to call it public is the safer word.
        self._kept = {link.index for link in self._inside.values() if link and link not in self._roots}
        self._addressed: dict[int, Link] = {}  # they carry a public interface
        self.public: dict[int, Link] = {}

    def grow(self) -> None:
        """Find the public interfaces: the named ones and their masters, what carries them, what they carry."""
        for root in self._roots:
            ports = self._ports(root) if root.kind == VRF else []
            # A VRF is public itself, and so is each new port, unless it holds an inside interface.
            for link in (*ports, *([] if any(port.index in self._kept for port in ports) else [root])):
                self._add(link)
        below = list(self.public.values())
        while below:
            link = below.pop()
            below.extend(port for port in self._ports(link) if link.kind != VRF and port.index not in self.public)
            carrier = self._links.get(link.lower)
            if carrier is None or carrier.index in self.public:
                continue
            if self._is_kept_apart(carrier):
                self._addressed[carrier.index] = carrier
            else:
                below.extend(self._add(carrier))
        while [link for link in self._carried() if not self._is_kept_apart(link) and self._add(link)]:
            pass

    def inside(self) -> frozenset[str] | None:
        """The names that count as inside: the named interfaces and their masters; None without names.

        A public interface is never inside. A missing one counts as soon as it is there.
        """
        if not self._inside:
            return None
        links = [one for link in self._inside.values() if link for one in (link, *self._masters(link))]
        names = {link.name for link in links if link.index not in self.public and is_writable(link.name)}
        return frozenset(names | self._inside.keys() - {link.name for link in self.public.values()})

    def devices(self) -> list[Link]:
        """The interfaces to attach rate limits to: their hooks together see each packet once.

        If packets reach a public master by a port that is public, or that a public interface carries,
        then they come in by its other ports as well.
        """
        entries = dict(self.public)
        for master in self.public.values():
            ports = [port for port in self._ports(master) if port.index not in self._kept]
            if master.kind not in (VRF, OVS) and any({port.index, port.lower} & self.public.keys() for port in ports):
                entries.update((port.index, port) for port in ports)
        return [link for link in entries.values() if not self._is_seen_before(link, entries)]

    def _is_seen_before(self, link: Link, entries: Mapping[int, Link]) -> bool:
        """Whether the hook of another entry sees a link's packets, or none does at the link itself."""
        of_port = any(other.master == link.index for other in entries.values())
        ovs = link.kind == OVS and any(self._kind(other.master) == OVS for other in entries.values())
        return of_port or ovs or link.kind == VRF or (link.kind in _SHARED and link.lower in entries)

    def carries_vlans(self, link: Link) -> bool:
        above = {link.index, *(master.index for master in self._masters(link))}
        return any(other.kind == "vlan" and other.lower in above for other in self._links.values())

    def warnings(self) -> Iterator[str]:
        for name, inner in self._inside.items():
            if inner is None:
                yield f"there is no interface {name}, which inside_nics names"
                continue
            public = next((link for link in (inner, *self._masters(inner)) if link.index in self.public), None)
            if public is not None:
                where = "counts" if public is inner else f"its packets come in by {public.name}, which counts"
                yield f"{name} is in inside_nics, but {where} as public"
        for root in self._roots:
            if root.kind == VRF and root.index in self.public and (ports := self._ports(root)):
                names = ", ".join(sorted(port.name for port in ports))
                yield f"{root.name} is a VRF: all its ports count as public ({names}), except those in inside_nics"
        for link in self._addressed.values():
            if link.index not in self._kept:
                yield f"{link.name} carries a public interface, but has an address: it does not count as public"
        for link in self._carried():
            counts = any(master.index in self.public for master in self._masters(link))
            if link.kind in _OWN_WIRE and not counts and not self._is_inside(link):
                yield f"{link.name} shares a public interface's wire, but has an address: it does not count as public"

    def warnings_of(self, uplinks: Iterable[Uplink]) -> Iterator[str]:
        for uplink in sorted(uplinks, key=lambda uplink: (uplink.index, uplink.what)):
            link = self._links.get(uplink.index)
            if link is not None and link.index not in self.public and link.kind != VRF and not self._is_inside(link):
                yield f"{link.name} has {uplink.what}, but does not count as public"

    def _named(self, name: str) -> Link | None:
        """The interface with this name, or else with this alternative name."""
        links = self._links.values()
        return next((link for link in links if link.name == name), None) or next(
            (link for link in links if name in link.altnames), None
        )

    def _add(self, link: Link) -> list[Link]:
        """Count an interface and its masters as public; return the new ones.

        A master is public even if you called it inside, because its packets do not tell their port. A
        port of Open vSwitch may belong to another bridge.
        """
        if link.index in self._kept:
            return []
        new = [
            one
            for one in (link, *self._masters(link))
            if one.index not in self.public and (one.kind != OVS or one.index not in self._kept)
        ]
        self.public.update((one.index, one) for one in new)
        return new

    def _ports(self, master: Link) -> list[Link]:
        return [link for link in self._links.values() if link.master == master.index]

    def _masters(self, link: Link, depth: int = 8) -> Iterator[Link]:
        """The masters of an interface at any depth: its packets carry their names.

        A VRF is none of them: there the packet still tells its port (`meta sdifname`). The kernel does
        not tell to which bridge of Open vSwitch a port belongs, so every internal port can be the one.
        """
        master = self._links.get(link.master)
        if master is None or master.kind == VRF or not depth:  # the kernel allows a depth of 8
            return
        yield master
        if master.kind == OVS:
            yield from (port for port in self._links.values() if port.kind == OVS and port is not master)
        yield from self._masters(master, depth - 1)

    def _carried(self) -> list[Link]:
        """The interfaces that a public one carries, and that are not public."""
        lowers = self.public.keys()
        return [link for link in self._links.values() if link.lower in lowers and link.index not in lowers]

    def _has_purpose(self, link: Link) -> bool:
        """Whether an interface, or a master of it, has an address: then somebody gave it a purpose."""
        return link.addressed or any(master.addressed for master in self._masters(link))

    def _is_kept_apart(self, link: Link) -> bool:
        return self._has_purpose(link) or self._is_inside(link)

    def _is_inside(self, link: Link) -> bool:
        """Whether you have called an interface, or a master of it, inside."""
        return any(one.index in self._kept for one in (link, *self._masters(link)))

    def _kind(self, index: int) -> str:
        link = self._links.get(index)
        return link.kind if link else ""
