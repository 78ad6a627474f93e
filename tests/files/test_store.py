"""What outlives the process: whole or not at all, and nothing that stands in its place does harm."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftsync.cluster.watchstate import State
from nftsync.daemon.record import Store
from nftsync.files.sealed import read_sealed, seal
from nftsync.files.store import FORMAT
from nftsync.objects.address import Address, Range, parse_range
from nftsync.objects.metallb import Configuration, Pool
from tests.support import ROOT, json_values

FULL = State(local_chain='\ttcp dport 9 accept # "ü"\n', ingress=7)


def file(folder: Path) -> Path:
    return folder / "state.json"


def test_what_was_saved_is_there_again(tmp_path: Path) -> None:
    Store(tmp_path).save(FULL)
    assert Store(tmp_path).state == FULL
    assert os.listdir(tmp_path) == ["state.json"], "no temporary file stays"


def test_without_a_file_there_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Store(tmp_path).state == State()
    assert Store(tmp_path / "absent").state == State()
    assert caplog.messages == []


def test_the_folder_is_made_when_it_is_needed(tmp_path: Path) -> None:
    Store(tmp_path / "a/b").save(FULL)
    assert Store(tmp_path / "a/b").state == FULL


def test_the_same_state_is_not_written_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(FULL)
    before = file(tmp_path).stat().st_ino
    store.save(FULL)
    Store(tmp_path).save(FULL)
    assert file(tmp_path).stat().st_ino == before


def test_after_a_reboot_no_qdisc_is_ours_since_the_index_may_be_another_nics(tmp_path: Path) -> None:
    boots = [tmp_path / "boot1", tmp_path / "boot2"]
    for boot in boots:
        boot.write_text(f"{boot.name}\n", encoding="ascii")
    Store(tmp_path, boots[0]).save(FULL)
    assert Store(tmp_path, boots[0]).state == FULL
    assert Store(tmp_path, boots[1]).state == State(local_chain=FULL.local_chain)


GOOD = json.dumps({"boot": "", "local_chain": "", "ingress": None})

UNUSABLE = {
    "without the boot": '{"local_chain": ""}',
    "with a key that nobody knows": GOOD.replace('"local_chain"', '"global_chain"'),
    "with a number as chain": GOOD.replace('""', "5"),
    "with a text as index": GOOD.replace("null", '"5"'),
    "with a boolean as index": GOOD.replace("null", "true"),
    "a list": "[]",
    "a text": '"x"',
    "a number": "5",
    "null": "null",
    "nested deeply": "[" * 100000,
    "binary": "\x00\x01",
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_file_that_can_not_be_used_is_reported_and_as_good_as_absent(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    file(tmp_path).write_text(seal(UNUSABLE[kind], FORMAT))
    store = Store(tmp_path)
    assert store.state == State()
    assert len(caplog.messages) == 1
    assert "can't be used and is ignored" in caplog.messages[0]
    assert not store.kept, "and the metric says so"
    store.save(store.state)
    assert store.kept, "before it is replaced"
    store.save(FULL)
    assert Store(tmp_path).state == FULL


def test_bytes_that_are_no_text_and_a_folder_in_its_place_do_no_harm(tmp_path: Path) -> None:
    file(tmp_path).write_bytes(b"\xff\xfe")
    assert Store(tmp_path).state == State()
    file(tmp_path).unlink()
    file(tmp_path).mkdir()
    store = Store(tmp_path)
    store.save(FULL)
    assert store.state == FULL


def test_where_it_can_not_be_written_it_is_reported_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "state"
    folder.write_text("a file stands where the folder should")
    now = [0.0]
    store = Store(folder, clock=lambda: now[0])
    caplog.clear()
    store.save(FULL)
    assert store.state == FULL, "the process itself knows it"
    assert not store.kept
    now[0] = 5.0
    store.save(FULL)
    assert len(caplog.messages) == 1, "said once"
    assert caplog.messages[0].endswith("; after a restart the state is not known")
    folder.unlink()
    store.save(FULL)
    assert not store.kept, "a disk that takes nothing is not asked with every sync"
    now[0] = 10.0
    store.save(FULL)
    assert store.kept
    assert Store(folder).state == FULL


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from nftsync.files.store import State, Store
store = Store(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
store.save(State("x" * 1000))
print(len(store.state.local_chain))
"""


def test_on_a_full_disk_the_old_state_stays_whole(tmp_path: Path) -> None:
    assert hasattr(resource, "RLIMIT_FSIZE")
    assert hasattr(signal, "SIGXFSZ")
    Store(tmp_path).save(FULL)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1000\n"
    assert "after a restart the state is not known" in done.stderr
    assert Store(tmp_path).state == FULL
    assert os.listdir(tmp_path) == ["state.json"], "no temporary file stays"


def test_a_crash_before_the_rename_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path).save(FULL)

    def crash(_: Path, __: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).save(State("new"))
    monkeypatch.undo()
    assert Store(tmp_path).state == FULL


# --- MetalLB's last good configuration -----------------------------------------------------------------


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    """Any that parse_range() gives."""
    if draw(st.booleans()):
        ends: list[Any] = sorted(draw(st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4))))
    else:
        unmapped = st.ip_addresses(v=6).filter(lambda each: IPv6Address(each).ipv4_mapped is None)
        ends = sorted(draw(st.tuples(unmapped, unmapped)))
    return Range(*ends)


def is_peers(address: IPv4Address | IPv6Address) -> bool:
    return isinstance(address, IPv4Address) or address.ipv4_mapped is None


