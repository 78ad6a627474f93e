"""The configuration file: every key, and for every mistake one line that names file, key and value."""

from __future__ import annotations

import dataclasses
import os
import socket
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftsync import config
from nftsync.config import AddressPolicy, Caps, Config, ConfigError, Filters, PoolMode, load, parse
from nftsync.objects.names import Name
from nftsync.objects.nft import Nics
from tests.support import ROOT

pytestmark = pytest.mark.usefixtures("no_dns")


def read(folder: Path, text: str | bytes) -> Config:
    file = folder / "nftsync.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(file)


def fault(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as refused:
        read(folder, text)
    message = str(refused.value)
    assert message.startswith(f"{folder}/nftsync.toml: ")
    assert message.isprintable()
    return message.removeprefix(f"{folder}/nftsync.toml: ")


KEYS: dict[str, tuple[str, Any]] = {
    'kubeconfig = "/root/.kube/config"': ("kubeconfig", Path("/root/.kube/config")),
    "unsafe_kubeconfig = true": ("unsafe_kubeconfig", True),
    'router_name = "edge1"': ("router_name", "edge1"),
    "resync_interval = 5": ("resync_interval", 5.0),
    "resync_interval = 1.5": ("resync_interval", 1.5),
    "resync_interval = 86400": ("resync_interval", 86400.0),
    "own_tables = false": ("own_tables", False),
    "stateless = true": ("stateless", True),
    "ingress_qdisc = false": ("ingress_qdisc", False),
    "confirm_seconds = 0": ("confirm_seconds", 0.0),
    "confirm_seconds = 300": ("confirm_seconds", 300.0),
    'nft.name = "other"': ("nft", Name("arbf-operators", "other")),
    'nft.namespace = "other"': ("nft", Name("other", "nft")),
    'paths.local_chain = "/x/local.nft"': ("local_chain", Path("/x/local.nft")),
    'paths.state = "/x/state"': ("state", Path("/x/state")),
    'paths.runtime = "/x/run"': ("runtime", Path("/x/run")),
    'metrics.address = "192.0.2.1:1"': ("metrics", ("192.0.2.1", 1)),
    'metrics.address = "[2001:db8::1]:65535"': ("metrics", ("2001:db8::1", 65535)),
    'metrics.address = "127.0.0.1:0"': ("metrics", ("127.0.0.1", 0)),
    'metrics.address = ""': ("metrics", None),
    "metrics.services = 0": ("metrics_services", 0),
    "caps.pinholes = 7": ("caps", Caps(pinholes=7)),
    "caps.pinholes_per_namespace = 0": ("caps", Caps(pinholes_per_namespace=0)),
    'filters.namespaces = ["a", "b"]': ("service_filter", Filters(namespaces=frozenset({"a", "b"}))),
    'filters.exclude_namespaces = ["a"]': ("service_filter", Filters(exclude_namespaces=frozenset({"a"}))),
    'filters.load_balancer_classes = ["", "example.com/lb"]': (
        "service_filter", Filters(load_balancer_classes=frozenset({"", "example.com/lb"})),
    ),
    (
        'router_name = "edge1"\noverrides.edge1.public_nic = "enp2s0"\n'
        'overrides.edge2.public_nic = "enp3s0"'
    ): ("nics", Nics(("enp2s0",))),
    (
        'router_name = "edge1"\n[overrides.edge1]\npublic_nic = "a"\npublic_nics = ["b", "a"]\ninside_nics = ["c"]'
    ): ("nics", Nics(("a", "b"), ("c",))),
    'pools = "required"': ("address_policy", AddressPolicy(PoolMode.REQUIRED)),
    'pools = "ignored"': ("address_policy", AddressPolicy(PoolMode.IGNORED)),
    "advertised_pools_only = true": ("address_policy", AddressPolicy(advertised_only=True)),
    'allowed_prefixes = ["192.0.2.0/24"]': ("address_policy", AddressPolicy(allowed=(IPv4Network("192.0.2.0/24"),))),
    'bgp_peers = ["192.0.2.0/24"]': ("bgp_peers", (IPv4Network("192.0.2.0/24"),)),
}  # fmt: skip


@pytest.mark.parametrize(("text", "meaning"), KEYS.items())
def test_every_key_means_this_and_nothing_else_changes(tmp_path: Path, text: str, meaning: tuple[str, Any]) -> None:
    key, value = meaning
    found = read(tmp_path, text)
    expected = dataclasses.replace(Config(), **{key: value})
    assert found == dataclasses.replace(expected, router_name=found.router_name)


def test_every_field_of_the_configuration_can_be_set() -> None:
    assert {key for key, _ in KEYS.values()} == {each.name for each in dataclasses.fields(Config)} - {"text"}


def test_a_configuration_keeps_its_files_text_from_which_the_same_one_can_be_read_again(tmp_path: Path) -> None:
    text = 'resync_interval = 5 # "seconds"\n[caps]\npinholes = 7\n'
    found = read(tmp_path, text)
    assert found.text == text
    assert parse(found.text, "what is remembered") == found
    assert Config().text == ""


def test_the_shipped_file_holds_the_defaults(tmp_path: Path) -> None:
    assert load(ROOT / "etc/nftsync.toml") == Config() == read(tmp_path, "")


def test_the_router_is_called_as_the_host_unless_it_is_named(tmp_path: Path) -> None:
    assert Config().router_name == socket.gethostname()
    assert read(tmp_path, 'router_name = ""').router_name == socket.gethostname()


def test_an_override_for_another_router_changes_nothing_here(tmp_path: Path) -> None:
    assert read(tmp_path, 'router_name = "edge1"\n[overrides.edge2]\npublic_nic = "enp3s0"').nics == Nics()


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().resync_interval = 5.0  # type: ignore[misc]


def test_a_peer_that_is_named_by_its_one_address_is_never_opened(tmp_path: Path) -> None:
    found = read(tmp_path, 'bgp_peers = ["192.0.2.1/32", "192.0.2.128/25", "2001:db8::1"]')
    assert set(map(str, found.bgp_peers)) == {"192.0.2.1/32", "192.0.2.128/25", "2001:db8::1/128"}
    assert set(map(str, found.address_policy.reserved)) == {"192.0.2.1", "2001:db8::1"}


def test_prefixes_are_sorted_and_merged(tmp_path: Path) -> None:
    found = read(tmp_path, 'allowed_prefixes = ["2001:db8::/32", "192.0.2.128/25", "192.0.2.0/25", "192.0.2.7"]')
    assert list(map(str, found.address_policy.allowed)) == ["192.0.2.0/24", "2001:db8::/32"]


MISTAKES = {
    "metrics.services = -1": "metrics.services = -1: this is not a whole number from 0 to 100000",
    "metrics.services = true": "metrics.services = True: this is not a whole number",
    'pools = "on"': "pools = 'on': this is not one of auto, required, ignored",
    "pools = true": "pools = True: this is not one of auto, required, ignored",
    "advertised_pools_only = 1": "advertised_pools_only = 1: this is neither true nor false",
    'allowed_prefixes = "192.0.2.0/24"': "this is not a list of prefixes",
    'allowed_prefixes = ["192.0.2.1/24"]': "'192.0.2.1/24' is not a prefix without host bits such as 192.0.2.0/24",
    'allowed_prefixes = ["192.0.2.0/0.0.0.255"]': "'192.0.2.0/0.0.0.255' is not a prefix",
    'allowed_prefixes = ["fe80::%eth0/64"]': "'fe80::%eth0/64' is not a prefix",
    "bgp_peers = [5]": "bgp_peers = a list: this is not a printable text in quotes",
    'kubeconfg = "/x"': (
        "kubeconfg = '/x': there is no such key; known keys: advertised_pools_only, allowed_prefixes, bgp_peers,"
    ),
    "[nft]\nnam = 5": "nft.nam = 5: there is no such key; known keys: name, namespace",
    "[overrides.edge1]\nenable_bgp = true": (
        "overrides.edge1.enable_bgp = True: there is no such key; known keys: inside_nics, public_nic, public_nics"
    ),
    "[Metrics]": "Metrics = a dict: there is no such key",
    '"a\\nb" = 5': r"a\nb = 5: there is no such key",
    '"x\\u001b[2J" = 5': r"x\x1b[2J = 5: there is no such key",
    "kubeconfig = 5": "kubeconfig = 5: this is not a printable text in quotes",
    'kubeconfig = "kube/config"': "kubeconfig = 'kube/config': this is not an absolute path",
    'kubeconfig = ""': "kubeconfig = '': this is not an absolute path",
    'kubeconfig = "~/x"': "this is not an absolute path",
    'kubeconfig = "/x\\n"': r"kubeconfig = '/x\n': this is not a printable text in quotes",
    "router_name = true": "router_name = True: this is not a printable text in quotes",
    "resync_interval = 0": "resync_interval = 0: this is not a number of seconds from 1 to 86400",
    "caps.pinholes = -1": "caps.pinholes = -1: this is not a whole number from 0 to 10000000",
    "caps.pinholes = 1.5": "this is not a whole number",
    "caps.pinholes_per_namespace = true": "caps.pinholes_per_namespace = True: this is not a whole number",
    "caps.ports = 5": "caps.ports = 5: there is no such key; known keys: pinholes, pinholes_per_namespace",
    "caps = 5": "caps = 5: this is not a table",
    "confirm_seconds = 0.5": "confirm_seconds = 0.5: this is neither 0 nor a number of seconds from 1 to 86400",
    "confirm_seconds = -1": "this is neither 0 nor a number of seconds",
    "resync_interval = 0.9": "resync_interval = 0.9: this is not a number of seconds",
    "resync_interval = 86401": "this is not a number of seconds",
    "resync_interval = -60": "this is not a number of seconds",
    "resync_interval = inf": "this is not a number of seconds",
    "resync_interval = nan": "this is not a number of seconds",
    "resync_interval = true": "resync_interval = True: this is not a number of seconds",
    'resync_interval = "60"': "resync_interval = '60': this is not a number of seconds",
    "resync_interval = 2024-01-01": "resync_interval = a date: this is not a number of seconds",
    f"resync_interval = 0x{'f' * 5000}": "this is not a number of seconds",
    "nft = 5": "nft = 5: this is not a table",
    'nft.name = "Nft"': "nft.name = 'Nft': this is not a Kubernetes name",
    'nft.namespace = ""': "nft.namespace = '': this is not a Kubernetes name",
    "paths = []": "paths = a list: this is not a table",
    'paths.state = "state"': "paths.state = 'state': this is not an absolute path",
    "paths.local_chain = 5": "paths.local_chain = 5: this is not a printable text in quotes",
    "metrics.address = 9469": "metrics.address = 9469: this is not a printable text",
    'metrics.address = "9469"': "metrics.address = '9469': this is not an address and port such as \"127.0.0.1:9469\"",
    'metrics.address = "localhost:9469"': "this is not an address and port",
    'metrics.address = ":9469"': "this is not an address and port",
    'metrics.address = "127.0.0.1:65536"': "this is not an address and port",
    'metrics.address = "127.0.0.1:９"': "this is not an address and port",
    'metrics.address = "::1:9469"': "this is not an address and port",
    'metrics.address = "999.0.0.1:9469"': "metrics.address = '999.0.0.1:9469': ",
    "filters = 5": "filters = 5: this is not a table",
    'filters.namespaces = "a"': "filters.namespaces = 'a': this is not a list of names",
    "filters.namespaces = [5]": "filters.namespaces = a list: this is not a printable text",
    'filters.namespaces = ["A"]': "this is not a Kubernetes name",
    'filters.exclude_namespaces = [""]': "filters.exclude_namespaces = a list: this is not a Kubernetes name",
    "filters.load_balancer_classes = [true]": "this is not a printable text",
    "filters.load_balancer_classes = {}": "filters.load_balancer_classes = a dict: this is not a list of texts",
    "overrides = 5": "overrides = 5: this is not a table",
    "overrides.edge1 = 5": "overrides.edge1 = 5: this is not a table",
    'overrides.edge2.public_nic = "lo"': (
        "overrides.edge2.public_nic = 'lo': this is not the name of a network interface"
    ),
    'router_name = "a"\noverrides.a = {public_nic = "x", inside_nics = ["x"]}': "overrides: x is in inside_nics",
    'overrides.edge2.public_nic = "x\\" accept"': "this is not the name of a network interface",
    "kubeconfig\n": "line 1",
    'router_name = "a"\n\nrouter_name = "b"\n': "line 3",
    "a = [[\n5 }\n": "line 2",
    "a = " + "[" * 100000: "nested too deep",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=[text[:40] for text in MISTAKES])
def test_a_mistake_is_one_line_that_names_file_key_and_value_or_the_line(
    tmp_path: Path, text: str, message: str
) -> None:
    assert message in fault(tmp_path, text)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    assert "utf-8" in fault(tmp_path, b'router_name = "\xff"')


def test_the_default_file_may_be_missing_but_not_one_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "absent.toml")
    assert load(None) == Config()
    with pytest.raises(ConfigError, match=r"absent.toml: there is no such file$"):
        load(tmp_path / "absent.toml")


