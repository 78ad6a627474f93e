"""An upgrade forgets nothing.

The files of version 0.1.0 count until the cluster is heard, or until the next boot.

The files in version-1/ were written by a daemon of that version, for the Services in OPENED.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Set as AbstractSet
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from nftsync.cluster.source import ClusterSource
from nftsync.config import Caps, Config, Filters
from nftsync.daemon.publish import MetricsObserver
from nftsync.exporter.metrics import Metrics
from nftsync.files import journal as module
from nftsync.files.journal import Journal
from nftsync.files.memory_v1 import read_version_1
from nftsync.files.sealed import read_sealed, replace_sealed
from nftsync.objects.address import Range
from nftsync.objects.metallb import MetalLBConfig, Pool
from nftsync.objects.names import Name, Reason
from nftsync.objects.nft import NftSpec, Nics
from nftsync.objects.ratelimit import parse_ratelimit
from nftsync.objects.service import parse_service
from nftsync.plan.memory import Facts, Memory
from nftsync.policy.pinholes import PinholeIndex
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import ruleset
from nftsync.ruleset.text import render
from tests.lab.lab import Lab, Probe
from tests.labtools import PUBLIC_NIC, SERVICE4, SERVICE6, Daemon, elements, needs_root, nft, packets, rules, service
from tests.reboot import boot
from tests.router import LabRouter, config_in
from tests.support import side

WRITTEN = Path(__file__).parent / "version-1"
FILES = {"state.json": 2, "services": 1, "ruleset.nft": 1}  # and their formats
CHAIN = '\ttcp dport 4444 accept comment "it\'s { mine }, ü"\n\tip saddr { 192.0.2.66, 192.0.2.67 } drop\n'
MIXED = ["203.0.113.0/24", "198.51.100.7/32", "2001:db8:1::/48", "2001:db8:7::1/128"]
OPENED = [
    service("web", SERVICE4, SERVICE6),
    service("slow", "172.30.254.3", ports=[("UDP", 53)], limit="1/week burst 3 packets"),
    service("friends", "172.30.254.2", sources=["203.0.113.0/24"]),
    service(
        "mixed",
        "172.30.254.10",
        "2001:db8:254::10",
        ports=[("TCP", 443), ("UDP", 443), ("SCTP", 5000)],
        sources=MIXED,
        limit="2 mbytes/second burst 512 kbytes",
    ),
    service("nobody", "172.30.254.11", sources=["no range"]),
    service("shared", SERVICE4, ports=[("TCP", 8443)], limit="1 mbytes/second"),
    service("everybody", "172.30.254.12", "2001:db8:254::12", sources=["0.0.0.0/0", "::/0"]),
]
NAMES = {"web", "slow", "friends", "mixed", "nobody", "shared", "everybody"}


def sets(text: str) -> dict[str, str]:
    """The sets of a ruleset's text with their elements, but not the pools."""
    blocks = {block[1]: block[0] for block in re.finditer(r"\tset (\S+) \{.*?\n\t\}\n", text, re.DOTALL)}
    return {name: block for name, block in blocks.items() if not name.startswith("pools")}


def left(folder: Path, *, rolled_back: bool = False) -> Path:
    """A state directory as version 0.1.0 left it."""
    shutil.copytree(WRITTEN, folder, ignore=shutil.ignore_patterns("rolled-back"))
    if rolled_back:
        shutil.copy(WRITTEN / "rolled-back" / "state.json", folder)
    return folder


def change(folder: Path, name: str, before: str, after: str) -> None:
    text = read_sealed(folder / name, FILES[name])
    assert before in text
    replace_sealed(folder / name, text.replace(before, after), FILES[name])


# --- what is read -----------------------------------------------------------------------------------------


def test_settings_pools_and_the_local_chain_are_known() -> None:
    ends = [("172.30.254.0", "172.30.254.255"), ("2001:db8:254::", "2001:db8:254:0:ffff:ffff:ffff:ffff")]
    ranges = tuple(Range(ip_address(first), ip_address(last)) for first, last in ends)
    assert read_version_1(WRITTEN).facts == Facts(
        spec=NftSpec(Nics((PUBLIC_NIC,))),
        pools=MetalLBConfig(
            (Pool("services", "IPAddressPool metallb-system/services", ranges, advertised=True),),
            frozenset({ip_address("203.0.113.200")}),
        ),
        pools_listed=True,
        local_chain=CHAIN,
    )