names = st.text(max_size=10) | st.sampled_from(["services", "\n", '"', "\x00", "\ud800", "ü"])
pools = st.builds(Pool, names, names, st.lists(ranges(), max_size=4).map(tuple), st.booleans())
peers: st.SearchStrategy[frozenset[Address]] = st.frozensets(st.ip_addresses().filter(is_peers), max_size=4)
configurations = st.none() | st.builds(Configuration, st.lists(pools, max_size=3).map(tuple), peers)


@settings(max_examples=60)
@given(configurations, peers)
def test_any_configuration_of_metallb_is_the_same_after_a_restart(
    configuration: Configuration | None, former: frozenset[Address]
) -> None:
    state = State("", 7, configuration, former)
    with tempfile.TemporaryDirectory() as folder:
        Store(Path(folder)).save(state)
        assert Store(Path(folder)).state == state
        written = json.loads(read_sealed(file(Path(folder)), FORMAT))
        assert (written["metallb"] is None) == (configuration is None), "nothing seen is not the same as no pools"


KNOWN = Configuration(
    (Pool("services", "IPAddressPool metallb-system/services", (parse_range("192.0.2.0/24"),), advertised=True),),
    frozenset({ip_address("192.0.2.250")}),
)


def test_the_pools_hold_over_a_reboot_and_an_older_version_knew_none(tmp_path: Path) -> None:
    boots = [tmp_path / "boot1", tmp_path / "boot2"]
    for boot in boots:
        boot.write_text(f"{boot.name}\n", encoding="ascii")
    Store(tmp_path, boots[0]).save(State("x", 7, KNOWN, frozenset({ip_address("192.0.2.9")})))
    assert Store(tmp_path, boots[1]).state == State("x", None, KNOWN), "of connections that are gone nothing is remembered"
    file(tmp_path).write_text(seal(json.dumps({"boot": "boot1", "local_chain": "x", "ingress": 7}), FORMAT))
    assert Store(tmp_path, boots[0]).state == State("x", 7)


def described(metallb: object) -> str:
    return json.dumps({"boot": "", "local_chain": "x", "ingress": None, "metallb": metallb, "former": []})


def with_pool(**changes: Any) -> dict[str, Any]:
    """A configuration of one good pool with other values."""
    pool = {"name": "a", "source": "s", "ranges": ["192.0.2.0-192.0.2.255"], "advertised": True}
    return {"pools": [pool | changes], "peers": []}


HOSTILE: dict[str, object] = {
    "a text": "pools",
    "a number": 5,
    "true": True,
    "a list": [],
    "empty": {},
    "without peers": {"pools": []},
    "without pools": {"peers": []},
    "pools that are a number": {"pools": 5, "peers": []},
    "pools that are null": {"pools": None, "peers": []},
    "pools that are a text": {"pools": "services", "peers": []},
    "pools that are texts": {"pools": ["services"], "peers": []},
    "a pool that is empty": {"pools": [{}], "peers": []},
    "a pool that is null": {"pools": [None], "peers": []},
    "ranges that are null": with_pool(ranges=None),
    "ranges that are a text": with_pool(ranges="192.0.2.0/24"),
    "a range that is no text": with_pool(ranges=[5]),
    "a range that is none": with_pool(ranges=["192.0.2.0"]),
    "a range that begins after its end": with_pool(ranges=["192.0.2.9-192.0.2.1"]),
    "a range in two families": with_pool(ranges=["192.0.2.9-2001:db8::9"]),
    "a range that is long": with_pool(ranges=["1" * 100_000]),
    "peers that are null": {"pools": [], "peers": None},
    "a peer that is no text": {"pools": [], "peers": [5]},
    "a peer that is no address": {"pools": [], "peers": ["192.0.2.1/32"]},
    "a peer with a zone": {"pools": [], "peers": ["fe80::1%eth0"]},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_configuration_that_can_not_be_read_makes_the_file_as_good_as_absent(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    file(tmp_path).write_text(seal(described(with_pool()), FORMAT))
    assert Store(tmp_path).state.metallb is not None
    file(tmp_path).write_text(seal(described(HOSTILE[kind]), FORMAT))
    store = Store(tmp_path)
    assert store.state == State(), "not even the chain is taken from it"
    assert len(caplog.messages) == 1
    assert "can't be used and is ignored" in caplog.messages[0]
    assert len(caplog.messages[0]) < 500
    store.save(FULL)
    assert Store(tmp_path).state == FULL


def test_a_file_that_was_torn_anywhere_is_as_good_as_absent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Store(tmp_path).save(State("x", 7, KNOWN))
    whole = file(tmp_path).read_bytes()
    for length in range(len(whole)):
        file(tmp_path).write_bytes(whole[:length])
        caplog.clear()
        assert Store(tmp_path).state == State()
        assert len(caplog.messages) == 1
    file(tmp_path).write_bytes(whole)
    assert Store(tmp_path).state == State("x", 7, KNOWN)


fields = st.sampled_from(["pools", "peers", "name", "source", "ranges", "advertised"])
hostile = st.recursive(
    json_values | st.sampled_from(["192.0.2.0/24", "192.0.2.1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=6),
    max_leaves=12,
)


@settings(max_examples=200)
@given(hostile, hostile)
def test_whatever_stands_in_the_file_a_store_opens_and_holds_what_it_says_it_holds(metallb: object, former: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps({"boot": "", "local_chain": "", "ingress": None, "metallb": metallb, "former": former})
        file(Path(folder)).write_text(seal(text, FORMAT))
        found = Store(Path(folder)).state.metallb
        for pool in found.pools if found else ():
            assert (type(pool.name), type(pool.source), type(pool.advertised)) == (str, str, bool)
            assert all(type(each) is Range for each in pool.ranges)
        assert all(isinstance(each, IPv4Address | IPv6Address) for each in (found.peers if found else ()))
