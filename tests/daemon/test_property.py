"""In every order of events the kernel holds the known state.

It loses no requested pinhole and opens no other.

Random sequences of events, lists, restarts, crashes, boots, damage, outages and refusals, on a real
kernel. The tests work out the right pinholes once more, with plain dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftsync.cluster.cache import Inputs
from nftsync.config import Config
from nftsync.daemon.boot import _NoNetwork
from nftsync.daemon.observe import Observer
from nftsync.daemon.reconcile import Reconciler
from nftsync.daemon.record import Record
from nftsync.files import journal
from nftsync.files.journal import Journal
from nftsync.kernel.interfaces import Network
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.objects import service as objects
from nftsync.objects.names import Name, Reason
from nftsync.objects.ratelimit import RateLimit, parse_ratelimit
from nftsync.plan import memory as records
from nftsync.plan.plan import tables_digest
from nftsync.plan.result import Outcome, SyncResult
from nftsync.ruleset.model import INET
from tests.lab.namespace import Namespace
from tests.labtools import Raw, needs_root, nft, service
from tests.router import KINDS, Router, config_in
from tests.support import filled

pytestmark = needs_root

NIC = "pub0"
POISON = "poison"  # a limit that passes for one here, and that the kernel answers with EOVERFLOW
POISONED = "172.30.254.66"  # the address of the only Service that has it
ADDRESSES = ("172.30.254.1", "172.30.254.2", "203.0.113.1", "2001:db8:254::1")
WIDE, NARROW = ("0.0.0.0/0", "::/0"), ("172.30.254.0/24", "2001:db8:254::/64")
SOURCES = ("198.51.100.0/24", "198.51.100.7/32", "2001:db8:7::/48", "0.0.0.0/1")
OLD, NEW = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
OPEN_SETS = ("services4", "services6", "sources4", "sources6")

IPNetwork = IPv4Network | IPv6Network
Element = tuple[str, str]  # set, element


class Killed(BaseException):
    """The process is killed here."""


# --- the oracle ---------------------------------------------------------------------------------------


def within(network: IPNetwork, other: IPNetwork) -> bool:
    """Whether another network contains this one."""
    return network != other and network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]


def claims(raw: Raw) -> dict[str, set[Element]]:
    """What a Service asks for, by address, protocol and port."""
    found: dict[str, set[Element]] = {}
    ranges = raw["spec"]["loadBalancerSourceRanges"]
    for ingress in raw["status"]["loadBalancer"]["ingress"]:
        address = ip_address(ingress["ip"])
        for port in raw["spec"]["ports"]:
            key = f"{address} . {port['protocol'].lower()} . {port['port']}"
            if not ranges:
                found[key] = {(f"services{address.version}", key)}
                continue
            networks = [ip_network(each) for each in ranges]
            largest = [
                each
                for each in networks
                if each.version == address.version and not any(within(each, other) for other in networks)
            ]
            texts = (str(each.network_address if each.num_addresses == 1 else each) for each in largest)
            found[key] = {(f"sources{address.version}", f"{key} . {text}") for text in texts}
    return found


def asked(services: Iterable[Raw], pools: Sequence[str] | None) -> set[Element]:
    """What these open together: the oldest owns a key. pools: None where every address is good."""
    owners: dict[str, set[Element]] = {}
    for raw in sorted(services, key=lambda each: (each["metadata"]["creationTimestamp"], each["metadata"]["uid"])):
        for key, elements in claims(raw).items():
            address = ip_address(key.partition(" ")[0])
            if pools is None or any(address in ip_network(each) for each in pools):
                owners.setdefault(key, elements)
    return set().union(*owners.values())


def without_poisoned(elements: Iterable[Element]) -> set[Element]:
    return {each for each in elements if not each[1].startswith(POISONED)}


# --- the router ---------------------------------------------------------------------------------------


class Hostile(Router):
    """A router whose processes can be killed, whose lists come one by one, and whose clock is set by the test."""

    _reconciler: Reconciler
    now = 0.0
    early = False  # whether the process is the boot command

    def __init__(self, place: Namespace, config: Config) -> None:
        self.namespace = place
        self.kinds: set[str] = set()
        self.seen: Callable[[Callable[[], Any]], Any] = lambda run: run()
        super().__init__(place, config, listed=False)

    def _connect(self, *, listed: bool) -> None:
        self.kinds = set()
        super()._connect(listed=listed)

    def _begin(self, *, listed: bool) -> None:
        self._record = Record(self.config.state, self.config.runtime)
        self._connect(listed=listed)
        self.kernel: Kernel = self.place.call(Kernel)
        facts = self._record.memory.facts
        network: Any = _NoNetwork(facts) if self.early else Network(self._links, facts.local, facts.peers)
        inputs = Inputs.empty() if self.early else self._inputs
        self._observer = Observer(self.config, inputs, network, facts, lambda: self.now)
        self._reconciler = Reconciler(self._observer, self.kernel, self._record, base=self.early)
        self._result = SyncResult(Outcome.WAITING)
        for name in ("apply", "apply_lines"):
            self._watch(name, getattr(self.kernel, name))

    def _watch(self, name: str, real: Callable[[Any], Any]) -> None:
        setattr(self.kernel, name, lambda content: self.seen(lambda: real(content)))

    def put(self, *objects: Raw) -> None:
        for raw in objects:
            self._keep(raw)
            if raw["kind"] in self.kinds:
                self._caches[raw["kind"]].put(raw)

    def delete(self, *objects: Raw) -> None:
        for raw in objects:
            self._cluster[raw["kind"]].pop(Name(raw["metadata"]["namespace"], raw["metadata"]["name"]), None)
            if raw["kind"] in self.kinds:
                self._caches[raw["kind"]].delete(raw)

    def lists(self, *kinds: Any, doubted: bool = False) -> None:
        """The lists of these kinds come."""
        for kind in kinds or KINDS:
            first = kind not in self.kinds
            with self._caches[kind].relist(is_suspect=lambda gone, _: doubted and bool(gone)) as relist:
                for raw in self._cluster[kind].values():
                    relist.put(raw)
            if relist.is_suspect and first:
                continue
            self.kinds.add(kind)

    def objects(self, kind: str) -> list[Raw]:
        return list(self._cluster[kind].values())

    def settle_disk(self) -> None:
        """What was written by a process that is gone is written."""
        self._record.finish()

    def die(self) -> None:
        """The process ends now; what it has not written is lost."""
        journal = self._record.journal

        def lose(*_: object, **__: object) -> None:
            journal._unsynced = False

        journal._write = lose  # type: ignore[method-assign]
        journal.finish()


# --- the events ---------------------------------------------------------------------------------------

Event = tuple[Any, ...]

_numbers = st.integers(1, 2)
_services = st.builds(
    lambda number, uid, addresses, ports, sources, limit, created, egress: {
        "name": f"s{number}", "uid": uid, "addresses": addresses, "ports": ports, "sources": sources, "limit": limit,
        "created": created, "egress": egress,
    },
    _numbers, st.sampled_from(["a", "b"]),
    st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=2, unique=True),
    st.lists(st.sampled_from([("TCP", 80), ("UDP", 53)]), min_size=1, max_size=2, unique=True),
    st.just(()) | st.lists(st.sampled_from(SOURCES), max_size=2, unique=True),
    st.sampled_from([None, None, "2 mbytes/second burst 512 kbytes", "3 mbytes/minute", "400/second"]),
    st.sampled_from([OLD, NEW]),
    st.sampled_from([None, None, "1 mbytes/second", "5/second"]),
)  # fmt: skip
_damage = st.sampled_from([
    "flush ruleset", "delete table inet nftsync", "flush chain inet nftsync forward",
    "flush set inet nftsync services4",
    "flush set inet nftsync sources4", "flush set inet nftsync pools4", "add table inet nftsync { flags dormant; }",
    "add element inet nftsync services4 { 192.0.2.66 . tcp . 22 }", "add rule inet nftsync forward accept",
    "add element inet nftsync sources4 { 192.0.2.66 . tcp . 22 . 10.0.0.0/8 }", "flush chain inet nftsync local-chain",
])  # fmt: skip
_events = st.one_of(
    st.tuples(st.just("put"), _services),
    st.tuples(st.just("put"), _services),
    st.tuples(st.just("delete"), _numbers),
    st.tuples(st.just("poison"), st.sampled_from([POISON, POISON, None, "400/second", "gone"])),
    st.tuples(
        st.just("nft"),
        st.sampled_from([{}, {"enable_ssh": False}, {"enable_rateshape": False}, {"enable_dropall": False}]),
    ),
    st.tuples(st.just("nft"), st.sampled_from(["gone", "invalid"])),
    st.tuples(st.just("pools"), st.sampled_from([WIDE, NARROW, ()])),
    st.tuples(st.just("lists"), st.sampled_from([("Service",), ("Nft",), KINDS[2:], KINDS, KINDS, KINDS])),
    st.tuples(st.just("doubt")),
    st.tuples(st.just("sync"), st.sampled_from(["events", "look", "resync"])),
    st.tuples(st.just("restart"), st.sampled_from(["silent", "listed"])),
    st.tuples(st.just("kill"), st.sampled_from(["before", "after"])),
    st.tuples(st.just("boot"), st.sampled_from(["daemon", "command"]), st.sampled_from(["nothing", "older"])),
    st.tuples(st.just("save")),
    st.tuples(st.just("damage"), _damage, st.sampled_from(["running", "down"])),
    st.tuples(st.just("outage")),
    st.tuples(st.just("refuse")),
    st.tuples(
        st.just("local chain"), st.sampled_from(["", "tcp dport 9 accept", "}", 'iif "gone0" accept', "nonsense"])
    ),
    st.tuples(st.just("nic"), st.sampled_from(["gone", "there"])),
)


@dataclass
class World:
    """A router, the cluster, and the invariants of both.

    views: the Services that the daemon may believe in: those of the last sync that succeeded, and
    later ones of syncs that did not.
    good_pools: those that count.
    standing: the open pinholes when the process began; others may have put them there.
    rules: of each declaration of tables, the digest of the rules that were read back.
    """

    router: Hostile
    views: list[list[Raw]] = field(default_factory=lambda: [[]])
    pools: list[Sequence[str] | None] = field(default_factory=lambda: [None])
    standing: set[Element] = field(default_factory=set)
    first_since_boot: bool = True
    saved: str = ""
    kill: str = ""
    refuse: bool = False
    poisons: set[Element] = field(default_factory=set)
    rules: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.router.seen = self.watched
        self.begins()

    # what the kernel holds

    def open(self) -> set[Element]:
        held = self.router.kernel.read().ruleset.elements.get(INET, {})
        return {(name, each) for name in OPEN_SETS for each in held.get(name, ())}

    def begins(self) -> None:
        """A process begins."""
        self.standing = self.open()
        self.first_since_boot = self.router._record.first_since_boot

    def truth(self) -> set[Element]:
        pools: Sequence[str] | None = [
            each for raw in self.router.objects("IPAddressPool") for each in raw["spec"]["addresses"]
        ]
        return asked(self.router.objects("Service"), pools or self.pools[-1])

    def watched(self, run: Callable[[], Any]) -> Any:
        """A transaction: what was open and is asked for stays open, nothing opens that nobody may believe in."""
        if self.refuse:
            raise KernelError("busy")
        if self.kill == "before":
            raise Killed
        before = self.open()
        result = run()
        after = self.open()
        if self.kill == "after":
            raise Killed
        lost = without_poisoned((before - after) & self.truth())
        assert self.first_since_boot or not lost, f"asked for and closed: {lost}"
        believed = {
            each for view in self.views for raw in view for elements in claims(raw).values() for each in elements
        }
        if "Service" in self.router.kinds:
            believed |= {
                each for raw in self.router.objects("Service") for elements in claims(raw).values() for each in elements
            }
        if not self.first_since_boot:
            believed |= self.standing
        opened = without_poisoned(after - before - believed)
        assert not opened, f"nobody asked for {opened}"
        return result

    # a sync

    def sync(self, mode: str = "look") -> None:
        router = self.router
        for _ in range(2):  # the second one after the doubt about pools
            listed = "Service" in router.kinds
            if listed:
                self.views.append(router.objects("Service"))
            if self.pools_listed():
                self.pools.append(self.listed_pools())
            try:
                with router.place.entered():
                    result = router._reconciler.sync(look=mode != "events", resync=mode == "resync")
            except Killed:
                self.kill = ""
                self.dies()
                return
            router._result = result
            if self.refuse:
                assert result.outcome in (Outcome.FAILED, Outcome.WAITING, Outcome.UNCHANGED), result.message
                return
            assert result.outcome is not Outcome.FAILED, result.message
            if result.settings is None:
                assert result.outcome is Outcome.WAITING
                return
            if listed:
                self.views = self.views[-1:]
            self.check(result)
            if router._observer.deadline == float("inf"):
                break
            router.now = router._observer.deadline + 0.01
        self.first_since_boot = False

    def pools_listed(self) -> bool:
        return set(KINDS[2:]) <= self.router.kinds

    def listed_pools(self) -> Sequence[str] | None:
        listed = [each for raw in self.router.objects("IPAddressPool") for each in raw["spec"]["addresses"]]
        return listed or self.pools[-1]

    def check(self, result: SyncResult) -> None:
        router, s = self.router, result.snapshot
        assert s is not None
        wanted, found = router._result.wanted, router.kernel.read()
        assert wanted is not None
        assert filled(found.ruleset.elements) == filled(wanted.elements)
        assert found.ruleset.tables.keys() == wanted.tables.keys()
        digest = tables_digest(wanted.tables)
        assert self.rules.setdefault(digest, found.rules) == found.rules or not s.complete
        if not s.complete:
            return
        assert not s.undecided
        if result.outcome is Outcome.WAITING:
            return
        pools = self.pools[-1]
        if router._observer.deadline == float("inf"):
            assert without_poisoned(self.open()) == without_poisoned(asked(router.objects("Service"), pools))
        refused = router.refused(Reason.QUARANTINED)
        assert refused <= {"default/poisoned"}
        assert {each for each in self.open() if each[1].startswith(POISONED)} <= self.poisons

    def remembered(self) -> None:
        """The journal, read anew, gives what the process remembers."""
        router = self.router
        memory, kept = Journal(router.config.state).load(), router._record.memory
        assert memory.services == {name: replace(each, rejections=()) for name, each in kept.services.items()}
        assert replace(memory.facts, as_of="") == replace(kept.facts, as_of="")

    # the process

    def dies(self) -> None:
        """It was killed. The next one hears of nothing."""
        self.router.die()
        self.router._begin(listed=False)
        self.begins()

    def restart(self) -> None:
        before, wrote = self.open(), self.router._result.settings is not None
        self.router.settle_disk()
        self.remembered()
        self.router._begin(listed=False)
        self.begins()
        self.sync()
        if wrote and not self.first_since_boot and not self.router._reconciler._base:
            assert without_poisoned(self.open()) >= without_poisoned(before & self.truth())

    def down(self, between: Callable[[], None]) -> None:
        """Something happens while no process is there."""
        self.router.settle_disk()
        self.remembered()
        between()
        self.router._begin(listed=False)
        self.begins()

    def boot(self, how: str, tables: str) -> None:
        def between() -> None:
            self.router.namespace.nft("flush ruleset\n" + (self.saved if tables == "older" else ""))
            (self.router.config.runtime / "since-boot").unlink(missing_ok=True)

        self.router.early = how == "command"
        self.down(between)
        known = self.router._record.memory.facts.spec is not None
        self.sync()
        if known:
            views = {
                element for view in self.views for raw in view for each in claims(raw).values() for element in each
            }
            assert without_poisoned(self.open()) <= views, "at the first run since boot memory is right"
        if self.router.early:
            self.router.early = False
            self.down(lambda: None)
            self.sync()

    def damage(self, command: str, *, running: bool) -> None:
        def do() -> None:
            self.router.place.run(["nft", command], check=False)

        if running:
            do()
        else:
            self.down(do)
        self.sync("resync" if running else "look")

    # events

    def happens(self, event: Event) -> None:  # noqa: C901, PLR0912, PLR0915  # one case each
        router = self.router
        match event:
            case "put", fields:
                router.put(_service(**fields))
            case "delete", number:
                router.delete(*(each for each in router.objects("Service") if each["metadata"]["name"] == f"s{number}"))
            case "poison", limit:
                raw = _service("poisoned", "p", NEW, (POISONED,), limit=None if limit == "gone" else limit)
                self.poisons |= {each for elements in claims(raw).values() for each in elements}
                (router.delete if limit == "gone" else router.put)(raw)
            case "nft", "gone":
                router.delete(nft())
            case "nft", "invalid":
                router.put({**nft(), "spec": {"public_nic": "!"}})
            case "nft", switches:
                router.put(nft(NIC, **switches))
            case "pools", ranges:
                raw = _pool(*ranges)
                (router.put if ranges else router.delete)(raw)
            case "lists", kinds:
                router.lists(*kinds)
            case ("doubt",):
                router.lists("Service", doubted=True)
            case "sync", mode:
                self.sync(mode)
            case "restart", how:
                self.restart()
                if how == "listed":
                    router.lists()
                    self.sync()
            case "kill", when:
                self.kill = when
                self.sync()
                self.kill = ""
            case "boot", how, tables:
                self.boot(how, tables)
            case ("save",):
                self.saved = router.place.run(["nft", "list", "ruleset"]).stdout
            case "damage", command, when:
                self.damage(command, running=when == "running")
            case ("outage",):
                router.reload(listed=False)
                self.sync()
            case ("refuse",):
                self.refuse = True
                self.sync()
                self.refuse = False
            case "local chain", rule:
                router.local_chain.write_text(f"chain local-chain {{\n\t{rule}\n}}\n" if rule else "")
            case "nic", "gone":
                router.place.run(["ip", "link", "delete", NIC], check=False)
            case "nic", "there":
                router.place.run(["ip", "link", "add", NIC, "type", "dummy"], check=False)


def _service(name: str, uid: str, created: str, addresses: Sequence[str], **fields: Any) -> Raw:
    raw = service(name, *addresses, **fields)
    raw["metadata"] |= {"uid": f"{uid}-{name}", "creationTimestamp": created}
    return raw


def _pool(*ranges: str) -> Raw:
    metadata = {"namespace": "metallb-system", "name": "pool", "uid": "uid-pool"}
    spec = {"addresses": list(ranges)}
    return {"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool", "metadata": metadata, "spec": spec}


@contextmanager
def fresh(place: Namespace) -> Iterator[World]:
    place.nft("flush ruleset")
    place.run(["ip", "link", "add", NIC, "type", "dummy"], check=False)
    with TemporaryDirectory() as made:
        folder = Path(made)
        with Hostile(place, config_in(folder, runtime=folder / "run", state=folder / "state")) as router:
            yield World(router)


@pytest.fixture(scope="module")
def place() -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser refuses every limit that is known to overflow: for a kernel that refuses one it has to be deceived."""
    poisonous = RateLimit(2**62, "week", 0, packets=False)

    def parse(text: str) -> RateLimit:
        return poisonous if text in (POISON, str(poisonous)) else parse_ratelimit(text)

    monkeypatch.setattr(objects, "parse_ratelimit", parse)
    monkeypatch.setattr(records, "parse_ratelimit", parse)
    monkeypatch.setattr(journal, "GRACE", 10.0)  # however busy the machine is, what a process writes ahead is written


def play(place: Namespace, events: Iterable[Event]) -> None:
    with fresh(place) as world:
        for event in events:
            world.happens(event)
        world.router.lists()
        world.sync("resync")
        world.sync("resync")
        assert not world.router._result.drift
        world.restart()


@settings(max_examples=settings().max_examples // 2)
@given(st.lists(_events, max_size=14))
def test_whatever_happens_the_kernel_holds_what_is_asked_for(place: Namespace, events: list[Event]) -> None:
    started = [("nft", {}), ("pools", WIDE), ("lists", KINDS), ("sync", "look")]
    play(place, [*started, *events])
