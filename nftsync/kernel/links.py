"""Read the network interfaces of this thread's network namespace through netlink.

Source: rtnetlink(7), linux/if_link.h, linux/rtnetlink.h; drivers/net/ppp/pppoe.c of the kernel.
"""

import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

from nftsync.kernel.netlink import Fields, Netlink, attributes, complete, fields, text
from nftsync.policy.public import Link

_GET_LINKS, _GET_ADDRESSES = 18, 22  # RTM_GETLINK, RTM_GETADDR
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg; the third is the index
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_NAME, _LOWER, _MASTER, _INFO, _ELSEWHERE, _NAMES = 3, 5, 10, 18, 37, 52  # IFLA_*
_INFO_KIND, _INFO_DATA, _ALTNAME = 1, 2, 53  # in IFLA_LINKINFO, IFLA_PROP_LIST
# In IFLA_INFO_DATA of a tunnel: its own address (IFLA_GRE_LOCAL, IFLA_IPTUN_LOCAL, IFLA_VTI_LOCAL, IFLA_VXLAN_LOCAL*).
_TUNNEL_LOCAL = {
    **dict.fromkeys(("gre", "gretap", "ip6gre", "ip6gretap", "erspan", "ip6erspan"), (6,)),
    **dict.fromkeys(("ipip", "sit", "ip6tnl"), (2,)),
    **dict.fromkeys(("vti", "vti6"), (4,)),
    "vxlan": (4, 17),
}
_VXLAN_LINK = 3  # IFLA_VXLAN_LINK: a VXLAN has no IFLA_LINK
_PEER, _LOCAL = 1, 2  # IFA_ADDRESS, IFA_LOCAL
_LINK_SCOPE = 253  # RT_SCOPE_LINK
# IFLA_LINK of these is the other end of a pair, which carries nothing.
_PAIRS = ("veth", "netkit", "vxcan")
_PPPOE = Path("/proc/net/pppoe")  # "Id Address Device": a line for each session


def read_links() -> tuple[Link, ...]:
    """Every interface. Raises DumpError."""
    with Netlink(socket.NETLINK_ROUTE) as kernel:
        return complete(lambda: _read_links(kernel))


def _read_links(kernel: Netlink) -> tuple[Link, ...]:
    addressed, owners = set(), dict[bytes, int]()
    for content in kernel.messages(_GET_ADDRESSES, _ADDRESS.pack(*[0] * 5)):
        _, _, _, scope, index = _ADDRESS.unpack_from(content)
        values = fields(content, _ADDRESS.size)
        owners[values.get(_LOCAL, values.get(_PEER, b""))] = index
        if scope != _LINK_SCOPE:
            addressed.add(index)
    found = [
        (_LINK.unpack_from(content)[2], fields(content, _LINK.size))
        for content in kernel.messages(_GET_LINKS, _LINK.pack(*[0] * 5))
    ]
    by_name = {text(values[_NAME]): index for index, values in found}
    owners = {address: index for address, index in owners.items() if index != by_name.get("lo")}
    ethernet = [by_name[device] for device in _pppoe_devices() if device in by_name]
    return tuple(_link(index, values, index in addressed, _lower(values, owners, ethernet)) for index, values in found)


def _link(index: int, values: Fields, addressed: bool, lower: int) -> Link:  # noqa: FBT001
    listed = values.get(_NAMES, b"")
    altnames = {text(listed[start:end]) for kind, start, end in attributes(listed, 0, len(listed)) if kind == _ALTNAME}
    return Link(
        index,
        text(values[_NAME]),
        frozenset(altnames),
        text(fields(values.get(_INFO, b"")).get(_INFO_KIND, b"")),
        _integer(values.get(_MASTER, b"")),
        lower if lower != index else 0,
        addressed,
    )


def _lower(values: Fields, owners: Mapping[bytes, int], ethernet: list[int]) -> int:
    """The index of the interface that carries this one; 0 for none.

    A tunnel without a device of its own is carried by the interface with its local address.
    owners: interfaces by address.  ethernet: those with a PPPoE session.
    """
    info = fields(values.get(_INFO, b""))
    kind, data = text(info.get(_INFO_KIND, b"")), fields(info.get(_INFO_DATA, b""))
    if _ELSEWHERE in values or kind in _PAIRS:
        return 0
    if kind == "ppp" and len(ethernet) == 1:  # with several the kernel does not tell which
        return ethernet[0]
    local = max((owners.get(data.get(each, b""), 0) for each in _TUNNEL_LOCAL.get(kind, ())), default=0)
    bound = _integer(data.get(_VXLAN_LINK, b"")) if kind == "vxlan" else 0
    return _integer(values.get(_LOWER, b"")) or bound or local


def _pppoe_devices() -> set[str]:
    """The interfaces with a PPPoE session."""
    try:
        lines = _PPPOE.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    except OSError:
        return set()
    return {line.split()[-1] for line in lines if line.strip()}


def _integer(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)
