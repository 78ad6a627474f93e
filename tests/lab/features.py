"""Kinds of network links that this kernel has. A router's kernel has more of them than a build machine's."""

from __future__ import annotations

from functools import cache

import pytest

from tests.lab.namespace import LabError, Namespace

_OPTIONS = {  # of `ip link add`, without which it refuses the kind
    "vlan": "link peer0 name x0 type vlan id 100",
    "macvlan": "link peer0 name x0 type macvlan mode bridge",
    "ipvlan": "link peer0 name x0 type ipvlan mode l2",
    "vrf": "name x0 type vrf table 10",
    "gre": "name x0 type gre local 192.0.2.1 remote 192.0.2.2",
    "vxlan": "name x0 type vxlan id 1 local 192.0.2.1 dstport 4789",
}


@cache
def kernel_has(kind: str) -> bool:
    """Whether the kernel makes links of a kind, as ip-link(8) names it. It tries, in a network namespace."""
    try:
        namespace = Namespace()
    except LabError:  # without root
        return False
    try:
        namespace.ip("link add peer0 type veth peer name peer1")
        namespace.ip(f"link add {_OPTIONS.get(kind, f'name x0 type {kind}')}")
    except LabError:
        return False
    finally:
        namespace.close()
    return True


def needs_kernel(*kinds: str) -> list[pytest.MarkDecorator]:
    """Marks of a test, or of one of its parameters: it is skipped where the kernel lacks one of these kinds."""
    missing = [kind for kind in kinds if not kernel_has(kind)]
    skip = pytest.mark.skipif(bool(missing), reason=f"this kernel has no links of type {', '.join(missing)}")
    return [pytest.mark.elsewhere, skip]