def test_settings_that_nobody_confirmed_stay_rolled_back(tmp_path: Path) -> None:
    facts = read_version_1(left(tmp_path / "state", rolled_back=True)).facts
    assert facts.spec == NftSpec(Nics((PUBLIC_NIC,)))
    assert facts.rolled_back == NftSpec(Nics((PUBLIC_NIC,)), enable_ssh=False)


def test_each_pinhole_is_open_for_the_same_and_limited_as_it_was() -> None:
    memory = read_version_1(WRITTEN)
    pinholes = PinholeIndex(memory.services.values(), Filters()).pinholes
    made = render(ruleset(pinholes.values(), Settings(side(PUBLIC_NIC), enable_rateshape=True)))
    assert sets(made).items() >= sets((WRITTEN / "ruleset.nft").read_text()).items()
    assert pinholes["172.30.254.10 . sctp . 5000"].sources == tuple(
        map(ip_network, ("198.51.100.7/32", "203.0.113.0/24"))
    )
    assert pinholes["172.30.254.1 . tcp . 8443"].limit is not None


def test_the_services_are_known_by_name_and_their_limits_by_the_object_that_had_them() -> None:
    memory = read_version_1(WRITTEN)
    assert memory.named.keys() == {Name("default", name) for name in NAMES}
    mistaken = service("mixed", "172.30.254.10", limit="much")
    parsed = parse_service(mistaken, memory.services[Name("default", "mixed")])
    assert parsed is not None
    assert parsed.limit == parse_ratelimit("2 mbytes/second burst 512 kbytes"), "the limit that it had stays"
    mistaken["metadata"]["uid"] = "another"
    parsed = parse_service(mistaken, memory.services[Name("default", "mixed")])
    assert parsed is not None
    assert parsed.limit is None


@pytest.mark.parametrize(
    "filters",
    [
        Filters(namespaces=frozenset({"default"})),
        Filters(exclude_namespaces=frozenset({"kube-system"})),
        Filters(load_balancer_classes=frozenset({"example.com/ours"})),
    ],
    ids=["namespaces", "excluded namespaces", "classes"],
)
def test_filters_and_caps_let_in_whoever_was_in(filters: Filters) -> None:
    memory = read_version_1(WRITTEN)
    every = PinholeIndex(memory.services.values(), Filters()).pinholes
    desired = PinholeIndex(memory.services.values(), filters, caps=Caps(1, 1), admitted=memory.services)
    assert desired.pinholes == every
    assert desired.admitted == memory.services, "and nobody's name is forgotten"


def test_an_address_without_its_service_does_not_make_the_first_list_doubtful(tmp_path: Path) -> None:
    """Whether most of the Services are gone is asked of Services alone: no list will ever name those addresses."""
    folder = left(tmp_path / "state")
    addresses = ",\n".join(f"172.30.254.{number} . tcp . 80" for number in range(100, 200))
    change(folder, "ruleset.nft", "172.30.254.1 . tcp . 80,", f"172.30.254.1 . tcp . 80,\n{addresses},")
    memory = read_version_1(folder)
    assert len(memory.services) > 100
    kubeconfig = tmp_path / "kubeconfig"
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    user = {"name": "u", "user": {"token": "t"}}
    kinds = {"kind": "Config", "apiVersion": "v1", "current-context": "c"}
    kubeconfig.write_text(json.dumps({**kinds, "contexts": [context], "clusters": [cluster], "users": [user]}))
    asked = []

    def is_suspect(gone: AbstractSet[Name], known: int) -> bool:
        asked.append((gone, known))
        return False

    config = Config(kubeconfig=kubeconfig)
    source = ClusterSource(config, memory.named, MetricsObserver(Metrics()), lambda: None, time.monotonic)
    try:
        with source.inputs.services.relist(is_suspect=is_suspect) as relist:
            for each in OPENED[1:]:
                relist.put(each)
    finally:
        source.stop()
    assert asked == [({Name("default", "web")}, len(NAMES))]


# --- files that are not whole -----------------------------------------------------------------------------


def test_without_such_files_nothing_is_known_and_nothing_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_version_1(tmp_path) == read_version_1(tmp_path / "absent") == Memory()
    assert caplog.messages == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["torn", "of another shape", "a pipe's place"])
