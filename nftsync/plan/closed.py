"""Closed endpoints: each is an address, protocol and port that had a pinhole and has none now.

The kernel drops packets to them, whoever began the connection (see ruleset.inet), even after their
address has left the pools. An endpoint is forgotten when it opens again. It is also forgotten when
it is old and conntrack has no connection of it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from nftsync.objects.address import Network
from nftsync.objects.service import Protocol
from nftsync.policy.pinholes import Pinhole

MAX = 65_536  # remembered endpoints; the oldest ones of the addresses with the most go first
# Seconds: conntrack keeps a silent TCP connection for so long (nf_conntrack_tcp_timeout_established).
OLD = 432_000


@dataclass(frozen=True, slots=True)
class Closing:
    """A change of the closed endpoints. Keys are those of pinholes.

    added: endpoints that close, each with the time in Unix seconds.  forgotten: endpoints to drop.
    """

    added: Mapping[str, int] = field(default_factory=dict)
    forgotten: Collection[str] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.forgotten)

    def apply(self, closed: dict[str, int]) -> None:
        """Change the closed endpoints; the latest come last."""
        for key in (*self.forgotten, *self.added):
            closed.pop(key, None)
        closed.update(self.added)

    def then(self, later: "Closing") -> "Closing":
        """Both changes as one."""
        gone = {*later.forgotten, *later.added}
        added = {key: when for key, when in self.added.items() if key not in gone} | dict(later.added)
        return Closing(added, sorted({*self.forgotten, *later.forgotten} - added.keys()))

    def undone(self, closed: Mapping[str, int]) -> "Closing":
        """The change back to these closed endpoints."""
        before = {key: closed[key] for key in (*self.forgotten, *self.added) if key in closed}
        return Closing(before, [key for key in self.added if key not in closed])


NOTHING_CLOSES = Closing()


def closing(
    closed: Mapping[str, int],
    before: Iterable[str],
    after: Collection[str],
    now: int,
    idle: Collection[str] = (),
) -> Closing:
    """The change that follows when the endpoints `after` are open in place of `before`.

    closed: the closed endpoints, the oldest first.  now: Unix seconds.
    idle: closed endpoints of which conntrack has no connection.
    """
    added = dict.fromkeys(sorted(key for key in before if key not in after), now)
    forgotten = {key for key in after if key in closed}
    forgotten.update(key for key in idle if key not in added and now - closed.get(key, now) >= OLD)
    if len(closed) - len(forgotten) + sum(key not in closed for key in added) > MAX:
        held = (key for key in closed if key not in forgotten and key not in added)
        excess = set(_excess([*held, *added]))
        forgotten.update(key for key in excess if key in closed)
        added = {key: when for key, when in added.items() if key not in excess}
    return Closing(added, sorted(forgotten))


def _excess(keys: Sequence[str]) -> list[str]:
    """The endpoints to forget: nobody's many endpoints crowd out the few of another address.

    keys: the oldest first.
    """
    counts = Counter(key.partition(" ")[0] for key in keys)
    ranked = []  # an address' newest endpoint has rank 1
    for age, key in enumerate(keys):
        address = key.partition(" ")[0]
        ranked.append((-counts[address], age, key))
        counts[address] -= 1
    ranked.sort()
    room = MAX // 64  # for the next ones: to rank all of them takes a tenth of a second
    return [key for _, _, key in ranked[: len(keys) - MAX + room]]


def old(closed: Mapping[str, int], now: int) -> frozenset[str]:
    """The endpoints to forget as soon as conntrack has no connection of them."""
    return frozenset(key for key, when in closed.items() if now - when >= OLD)


Cut = Mapping[str, tuple[Network, ...]]  # endpoints whose connections end, and the sources whose connections stay


def cut(closed: Iterable[str], before: Mapping[str, Pinhole], after: Mapping[str, Pinhole]) -> Cut:
    """The connections that end: of closed endpoints, and of pinholes with other sources than before."""
    narrowed = {
        key: hole.sources
        for key, hole in after.items()
        if hole.sources is not None and (key not in before or before[key].sources != hole.sources)
    }
    return dict.fromkeys(closed, ()) | narrowed


def is_key(text: str) -> bool:
    """True if the text is the key of a pinhole, in our notation."""
    address, _, rest = text.partition(" . ")
    protocol, _, port = rest.partition(" . ")
    if "%" in address or not (port.isascii() and port.isdecimal() and len(port) <= 5):
        return False
    try:
        same = str(ip_address(address)) == address and Protocol(protocol) and str(int(port)) == port
    except ValueError:
        return False
    return bool(same) and 1 <= int(port) <= 65535
