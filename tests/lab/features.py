"""What this kernel has: kinds of links, flowtables, IPsec. A router's kernel has more than a build machine's."""

from __future__ import annotations

from functools import cache

from tests.lab.namespace import LabError, Namespace

_OPTIONS = {  # of `ip link add`, without which it refuses the kind
    "vlan": "link peer0 name x0 type vlan id 100",
    "macvlan": "link peer0 name x0 type macvlan mode bridge",
    "ipvlan": "link peer0 name x0 type ipvlan mode l2",
    "vrf": "name x0 type vrf table 10",
    "gre": "name x0 type gre local 192.0.2.1 remote 192.0.2.2",
    "vxlan": "name x0 type vxlan id 1 local 192.0.2.1 dstport 4789",
}
_FLOWTABLE = (
    "table inet x { flowtable f { hook ingress priority 0; devices = { peer0 }; }; "
    "chain forward { type filter hook forward priority 0; ct state established flow add @f; }; }"
)
ESP_KEYS = f"auth hmac(sha256) 0x{'17' * 32} enc cbc(aes) 0x{'42' * 16}"
_ESP = f"xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x100 mode tunnel {ESP_KEYS}"


@cache
def kernel_has(kind: str) -> bool:
    """Whether the kernel has a kind of links, as ip-link(8) names it, or "flowtable", or "esp".

    It tries, in a network namespace.
    """
    try:
        namespace = Namespace()
    except LabError:  # without root
        return False
    try:
        namespace.ip("link add peer0 type veth peer name peer1")
        if kind == "flowtable":
            namespace.nft(_FLOWTABLE)
        elif kind == "esp":
            namespace.ip(_ESP)
        else:
            namespace.ip(f"link add {_OPTIONS.get(kind, f'name x0 type {kind}')}")
    except LabError:
        return False
    finally:
        namespace.close()
    return True