def test_a_file_that_can_not_be_used_is_told_and_the_others_count(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, whole = left(tmp_path / "state"), read_version_1(WRITTEN)
    if damage == "torn":
        (folder / name).write_bytes((folder / name).read_bytes()[:-7])
    elif damage == "of another shape":
        hostile = {
            "state.json": '{"spec": 5}',
            "services": "web",
            "ruleset.nft": "\tset services4 {\nelements = { x . y }\n\t}\n",
        }
        replace_sealed(folder / name, hostile[name], FILES[name])
    else:
        (folder / name).unlink()
        (folder / name).mkdir()
    found = read_version_1(folder)
    assert len(caplog.messages) == 1
    assert f"{name} can't be used and is ignored: " in caplog.messages[0]
    assert found.facts == (Facts() if name == "state.json" else whole.facts)
    assert found.named.keys() == (frozenset() if name == "services" else whole.named.keys())
    addresses = {name for name in found.services if not name.namespace}
    assert addresses == (set() if name == "ruleset.nft" else {name for name in whole.services if not name.namespace})


def test_an_older_file_without_pools_and_settings_is_understood(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replace_sealed(tmp_path / "state.json", json.dumps({"boot": "", "local_chain": CHAIN, "ingress": 7}), 2)
    assert read_version_1(tmp_path).facts == Facts(local_chain=CHAIN)
    assert caplog.messages == []


def test_once_there_is_a_journal_it_alone_counts(tmp_path: Path) -> None:
    folder = left(tmp_path / "state")
    journal = Journal(folder)
    assert journal.load() == read_version_1(WRITTEN)
    assert journal.wants_all
    memory = Memory({}, Facts(spec=NftSpec(Nics(("eth7",)))))
    journal.replace(memory)
    journal.finish()
    shutil.copytree(WRITTEN, folder, dirs_exist_ok=True)
    assert Journal(folder).load() == memory
    (folder / "memory.journal").write_text("damaged")
    assert Journal(folder).load() == Memory(), "rules of long ago are no better than the base"


def test_the_old_files_stay_until_there_is_a_journal_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = left(tmp_path / "state")
    journal = Journal(folder)
    memory = journal.load()

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "replace_text", full)
    journal.replace(memory)
    journal.finish()
    assert set(os.listdir(folder)) == set(FILES)
    monkeypatch.undo()
    assert Journal(folder).load() == memory
    journal = Journal(folder)
    journal.replace(journal.load())
    journal.finish()
    assert os.listdir(folder) == ["memory.journal"]
    (folder / "memory.journal").unlink()
    assert Journal(folder).load() == Memory(), "an operator who wants nothing to be remembered removes one file"


def test_what_was_read_is_the_same_from_the_journal(tmp_path: Path) -> None:
    folder = left(tmp_path / "state", rolled_back=True)
    journal, memory = Journal(folder), read_version_1(folder)
    assert journal.load() == memory
    journal.replace(memory)
    journal.finish()
    assert Journal(folder).load() == memory


# --- with packets -----------------------------------------------------------------------------------------

FRIEND, STRANGER, FRIEND6 = "203.0.113.9", "198.51.100.8", "2001:db8:1::9"


def probes() -> dict[Probe, bool]:
    """Packets, and whether each may pass."""
    return {
        Probe("tcp", SERVICE4, 80): True,
        Probe("tcp", SERVICE6, 80): True,
        Probe("tcp", SERVICE4, 8443): True,
        Probe("udp", SERVICE4, 80): False,
        Probe("tcp", SERVICE4, 81): False,
        Probe("tcp", SERVICE6, 8443): False,
        Probe("tcp", "172.30.254.2", 80, source=FRIEND): True,
        Probe("tcp", "172.30.254.2", 80, source=STRANGER): False,
        Probe("tcp", "172.30.254.10", 443, source=FRIEND): True,
        Probe("udp", "172.30.254.10", 443, source=FRIEND): True,
        Probe("sctp", "172.30.254.10", 5000, source=FRIEND): True,
        Probe("tcp", "172.30.254.10", 443, source="198.51.100.7"): True,
        Probe("tcp", "172.30.254.10", 443, source=STRANGER): False,
        Probe("sctp", "2001:db8:254::10", 5000, source=FRIEND6): True,
        Probe("sctp", "2001:db8:254::10", 5000, source="2001:db8:2::9"): False,
        Probe("tcp", "172.30.254.11", 80): False,
        Probe("tcp", "172.30.254.12", 80): True,
        Probe("tcp", "2001:db8:254::12", 80): True,
        Probe("tcp", "172.30.254.4", 80): False,
        Probe("tcp", "172.30.254.4", 4444): True,
        Probe("tcp", SERVICE4, 80, source="192.0.2.66"): False,
    }


def as_it_was(lab: Lab) -> bool:
    """Whether what may pass is what could before the upgrade; nothing of the limited one is spent."""
    return lab.deliver(probes()) == [probe for probe, passes in probes().items() if passes]


def limited(lab: Lab) -> bool:
    return len(lab.deliver([Probe("udp", "172.30.254.3", 53)] * 9)) == 3


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory of an upgraded router, whose operator has rules of his own."""
    (tmp_path / "local-chain.nft").write_text(f"chain local-chain {{\n{CHAIN}}}\n")
    return left(tmp_path / "state")


@needs_root
def test_after_an_upgrade_and_a_reboot_without_a_cluster_exactly_that_is_open_which_was(
    tmp_path: Path, state: Path
) -> None:
    with Lab() as lab, Daemon(lab, tmp_path) as daemon:
        assert "the remembered rules are in force: 13 pinholes" in boot(daemon)
        assert as_it_was(lab)
        assert limited(lab)
        lab.router.nft("flush ruleset")
        assert os.listdir(state) == ["memory.journal"], "from now on it counts"
        assert "the remembered rules are in force: 13 pinholes" in boot(daemon), "at the second boot, too"
        assert as_it_was(lab)
        assert limited(lab)


@needs_root
def test_the_settings_that_were_rolled_back_are_not_in_force_after_the_reboot(tmp_path: Path) -> None:
    left(tmp_path / "state", rolled_back=True)
    with Lab() as lab, Daemon(lab, tmp_path) as daemon:
        boot(daemon)
        assert "tcp dport 22 accept" in rules(lab)
        daemon.put(nft(enable_ssh=False), *OPENED)
        daemon.start()
        assert "tcp dport 22 accept" in rules(lab), "the resource still says what nobody confirmed"


@needs_root
def test_after_an_upgrade_without_a_reboot_and_without_a_cluster_nothing_changes(tmp_path: Path, state: Path) -> None:
    filtering, _, shaping = read_sealed(state / "ruleset.nft", 1).partition(
        "# --- what needs the public NIC to be there ---\n"
    )
    with Lab() as lab:
        lab.router.nft(filtering + shaping)
        assert lab.arrives("tcp", SERVICE4, 80)
        counted = packets(lab, "services4", f"{SERVICE4} . tcp . 80")
        assert counted == 1
        with LabRouter(lab, config_in(tmp_path, state=state), nft(), *OPENED, listed=False) as router:
            assert "the first lists are not complete" in router.sync().message
            assert packets(lab, "services4", f"{SERVICE4} . tcp . 80") == counted, "the element is still the same"
            assert as_it_was(lab)
            assert limited(lab)
            router.lists()
            router.synced()
            assert {str(hole.service) for hole in router.pinholes().values()} == {f"default/{name}" for name in NAMES}
            assert router.refused(Reason.INVALID_SOURCE_RANGE) == {"default/nobody"}
            assert packets(lab, "services4", f"{SERVICE4} . tcp . 80") > counted
            assert not limited(lab), "of a limit nothing is given back"
            assert as_it_was(lab)
        assert Journal(state).load().services.keys() == {Name("default", name) for name in NAMES}


@needs_root
def test_what_the_cluster_no_longer_asks_for_closes_when_it_is_heard(tmp_path: Path, state: Path) -> None:
    with Lab() as lab, LabRouter(lab, config_in(tmp_path, state=state), nft(), *OPENED[1:], listed=False) as router:
        router.sync()
        assert lab.arrives("tcp", SERVICE4, 80)
        router.lists()
        router.synced()
        assert not lab.arrives("tcp", SERVICE4, 80)
        assert f"{SERVICE4} . tcp . 80" not in elements(lab, "services4")
        assert lab.arrives("tcp", SERVICE4, 8443)
