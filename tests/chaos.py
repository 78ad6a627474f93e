"""Random faults, one after the other, while numbered packets flow.

Forbidden packets never pass, allowed packets are never lost.

    python -m tests.chaos [--seed N] [--faults N] [--kills N]

A seed draws the faults. An oracle that knows nothing of nft says which packets pass: it is a
dictionary of the requested ports. After each fault the router must come to agree with it. While
rules stand, the test counts each packet to a port that is always open and to a port that is never
open.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from statistics import median

from tests.children import give_children_default_signals
from tests.lab.lab import CLIENT, Lab, Probe
from tests.labtools import PUBLIC_NIC, Daemon, Raw, eventually, nft, service, tables, write
from tests.load import traffic

STEADY = {"steady4": "172.30.254.1", "steady6": "2001:db8:254::1"}
ALLOWED = [f"{address} 80" for address in STEADY.values()]
FORBIDDEN = [*(f"{address} 81" for address in STEADY.values()), "172.30.254.200 80", "2001:db8:254::200 80"]
NAMES = [f"s{number}" for number in range(2, 30)]
PORTS = (53, 80, 443, 8080)
RANGES = (["203.0.113.0/24", "2001:db8:113::/48"], ["192.0.2.0/24"], [f"{CLIENT[0]}/32", "2001:db8:100::/64"])
SOURCES = {4: ("203.0.113.7", "192.0.2.7", str(CLIENT[0])), 6: ("2001:db8:113::7", str(CLIENT[1]))}
POOL: Raw = {
    "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
    "metadata": {"name": "services", "namespace": "metallb-system"},
    "spec": {"addresses": ["172.30.254.0/24", "2001:db8:254::/64"]},
}  # fmt: skip
EVIL = "}; flush ruleset; #\n\x1b[2J\u202e"
CONVERGES = 60.0  # seconds until the oracle is taken never to be right


class ChaosError(AssertionError):
    """A promise was not kept."""


@dataclass
class Asked:
    """The request of a Service: TCP and UDP ports at its two addresses, for all or some sources."""

    ports: tuple[tuple[str, int], ...]
    ranges: list[str]


@dataclass
class Tally:
    """The counts of a run. seconds: for each fault, until the router agreed with the oracle."""

    faults: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    allowed: int = 0
    forbidden: int = 0

    def __str__(self) -> str:
        slowest = sorted(self.seconds)[-max(1, len(self.seconds) // 100)]
        return (
            f"{sum(self.faults.values())} faults of {len(self.faults)} kinds; {self.allowed} packets to open "
            "ports, all arrived; "
            f"{self.forbidden} to closed ports, none arrived; right again after {median(self.seconds):.2f} s (median), "
            f"{slowest:.2f} s (99th percentile)"
        )


class Chaos:
    """A lab's router with a daemon, the requests to it, and all faults that it can meet."""

    def __init__(self, lab: Lab, folder: Path, seed: int) -> None:
        self.lab = lab
        self.draw = random.Random(seed)
        self.daemon = Daemon(lab, folder, interval=1)
        self.asked: dict[str, Asked] = {}
        self.torn: set[str] = set()  # Services with unreadable files
        self.tally = Tally()
        self.daemon.put(nft(), POOL)
        for name, address in STEADY.items():
            self.daemon.put(service(name, address, ports=[("UDP", 80)]))
        self.daemon.start()

    # --- the oracle ---------------------------------------------------------------------------------------

    def passes(self, probe: Probe) -> bool:
        """Whether a packet should pass, by the requests alone."""
        if probe.destination in STEADY.values():
            return (probe.protocol, probe.port) == ("udp", 80)
        number = int(probe.destination.replace("::", ".").rpartition(".")[2].rpartition(":")[2], 10)
        asked = self.asked.get(f"s{number}")
        if asked is None or (probe.protocol.upper(), probe.port) not in asked.ports:
            return False
        source, ranges = ip_address(probe.source or ""), [ip_network(each) for each in asked.ranges]
        return not ranges or any(source in each for each in ranges if each.version == source.version)

    def probes(self) -> Iterator[Probe]:
        yield from (Probe("udp", address, 80) for address in STEADY.values())
        for _ in range(40):
            version = self.draw.choice((4, 6))
            number = int(self.draw.choice([*NAMES, "s99"])[1:])
            address = f"172.30.254.{number}" if version == 4 else f"2001:db8:254::{number}"
            source = self.draw.choice(SOURCES[version])
            yield Probe(self.draw.choice(("tcp", "udp")), address, self.draw.choice(PORTS), source=source)

    def converge(self, fault: str) -> None:
        """Wait until the router agrees with the oracle about a whole set of random packets."""
        began = time.monotonic()

        def wrong() -> list[Probe]:
            probes = list(self.probes())
            arrived = {id(each) for each in self.lab.deliver(probes)}
            return [each for each in probes if (id(each) in arrived) != self.passes(each)]

        while left := wrong():
            if time.monotonic() - began > CONVERGES:
                raise ChaosError(f"after {fault}: {left[:3]} went wrong for {CONVERGES} s\n{self.daemon.log()[-3000:]}")
        self.tally.seconds.append(time.monotonic() - began)

    # --- faults that leave the rules standing -------------------------------------------------------------

    def put_service(self) -> None:
        name = self.draw.choice(NAMES)
        ports = tuple(
            {(self.draw.choice(("TCP", "UDP")), self.draw.choice(PORTS)) for _ in range(self.draw.randint(1, 3))}
        )
        asked = Asked(ports, self.draw.choice([[], [], *RANGES]))
        limit = self.draw.choice(
            [None, "100 mbytes/second", "no limit at all", EVIL]
        )  # an invalid one leaves the ports open
        self.asked[name] = asked
        self.daemon.put(self._service(name, asked, limit=limit))

    def _service(self, name: str, asked: Asked, **options: str | None) -> Raw:
        addresses = (f"172.30.254.{name[1:]}", f"2001:db8:254::{name[1:]}")
        return service(name, *addresses, ports=asked.ports, sources=asked.ranges, limit=options.get("limit"))

    def remove_service(self) -> None:
        if self.asked:
            name = self.draw.choice(sorted(self.asked))
            self.daemon.remove(self._service(name, self.asked.pop(name)))

    def poison_services(self) -> None:
        """Add Services with forbidden requests. No other Service may suffer."""
        for number in range(5):
            evil = service(
                f"evil{number}", self.draw.choice([EVIL, "0.0.0.0", "224.0.0.1", "203.0.113.1", "::1"]), limit=EVIL
            )
            evil["spec"]["ports"] = self.draw.choice(
                [[{"port": 70000}], [{"port": "x"}], [{"protocol": EVIL, "port": 80}], 7]
            )
            self.daemon.put(evil)

    def tear_a_file(self) -> None:
        """Damage a manifest. Its objects stay in force while the daemon lives."""
        if self.asked:
            name = self.draw.choice(sorted(self.asked))
            self.torn.add(name)
            path = self.daemon.path(self._service(name, self.asked[name]))
            write(path, path.read_text()[: self.draw.randint(1, 80)])

    def lose_the_settings(self) -> None:
        self.daemon.path(nft()).unlink(missing_ok=True)

    def break_the_settings(self) -> None:
        broken = nft()
        broken["spec"]["enable_ssh"] = EVIL
        self.daemon.put(broken)

    def change_the_settings(self) -> None:
        self.daemon.put(
            nft(**{switch: self.draw.random() < 0.5 for switch in ("enable_ssh", "enable_bgp", "enable_rateshape")})
        )

    def break_the_local_chain(self) -> None:
        write(
            self.daemon.local_chain,
            self.draw.choice(["nonsense", "chain local-chain { no such rule }", "chain local-chain {"]),
        )

    def change_the_local_chain(self) -> None:
        write(
            self.daemon.local_chain, f"chain local-chain {{\n\ttcp dport {self.draw.randint(10000, 60000)} drop\n}}\n"
        )

    def kill(self) -> None:
        time.sleep(self.draw.random() * 0.2)  # at any instant
        self.daemon.signal(signal.SIGKILL)
        self._started_again()

    def terminate(self) -> None:
        self.daemon.signal(signal.SIGTERM)
        self._started_again()

    def kill_and_tear_the_state(self) -> None:
        self.daemon.signal(signal.SIGKILL)
        assert self.daemon.process
        self.daemon.process.wait()
        for path in self.daemon.state.iterdir():
            content = path.read_bytes()
            path.write_bytes(content[: self.draw.randint(0, len(content))])
        self.daemon.put(nft())
        self._started_again()

    def _started_again(self) -> None:
        """Repair the damaged manifests: a new process can't know their objects."""
        assert self.daemon.process
        self.daemon.process.wait()
        self.daemon.put(*(self._service(name, self.asked[name]) for name in sorted(self.torn & self.asked.keys())))
        self.torn.clear()
        self.daemon.start()

    def freeze(self) -> None:
        self.daemon.signal(signal.SIGSTOP)
        self.put_service()
        time.sleep(self.draw.random())
        self.daemon.signal(signal.SIGCONT)

    def reload(self) -> None:
        self.daemon.signal(signal.SIGHUP)

    def start_a_second_daemon(self) -> None:
        if self.daemon.command("run", "--manifests", str(self.daemon.manifests)).returncode != 1:
            raise ChaosError("a second daemon ran")

    def add_foreign_elements(self) -> None:
        self.foreign("add element inet nftsync services4 { 172.30.254.99 . tcp . 80, 172.30.254.99 . udp . 53 }")

    def change_another_table(self) -> None:
        chain = "add chain inet other c { type filter hook input priority 10; }"
        self.foreign(f"add table inet other; {chain}; delete table inet other")

    # --- faults that cut the way: allowed packets may get lost until they end ---------------------------------

    def lose_the_nic(self) -> None:
        self.lab.unplug()
        time.sleep(self.draw.random())
        self.lab.plug(PUBLIC_NIC)

    def rename_the_nic(self) -> None:
        self.lab.router.ip(f"link set {PUBLIC_NIC} name renamed0")
        time.sleep(self.draw.random() * 0.2)
        self.lab.router.ip(f"link set renamed0 name {PUBLIC_NIC}")

    # --- faults that take rules away: nobody can promise anything until they are back -----------------------

    def flush_the_ruleset(self) -> None:
        self.foreign(self.draw.choice(["flush ruleset", "delete table inet nftsync", "delete table netdev nftsync"]))

    def flush_a_chain(self) -> None:
        self.foreign(f"flush chain inet nftsync {self.draw.choice(['operator-svc', 'forward', 'input', 'global'])}")

    def flush_a_set(self) -> None:
        self.foreign(f"flush set inet nftsync {self.draw.choice(['services4', 'services6', 'sources4', 'pools4'])}")

    def foreign(self, command: str) -> None:
        self.lab.router.run(["nft", command], check=False)  # there may be nothing to change

    # --- all of it ----------------------------------------------------------------------------------------

    @property
    def standing(self) -> tuple[Callable[[], None], ...]:
        return (
            self.put_service, self.put_service, self.put_service, self.remove_service, self.poison_services,
            self.tear_a_file,
            self.lose_the_settings, self.break_the_settings, self.change_the_settings, self.break_the_local_chain,
            self.change_the_local_chain, self.kill, self.terminate, self.kill_and_tear_the_state, self.freeze,
            self.reload,
            self.start_a_second_daemon, self.add_foreign_elements, self.change_another_table,
        )  # fmt: skip

    @property
    def closing(self) -> tuple[Callable[[], None], ...]:
        return self.lose_the_nic, self.rename_the_nic

    @property
    def destroying(self) -> tuple[Callable[[], None], ...]:
        return self.flush_the_ruleset, self.flush_a_chain, self.flush_a_set

    @contextmanager
    def load(self, allowed: Sequence[str] = ALLOWED) -> Iterator[None]:
        """Numbered packets to ports that are always open and to ports that are never open."""
        with traffic(self.lab, [*allowed, *FORBIDDEN], pause=0.01) as running:
            if not eventually(lambda: running.through(len(allowed))):
                raise ChaosError(f"nothing comes through\n{self.daemon.log()[-3000:]}")
            yield
            tallies = running.end()
        for destination, tally in zip([*allowed, *FORBIDDEN], tallies, strict=True):
            wanted = tally.sent if destination in allowed else 0
            if tally.arrived != wanted:
                raise ChaosError(
                    f"{destination}: of {tally.sent} packets {tally.arrived} arrived; missing {tally.missing}"
                )
        self.tally.allowed += sum(tally.sent for tally in tallies[: len(allowed)])
        self.tally.forbidden += sum(tally.sent for tally in tallies[len(allowed) :])

    def run(self, faults: int) -> None:
        """Draw so many faults. Raises ChaosError at the first broken promise."""
        left = faults
        while left > 0:
            with self.load():
                for _ in range(min(left, self.draw.randint(3, 12))):
                    self.suffer(self.draw.choice(self.standing))
                    left -= 1
            if left > 0:
                with self.load(allowed=()):
                    self.suffer(self.draw.choice(self.closing))
                left -= 1
            if left > 0:
                self.suffer(self.draw.choice(self.destroying))
                left -= 1
        if not {"inet nftsync"} <= tables(self.lab):
            raise ChaosError("the table is gone")

    def suffer(self, fault: Callable[[], None]) -> None:
        name = fault.__name__
        self.tally.faults[name] += 1
        fault()
        self.converge(f"{name}, which was fault {sum(self.tally.faults.values())}")


def chaos(seed: int, faults: int) -> Tally:
    """Raises ChaosError, with the log's end, at the first promise that is not kept."""
    with ExitStack() as opened:
        lab = opened.enter_context(Lab())
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        made = Chaos(lab, folder, seed)
        opened.enter_context(made.daemon)
        made.run(faults)
        return made.tally


def main() -> int:
    give_children_default_signals()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=0, help="SIGKILL at so many instants, see tests/kill.py")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.faults} faults, {options.kills} kills", flush=True)
    if options.faults:
        tally = chaos(options.seed, options.faults)
        print(tally)
        print(json.dumps(dict(sorted(tally.faults.items()))))
    if options.kills:
        from tests.kill import kills  # which needs this module

        print(kills(options.seed, options.kills))
    return 0


if __name__ == "__main__":
    sys.exit(main())
