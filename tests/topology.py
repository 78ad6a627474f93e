"""What a router can build on a NIC: a stack of VLANs, macvlans, bridges, bonds and VRFs, drawn from a seed.

A stack says which commands of ip(8) build its next layer and remove the last one. One level of it is
the interface that the administrator names as public. The address is on that level, or on the master
that it is a port of.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.lab.features import kernel_has
from tests.lab.lab import SERVICES, Lab
from tests.lab.wire import Wire
from tests.labtools import eventually

MASTERS = ("bridge", "bond", "vrf")  # the interface below becomes a port
CHILDREN = ("vlan", "macvlan", "ipvlan")  # the interface below carries them
KINDS = MASTERS + CHILDREN
DEPTH = 3
TAGS = (100, 200)
_TABLE = 10  # of the first VRF
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "vlan": tuple(map(str, TAGS)),
    "macvlan": ("bridge", "private", "vepa"),
    "ipvlan": ("l2",),
    "bond": ("active-backup", "balance-xor"),
    "bridge": ("",),
}
_REFUSED = {"bridge": ("bridge",), "ipvlan": ("bridge", "macvlan", "ipvlan"), "macvlan": ("ipvlan",)}  # on such a layer
_TAKES_ALL = {"bridge", "bond", "ipvlan"}  # no macvlan beside such a layer


@dataclass(frozen=True, slots=True)
class Layer:
    """One interface on another one.

    option: the VLAN's id, the macvlan's mode or the VRF's table.  guest: another port of a bridge, or "".
    """

    kind: str
    name: str
    below: str
    option: str = ""
    guest: str = ""

    def __str__(self) -> str:
        guest = f" and {self.guest}" if self.guest else ""
        return f"{self.kind} {self.option} {self.name} on {self.below}{guest}".replace("  ", " ")

    def build(self) -> list[str]:
        """Commands of ip(8)."""
        option = {"vlan": "id", "macvlan": "mode", "ipvlan": "mode", "vrf": "table", "bond": "mode"}.get(self.kind, "")
        made = f"name {self.name} type {self.kind} {option} {self.option}"
        up = f"link set {self.name} addrgenmode none up"
        if self.kind in CHILDREN:
            return [f"link add link {self.below} {made}", up]
        port = f"link set {self.below} master {self.name}"
        if self.kind == "bond":  # it takes only ports that are down
            return [f"link add {made}", f"link set {self.below} down", port, up]
        guest = [f"link set {self.guest} master {self.name}"] if self.guest else []
        return [f"link add {made}", up, port, *guest]

    def remove(self) -> list[str]:
        """Commands of ip(8)."""
        free = [] if self.kind in CHILDREN else [f"link set {self.below} nomaster"]
        return [*free, f"link delete {self.name}", f"link set {self.below} up"]


@dataclass
class Stack:
    """The layers on one wire. built: how many of them are there now.

    level: of the named interface; 0 is the NIC.  alias: its alternative name in the settings, or "".
    strays: interfaces without an address beside the layers.
    other: by their own names, the present names of renamed interfaces.
    """

    lab: Lab
    wire: Wire
    layers: list[Layer]
    level: int = 0
    alias: str = ""
    built: int = 0
    strays: list[Layer] = field(default_factory=list)
    other: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        layers = [*map(str, self.layers[: self.built]), *(f"stray {each}" for each in self.strays)]
        return f"{self.wire.nic} ({'; '.join(layers) or 'alone'}), named {self.name} ({self.device(self.level)})"

    def device(self, level: int) -> str:
        return self.layers[level - 1].name if level else self.wire.nic

    @property
    def present(self) -> Wire:
        """The wire, with the NIC's present name."""
        return replace(self.wire, nic=self.other.get(self.wire.nic, self.wire.nic))

    @property
    def devices(self) -> list[str]:
        """All interfaces that are there now."""
        return [*map(self.device, range(self.built + 1)), *(each.name for each in self.strays)]

    @property
    def name(self) -> str:
        """The name in the settings."""
        return self.alias or self.device(self.level)

    @property
    def exists(self) -> bool:
        """Whether the named interface is there under this name."""
        return self.built >= self.level and (bool(self.alias) or self.name not in self.other)

    @property
    def holder(self) -> str:
        """The interface with the address."""
        level = min(self.level, self.built)
        while level < self.built and self.layers[level].kind in ("bridge", "bond"):
            level += 1
        while level and self.layers[level - 1].kind == "vrf":  # its port has the address
            level -= 1
        return self.device(level)

    @property
    def table(self) -> str:
        """The routing table of the VRF that the address is in; "" for none."""
        level = self.built and self.layers[self.built - 1]
        return level.option if level and level.kind == "vrf" and level.below == self.holder else ""

    def grow(self) -> None:
        """Build one more layer."""
        self.lab.router.ip(*self.layers[self.built].build())
        self.built += 1
        self.settle()

    def shrink(self) -> None:
        """Remove the last layer: its port is none any more."""
        self.built -= 1
        gone = self.layers[self.built]
        self.strays = [each for each in self.strays if each.below != gone.name or self._delete(each.name)]
        self.lab.router.ip(*gone.remove())
        self.settle()

    def stray(self, layer: Layer) -> None:
        self.lab.router.ip(*layer.build())
        self.strays.append(layer)

    def unplug(self) -> None:
        """Take the NIC out of the router, and what was built on it."""
        self._delete(self.wire.nic)
        for layer in self.layers[: self.built]:
            self._delete(layer.name)  # a bridge stays without its port
        self.strays.clear()

    def plug(self) -> None:
        """Plug the NIC in again, and build all layers that it had."""
        self.lab.replug(self.wire)
        for layer in self.layers[: self.built]:
            self.lab.router.ip(*layer.build())
        self.settle()

    def rename(self, device: str, name: str) -> None:
        """Give an interface another name; its own name gives it back."""
        self.lab.router.ip(f"link set {self.other.pop(device, device)} name {name}")
        if name != device:
            self.other[device] = name

    def settle(self) -> None:
        """Bring the addresses and the alternative name where they belong."""
        holder = self.holder
        others = {self.device(level) for level in range(self.built + 1)} - {holder}
        self.lab.router.ip(*(f"address flush dev {each} scope global" for each in sorted(others)))
        self.wire.address(holder)
        if self.alias and self.exists:
            device = self.device(self.level)
            has = next(each.get("altnames", []) for each in links(self.lab) if each["ifname"] == device)
            if self.alias not in has:
                self.lab.router.ip(f"link property add dev {device} altname {self.alias}")
        assert eventually(self._carries), f"a link stays down: {links(self.lab)}"

    def _carries(self) -> bool:
        """Whether each interface carries packets by now. A bond takes a moment."""
        states = {each["ifname"]: each["operstate"] for each in links(self.lab)}
        return all(states[device] in ("UP", "UNKNOWN") for device in self.devices)

    def _delete(self, device: str) -> bool:
        """Delete an interface if it is there. False, for a filter."""
        self.lab.router.run(["ip", "link", "delete", device], check=False)
        return False


