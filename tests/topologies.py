"""Random link topologies on a router, built and changed before and while the daemon runs.

    python -m tests.topologies [SEED…] [--seeds N]

A seed draws one to three public wires, what is built on each, the named interfaces, and the order of
events. After each event frames come in by every wire, at every level: to the MAC address of each
interface, untagged and with tags. The oracle knows only which wires are public. By a public wire a
closed address never passes. What is open, and what comes from inside, passes wherever it passes
without a firewall: the same events happen in a first lab without one.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tests.chaos import POOL
from tests.children import give_children_default_signals
from tests.lab.lab import Frame, Lab, Probe
from tests.lab.probe import PEER_MAC
from tests.labtools import SERVICE4, SERVICE6, Daemon, Raw, eventually, nft, service
from tests.topology import CHILDREN, TAGS, Stack, draw_layers, draw_stack, links, possible_strays, route

CONVERGES = 20.0  # seconds until the oracle is taken never to be right
EVENTS = 5  # of each topology, after the stacks are drawn
WEB = service("web", SERVICE4, SERVICE6, ports=[("TCP", 80), ("UDP", 53)])
OPEN = tuple(
    probe for address in (SERVICE4, SERVICE6) for probe in (Probe("tcp", address, 80), Probe("udp", address, 53))
)
RELOADED = "configuration reloaded"
BRIDGES = Path("/proc/sys/net/bridge")  # with br_netfilter, a bridge's packets pass the IP filter's hooks
SLOW_AT = ("172.30.254.3", "2001:db8:254::3")
BURST = 3
SLOW = service("slow", *SLOW_AT, ports=[("UDP", 53)], limit=f"1/week burst {BURST} packets")
GUEST_MAC = "02:00:00:00:00:0a"
TAGGED = ((), (0,), *((tag,) for tag in TAGS), TAGS)
Where = tuple[str, str, tuple[int, ...], Probe]  # the wire's NIC, the interface with the MAC address, tags, the probe


class TopologyError(AssertionError):
    """A promise was not kept."""


@dataclass
class World:
    """One router and its wires. Two worlds of one seed do the same."""

    lab: Lab
    seed: int
    happened: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        wires = [self.lab.public, *(self.lab.uplink(f"wan{number}") for number in range(1, self.draw.randint(1, 3)))]
        self.uplinks = [draw_stack(self.draw, self.lab, wire, number) for number, wire in enumerate(wires)]
        self.bridges_filter = self.draw.random() < 0.3 and BRIDGES.exists()
        if BRIDGES.exists():
            self.lab.router.sysctl(
                {f"bridge/bridge-nf-call-{ip}tables": int(self.bridges_filter) for ip in ("ip", "ip6")}
            )
        # br_netfilter lets conntrack forget packets for a macvlan on a bridge: they have no state.
        kinds = ("macvlan",) if self.bridges_filter else ("bridge", *CHILDREN)
        layers = draw_layers(self.draw, "cluster0", 9, kinds)[:2]
        self.inside = Stack(self.lab, self.lab.inside, layers, len(layers))
        self.starts = self.draw.randint(0, EVENTS - 1)  # the daemon, after this event
        self.singly = self.draw.random() < 0.5
        self._invite()

    def _invite(self) -> None:
        """Let a wire that nobody has named become another port of a bridge on a named one, now and then."""
        bridges = [
            (stack, at) for stack in self.uplinks for at, layer in enumerate(stack.layers) if layer.kind == "bridge"
        ]
        self.guest: Stack | None = None
        self.host, self.at = self.uplinks[0], 0
        if bridges and self.draw.random() < 0.4:
            self.guest = Stack(self.lab, self.lab.uplink("guest0"), [])
            self.guest.wire.peer.ip(f"link set eth0 address {GUEST_MAC}")  # a bridge learns where a peer is
            self.host, self.at = self.draw.choice(bridges)
            self.host.layers[self.at] = replace(self.host.layers[self.at], guest="guest0")

    @property
    def public(self) -> list[Stack]:
        """The stacks on public wires. Without any named interface all of them are public."""
        named = [each for each in self.uplinks if each.exists]
        guests = [self.guest] if self.guest and self.host.exists and self.host.built > self.at else []
        return [*named, *guests]

    @property
    def settings(self) -> Raw:
        """The Nft resource that names the public interfaces."""
        first, *others = [each.name for each in self.uplinks]
        resource = nft(first)
        if others or not self.singly:
            resource["spec"]["public_nics"] = [*others] if self.singly else [first, *others]
        if not self.singly:
            del resource["spec"]["public_nic"]
        return resource

    # --- events -------------------------------------------------------------------------------------------

    def events(self) -> Iterator[str]:
        """Let one event after the other happen; a sentence about each."""
        for stack in (self.inside, *self.uplinks):
            for _ in range(len(stack.layers) if stack is self.inside else self.draw.randint(0, len(stack.layers))):
                stack.grow()
            stack.settle()
        route(self.inside, self.uplinks)
        yield self._said("these were built")
        for number in range(EVENTS):
            stack = self.draw.choice(self.uplinks)
            for happening in self._event(stack, f"stray{number}"):
                happening()
                if not stack.other:  # a rename changes no route
                    route(self.inside, self.uplinks)
                yield self._said(f"{happening.func.__name__} {' '.join(map(str, happening.args))} on {stack.wire.nic}")

    def _event(self, stack: Stack, name: str) -> Sequence[partial[None]]:
        """One event, as one or two steps."""
        device = self.draw.choice(stack.devices)
        possible: list[Sequence[partial[None]]] = [
            [partial(stack.rename, device, f"{name}x"), partial(stack.rename, device, device)]
        ]
        possible += [[partial(stack.stray, each)] for each in possible_strays(self.draw, stack, name)]
        possible += 3 * [[partial(stack.grow)]] * (stack.built < len(stack.layers))
        possible += 2 * [[partial(stack.shrink)]] * (stack.built > 0)
        possible += [[partial(self._replug, stack)]]
        return self.draw.choice(possible)

    def _replug(self, stack: Stack) -> None:
        stack.unplug()
        stack.plug()

    def _said(self, event: str) -> str:
        self.happened.append(f"{event}: {' | '.join(map(str, (*self.uplinks, self.inside)))}")
        return self.happened[-1]

    # --- packets ------------------------------------------------------------------------------------------

    def arrived(self, stack: Stack) -> set[Where]:
        """The probes that arrive of those that come in by one wire."""
        outward = stack is self.inside
        frames = self._frames(stack, self._outward() if outward else (*OPEN, *self._closed(stack)))
        leaving = [each.present for each in self.uplinks if outward]
        return {frames[frame] for frame in self.lab.deliver_frames(stack.present, frames, leaving)}

    def _frames(self, stack: Stack, probes: Iterable[Probe]) -> dict[Frame, Where]:
        """Frames with these probes at every level of a wire."""
        macs = {each["ifname"]: each["address"] for each in links(self.lab)}
        guest = stack is self.guest
        other = {**stack.other, **self.host.other} if guest else stack.other
        return {
            Frame(probe, macs[other.get(device, device)], tags, GUEST_MAC if guest else PEER_MAC): (
                stack.wire.nic,
                device,
                tags,
                probe,
            )
            for probe in probes
            for device in (*stack.devices, *(self.host.devices if guest else ()))
            for tags in TAGGED
        }

    def _closed(self, stack: Stack) -> Iterator[Probe]:
        for closed, port in (
            ((SERVICE4, SERVICE6), 22), (self.inside.wire.there, 10250), (stack.wire.here, 9100),
        ):  # fmt: skip
            yield from (Probe("tcp", str(address), port) for address in closed)

    def _outward(self) -> list[Probe]:
        peers = [address for each in self.uplinks for address in each.wire.there]
        return [Probe("tcp", str(address), 443) for address in (*peers, *self.inside.wire.here)]

    def everywhere(self) -> dict[str, set[Where]]:
        """By wire, the probes that arrive."""
        wires = [*self.uplinks, *([self.guest] if self.guest else []), self.inside]
        return {each.wire.nic: self.arrived(each) for each in wires}

    def slow(self, bare: Mapping[str, set[Where]]) -> Counter[str]:
        """The packets to the limited Service that arrive, by address, of some by every public wire at every level.

        bare: the probes that arrive without a firewall. Frames of other levels would empty the bucket.
        """
        arrived, probes = Counter[str](), [Probe("udp", address, 53) for address in SLOW_AT]
        for stack in self.public:
            level = {where[:-1] for where in bare[stack.wire.nic]}
            frames = [frame for frame, where in self._frames(stack, probes).items() if where[:-1] in level]
            arrived.update(frame.probe.destination for frame in self.lab.deliver_frames(stack.present, frames * BURST))
        return arrived

    # --- the oracle ---------------------------------------------------------------------------------------

    def wrong(self, bare: Mapping[str, set[Where]]) -> list[str]:
        """The probes that go wrong now. bare: those that arrive without a firewall."""
        named, found = self.public, list[str]()
        for stack in named or self.uplinks:
            arrived, may = self.arrived(stack), {each for each in bare[stack.wire.nic] if each[-1] in OPEN}
            found += [f"passes: {each}" for each in sorted(arrived - may, key=str)]
            found += [f"is lost: {each}" for each in sorted(may - arrived, key=str)]
        if named:  # else nobody is inside
            lost = bare[self.inside.wire.nic] - self.arrived(self.inside)
            found += [f"is lost: {each}" for each in sorted(lost, key=str)]
        return found


@dataclass
class Tally:
    """The counts of a run."""

    topologies: int = 0
    events: int = 0
    probes: int = 0
    depth: int = 0

    def __str__(self) -> str:
        return (
            f"{self.topologies} topologies, at most {self.depth} layers deep, {self.events} events; "
            f"{self.probes} probes passed without a firewall, and with it only those that should"
        )


def bare(seed: int) -> list[dict[str, set[Where]]]:
    """What arrives after each event without a firewall."""
    with Lab("wan0") as lab:
        world = World(lab, seed)
        return [world.everywhere() for _ in world.events()]


def topology(seed: int, folder: Path, tally: Tally) -> None:
    """Raises TopologyError at the first promise that is not kept."""
    passes = bare(seed)
    with Lab("wan0") as lab, Daemon(lab, folder, interval=600) as daemon:
        world = World(lab, seed)
        daemon.put(world.settings, POOL, WEB, SLOW)
        for number, _ in enumerate(world.events()):
            if number == world.starts:
                daemon.start()
            if number >= world.starts:
                converge(world, daemon, passes[number])
            tally.events += 1
            tally.probes += sum(map(len, passes[number].values()))
            tally.depth = max(tally.depth, *(each.built for each in world.uplinks))
        if world.public and (slow := world.slow(passes[-1])) != dict.fromkeys(SLOW_AT, BURST):
            raise TopologyError(told(world, daemon, [f"the limit lets pass {slow}, and not {BURST} each"]))
        tally.topologies += 1


def converge(world: World, daemon: Daemon, passes: Mapping[str, set[Where]]) -> None:
    """Wait until the router agrees with the oracle, and see that it still does after one more sync."""
    began = time.monotonic()
    while left := world.wrong(passes):
        if time.monotonic() - began > CONVERGES:
            raise TopologyError(told(world, daemon, left))
        time.sleep(0.05)
    reload(daemon)
    reload(daemon)  # which comes after the sync of the first one
    if left := world.wrong(passes):
        raise TopologyError(f"after one more sync: {told(world, daemon, left)}")


def reload(daemon: Daemon) -> None:
    before = daemon.log().count(RELOADED)
    daemon.signal(signal.SIGHUP)
    assert eventually(lambda: daemon.log().count(RELOADED) > before), daemon.log()


def told(world: World, daemon: Daemon, left: Sequence[str]) -> str:
    """All that one needs to find the fault."""
    shown = [*left[:8], *([f"… of {len(left)}"] if len(left) > 8 else [])]
    sets = world.lab.router.run(["nft", "list", "sets"]).stdout
    link = world.lab.router.run(["ip", "-br", "link"]).stdout
    return "\n".join(
        [f"seed {world.seed}:", *world.happened, "now:", *shown, link, sets, daemon.command("status").stdout]
    )


def run(seeds: Sequence[int]) -> Tally:
    """Try these seeds. Raises TopologyError with all that failed."""
    tally, failed = Tally(), list[str]()
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            try:
                topology(seed, Path(folder), tally)
            except TopologyError as fault:
                failed.append(str(fault))
    if failed:
        raise TopologyError(f"{len(failed)} of {len(seeds)} topologies\n" + "\n\n".join(failed))
    return tally


def main() -> int:
    give_children_default_signals()
    parser = argparse.ArgumentParser(prog="python -m tests.topologies", description=__doc__.partition("\n")[0])
    parser.add_argument("seed", type=int, nargs="*", help="try these; without any, seeds from a random one on")
    parser.add_argument("--seeds", type=int, default=20, help="the number of random topologies")
    options = parser.parse_args()
    first = random.SystemRandom().randrange(10**6)
    seeds = options.seed or range(first, first + options.seeds)
    print(f"seeds {seeds[0]} to {seeds[-1]}", flush=True)
    print(run(seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
