"""The words of `nftsync explain`: they name a packet or a Service."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nftsync.objects.address import Address, parse_address
from nftsync.objects.names import NAME, Name, quote
from nftsync.objects.service import Protocol

_FORMS = "write [SOURCE] ADDRESS:PORT[/tcp|udp|sctp], e.g. 192.0.2.1:53/udp or [2001:db8::1]:443, or NAMESPACE/NAME"
_TARGET = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15})):([1-9][0-9]{0,4})(?:/(tcp|udp|sctp|TCP|UDP|SCTP))?")
_SERVICE = re.compile(f"({NAME.pattern})/({NAME.pattern})")


@dataclass(frozen=True, slots=True)
class PacketQuery:
    """The first packet of a connection. source: None for any. str() is its destination."""

    source: Address | None
    destination: Address
    protocol: Protocol
    port: int

    @property
    def key(self) -> str:
        """The key of the pinhole that would accept it."""
        return f"{self.destination} . {self.protocol} . {self.port}"

    def __str__(self) -> str:
        return f"{self.destination} {self.protocol} {self.port}"


def parse_query(words: Sequence[str]) -> PacketQuery | Name:
    """`[SRC] DST:PORT[/proto]` or `NAMESPACE/NAME`, one word each. Raises ValueError with a sentence."""
    if not words:
        raise ValueError(f"name a packet or a Service; {_FORMS}")
    *sources, target = words
    if not sources and (named := _SERVICE.fullmatch(target)):
        return Name(*named.groups())
    match = _TARGET.fullmatch(target)
    if match is None or len(sources) > 1 or int(match[3]) > 65535:
        raise ValueError(f"{quote(' '.join(words))} names neither a packet nor a Service; {_FORMS}")
    destination, source = parse_address(match[1] or match[2]), None
    if sources:
        try:
            source = parse_address(sources[0])
        except ValueError:
            raise ValueError(f"{quote(sources[0])} is not an address that a packet comes from; {_FORMS}") from None
        if source.version != destination.version:
            raise ValueError(f"no packet goes from {source} to {destination}: one is IPv4, the other IPv6")
    return PacketQuery(source, destination, Protocol((match[4] or "tcp").lower()), int(match[3]))