def links(lab: Lab) -> list[dict[str, Any]]:
    """The router's interfaces, as ip(8) shows them."""
    found: list[dict[str, Any]] = json.loads(lab.router.run(["ip", "-json", "link"]).stdout)
    return found


def route(inside: Stack, uplinks: Iterable[Stack]) -> None:
    """The routes to the Services, and those between the inside and a VRF."""
    lab, commands = inside.lab, list[str]()
    for table in ("main", *(each.table for each in uplinks if each.table)):
        for gateway, network in zip(inside.wire.there, SERVICES, strict=True):
            commands += [f"route replace {gateway} dev {inside.holder} table {table}"] * (table != "main")
            commands += [f"route replace {network} via {gateway} dev {inside.holder} table {table}"]
    for each in uplinks:
        commands += [f"route replace {peer} dev {each.holder}" for peer in each.wire.there if each.table]
    lab.router.ip(*commands)


def draw_stack(draw: random.Random, lab: Lab, wire: Wire, number: int) -> Stack:
    """A stack of up to three layers on a wire; nothing of it is built yet."""
    layers, kinds = draw_layers(draw, wire.nic, number, KINDS), [0]
    kinds += [each for each, layer in enumerate(layers, 1) if layer.kind != "vrf" or draw.random() < 0.3]
    return Stack(lab, wire, layers, draw.choice(kinds), f"enp{number}s18np0" if draw.random() < 0.3 else "")


def draw_layers(draw: random.Random, below: str, number: int, kinds: Iterable[str]) -> list[Layer]:
    """Up to three layers that the kernel can build. A VRF is the last one."""
    layers, possible = list[Layer](), [kind for kind in kinds if kernel_has(kind)]
    for depth in range(draw.choice((0, 1, 2, 2, 3, 3, 3))):
        refused = _REFUSED.get(layers[-1].kind, ()) if layers else ()
        kind = draw.choice([kind for kind in possible if kind not in refused and (kind != "bond" or not layers)])
        option = str(draw.choice(_OPTIONS[kind])) if kind != "vrf" else str(_TABLE + number)
        layers.append(Layer(kind, f"{kind}{number}{depth}", below, option))
        below = layers[-1].name
        if kind == "vrf":
            break
    return layers


def possible_strays(draw: random.Random, stack: Stack, name: str) -> Iterator[Layer]:
    """Children without an address that the kernel accepts beside the layers."""
    for device in map(stack.device, range(stack.built + 1)):
        on = {each for each in (*stack.layers, *stack.strays) if each.below == device}
        free = sorted(set(map(str, TAGS)) - {each.option for each in on})
        if any(each.kind == "vrf" and each.name == device for each in stack.layers):
            continue
        if kernel_has("macvlan") and not _TAKES_ALL & {each.kind for each in on}:
            yield Layer("macvlan", name, device, draw.choice(_OPTIONS["macvlan"]))
        if kernel_has("vlan") and free:
            yield Layer("vlan", name, device, draw.choice(free))