def test_a_default_file_that_is_there_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "nftsync.toml"
    file.write_text("resync_interval = 7")
    monkeypatch.setattr(config, "DEFAULT_PATH", file)
    assert load(None).resync_interval == 7
    file.write_text("resync = 7")
    with pytest.raises(ConfigError):
        load(None)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path}: Is a directory$"):
        load(tmp_path)


scalars = st.booleans() | st.integers() | st.text(max_size=10) | st.floats()
toml_values = st.one_of(
    st.sampled_from(
        ["true", "5", "1.5", '""', "'/x'", "[]", "{}", "[[5]]", "inf", "1979-05-27", "'''\n'''", '"\\u0000"']
    ),
    st.integers().map(str),
)
lines = st.builds(
    "{} = {}".format,
    st.sampled_from(
        [*(text.partition(" =")[0] for text in KEYS if "\n" not in text), "overrides.a.public_nic", "overrides.a", "x"]
    ),
    toml_values,
)


@given(st.lists(lines, max_size=4, unique_by=lambda line: line.partition(" ")[0]).map("\n".join) | st.text())
def test_no_file_ends_in_anything_but_a_configuration_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / f"hostile-{os.getpid()}.toml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        found = load(file)
    except ConfigError as refused:
        message = str(refused)
        assert message.isprintable()
    else:
        assert 1 <= found.resync_interval <= 86400
        assert found.kubeconfig.is_absolute()
