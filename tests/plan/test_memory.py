"""Memory as records.

Everything that the kernel accepted comes back the same, and any other record is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nftsync.objects.address import Address, Local, Network, Range
from nftsync.objects.metallb import MetalLBConfig, Pool
from nftsync.objects.names import Name, ObjectRef, Reason, Rejection
from nftsync.objects.nft import NftSpec, Nics
from nftsync.objects.ratelimit import RateLimit
from nftsync.objects.service import Port, Protocol, Service
from nftsync.plan.memory import (
    CLOSED,
    GONE,
    SERVICE,
    BootFacts,
    Facts,
    Memory,
    boot_facts_record,
    facts_record,
    parse_boot_facts,
    replay,
    service_record,
)
from nftsync.policy.pinholes import pinholes_of
from tests.support import json_values, services

REFUSALS = (ValueError, TypeError, KeyError, AttributeError)  # what files.journal takes for a record that can't be used

texts = st.text(max_size=10) | st.sampled_from(["services", "\n", '"', "\x00", "\ud800", "ü"])
addresses: st.SearchStrategy[Address] = st.ip_addresses()
address_sets = st.frozensets(addresses, max_size=4)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(addresses)
    return ip_network((address, draw(st.integers(0, address.max_prefixlen))), strict=False)


def unmapped(address: Address) -> bool:
    return isinstance(address, IPv4Address) or address.ipv4_mapped is None


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    """Any that parse_range() gives."""
    one_family = st.ip_addresses(v=draw(st.sampled_from([4, 6]))).filter(unmapped)
    return Range(*sorted([draw(one_family), draw(one_family)], key=int))


pools = st.builds(Pool, texts, texts, st.lists(ranges(), max_size=4).map(tuple), st.booleans())
configurations = st.builds(
    MetalLBConfig, st.lists(pools, max_size=3).map(tuple), st.frozensets(addresses.filter(unmapped), max_size=4)
)
nics = st.lists(st.sampled_from(["eth0", "enp1s0.7", "br-lan", "public0"]), max_size=3, unique=True).map(tuple)
specs = st.builds(
    NftSpec,
    st.builds(Nics, nics.filter(len), nics.map(lambda names: tuple(f"in{name}" for name in names))),
    *4 * [st.booleans()],
    st.sampled_from(["metallb-system", "metallb"]),
)
nic_sets = st.frozensets(st.sampled_from(["eth0", "enp1s0.7", "br-lan@x"]))
facts = st.builds(
    Facts,
    spec=st.none() | specs,
    rolled_back=st.none() | specs,
    pools=st.none() | configurations,
    pools_listed=st.booleans(),
    local_chain=texts,
    config=texts,
    local=st.none() | st.builds(Local, address_sets, st.frozensets(networks(), max_size=3)),
    peers=address_sets,
    public=nic_sets,
    inside=nic_sets,
    devices=nic_sets.map(sorted).map(tuple),
    trunks=nic_sets,
    as_of=texts,
)
classes = st.none() | st.sampled_from(["", "example.com/other", "ü\n"])
accepted = st.builds(lambda service, known: replace(service, load_balancer_class=known), services(), classes)
hashes = st.text("0123456789abcdef", min_size=1, max_size=64)
boot_facts = st.builds(
    BootFacts,
    st.just("") | st.builds("{} {}".format, hashes, hashes),
    st.frozensets(st.integers(1, 2**31), max_size=3),
)


def replayed(*records: str) -> Memory:
    memory = Memory()
    for record in records:
        assert "\n" not in record, "one record is one line"
        assert record.isascii()
        replay(memory, record)
    return memory


# --- there and back -------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(accepted)
def test_any_service_is_the_same_after_a_restart(service: Service) -> None:
    assert replayed(service_record(service.name, service)).services == {service.name: service}


def test_what_was_refused_of_a_service_is_not_remembered_since_every_list_says_it_again() -> None:
    name = Name("default", "a")
    service = Service(
        name, "u", "", "", (), (), None, None, (Rejection(ObjectRef("Service", "default/a"), Reason.MALFORMED, "x"),)
    )
    assert replayed(service_record(name, service)).services == {name: replace(service, rejections=())}


def test_an_address_without_its_service_is_the_same_too_and_no_service_by_name() -> None:
    for address in ("192.0.2.1", "2001:db8::1"):
        service = Service(Name("", f"{address}-12"), "", "", None, (ip_address(address),), (), None, None, ())
        memory = replayed(service_record(service.name, service))
        assert memory.services == {service.name: service}
        assert memory.named == {}


@settings(max_examples=300)
@given(facts)
def test_any_facts_are_the_same_after_a_restart(known: Facts) -> None:
    assert replayed(facts_record(known)).facts == known


@given(boot_facts)
def test_any_facts_of_this_boot_are_the_same_for_the_next_process(known: BootFacts) -> None:
    assert parse_boot_facts(boot_facts_record(known)) == known


@given(facts, facts)
def test_equal_facts_give_equal_records(first: Facts, second: Facts) -> None:
    assert (facts_record(first) == facts_record(second)) == (first == second)


def test_nothing_seen_of_metallb_is_not_the_same_as_no_pools() -> None:
    nothing, none = Facts(), Facts(pools=MetalLBConfig())
    assert replayed(facts_record(nothing)).facts.pools is None
    assert replayed(facts_record(none)).facts.pools == MetalLBConfig()


def test_a_pool_that_ends_with_ipv4_mapped_addresses_and_a_given_config_map_are_the_same_after_a_restart() -> None:
    wide = Range(ip_address("::ffc0:0:0"), ip_address("::ffff:ffff:ffff"))
    pool = Pool("wide", "AddressPool metallb-system/wide", (wide,), advertised=True)
    spec = NftSpec(Nics(("eth0",)), metallb_configmap="metallb")
    known = Facts(spec=spec, pools=MetalLBConfig((pool,)))
    assert replayed(facts_record(known)).facts == known


@given(st.lists(st.tuples(accepted, st.booleans()) | facts, max_size=12))
def test_the_last_record_of_each_counts(history: list[tuple[Service, bool] | Facts]) -> None:
    expected, records = Memory(), []
    for event in history:
        if isinstance(event, Facts):
            expected.facts = event
            records.append(facts_record(event))
        elif event[1]:
            expected.services[event[0].name] = event[0]
            records.append(service_record(event[0].name, event[0]))
        else:
            expected.services.pop(event[0].name, None)
            records.append(service_record(event[0].name, None))
    found = replayed(*records)
    assert (found.services, found.facts) == (expected.services, expected.facts)


# --- what nobody of us wrote ----------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "name": ["shop", "web"],
    "uid": "u",
    "created": "",
    "class": "",
    "addresses": ["192.0.2.1"],
    "ports": [["tcp", 80]],
    "sources": ["192.0.2.0/24"],
    "limit": "1/week burst 3 packets",
}
FACTS: dict[str, Any] = json.loads(
    facts_record(
        Facts(
            NftSpec(Nics(("eth0",))),
            NftSpec(Nics(("eth1",))),
            MetalLBConfig(
                (Pool("a", "s", (Range(ip_address("192.0.2.0"), ip_address("192.0.2.9")),), advertised=True),)
            ),
            local=Local(frozenset({ip_address("192.0.2.1")}), frozenset({ip_network("192.0.2.0/24")})),
            peers=frozenset({ip_address("192.0.2.2")}),
        )
    )
)[1]


def test_a_record_of_an_earlier_version_has_no_egress_limit() -> None:
    [old] = replayed(json.dumps([SERVICE, GOOD])).services.values()
    assert (str(old.limit), old.limit_egress) == ("1/week burst 3 packets", None)
    [new] = replayed(json.dumps([SERVICE, {**GOOD, "limit_egress": "1 mbytes/second"}])).services.values()
    assert str(new.limit_egress) == "1 mbytes/second"


HOSTILE_SERVICES: dict[str, dict[str, object]] = {
    "a name that ends the line": {"name": ["shop", "web\n"]},
    "a name with a quote": {"name": ["shop", 'web"']},
    "a name in capitals": {"name": ["Shop", "web"]},
    "a name in no namespace that is no address": {"name": ["", "web"]},
    "a name without a namespace": {"name": ["web"]},
    "a name in three parts": {"name": ["shop", "web", "x"]},
    "a name that is null": {"name": [None, "web"]},
    "an address with a zone": {"addresses": ["fe80::1%x } ; flush ruleset; {"]},
    "an address with zeros": {"addresses": ["010.0.0.1"]},
    "an address that is a number": {"addresses": [3221225985]},
    "addresses that are a text": {"addresses": "192.0.2.1"},
    "addresses that are null": {"addresses": None},
    "a port below 1": {"ports": [["tcp", 0]]},
    "a port above 65535": {"ports": [["tcp", 65536]]},
    "a port that is a boolean": {"ports": [["tcp", True]]},
    "a port that is a text": {"ports": [["tcp", "80"]]},
    "a port that is a fraction": {"ports": [["tcp", 80.0]]},
    "a port that is a name": {"ports": [["tcp", "http"]]},
    "a protocol that nobody knows": {"ports": [["icmp", 80]]},
    "a protocol in capitals": {"ports": [["TCP", 80]]},
    "a port of three parts": {"ports": [["tcp", 80, 443]]},
    "a source with host bits": {"sources": ["192.0.2.1/24"]},
    "a source with a zone": {"sources": ["fe80::1%x/128"]},
    "a source that is a number": {"sources": [1]},
    "sources that are a text": {"sources": "192.0.2.0/24"},
    "a limit that is none": {"limit": "much"},
    "a limit that is null": {"limit": None},
    "a limit that is a number": {"limit": 5},
    "a limit that is a list": {"limit": []},
    "an egress limit that is none": {"limit_egress": "much"},
    "an egress limit that is null": {"limit_egress": None},
    "a class that is a number": {"class": 5},
    "a uid that is null": {"uid": None},
    "an age that is a number": {"created": 5},
}


@pytest.mark.parametrize("kind", HOSTILE_SERVICES)
def test_a_record_of_a_service_that_can_not_be_is_refused(kind: str) -> None:
    memory = replayed(json.dumps([SERVICE, GOOD]))
    assert len(memory.services) == 1
    with pytest.raises(REFUSALS):
        replay(memory, json.dumps([SERVICE, GOOD | HOSTILE_SERVICES[kind]]))
    assert memory == replayed(json.dumps([SERVICE, GOOD])), "and changes nothing"


HOSTILE_FACTS: dict[str, dict[str, object]] = {
    "settings that are a text": {"spec": "eth0"},
    "settings without a NIC": {"spec": {"enable_ssh": True}},
    "a NIC that is a wildcard": {"spec": {"public_nic": "eth*"}},
    "settings rolled back that are a list": {"rolled_back": []},
    "pools that are a list": {"pools": []},
    "pools that are a text": {"pools": "services"},
    "pools without peers": {"pools": {"pools": []}},
    "pools that are null": {"pools": {"pools": None, "peers": []}},
    "pools that are texts": {"pools": {"pools": ["services"], "peers": []}},
    "a pool that is empty": {"pools": {"pools": [{}], "peers": []}},
    "a range that is none": {
        "pools": {"pools": [{**FACTS["pools"]["pools"][0], "ranges": ["192.0.2.0"]}], "peers": []}
    },
    "a range that begins after its end": {
        "pools": {"pools": [{**FACTS["pools"]["pools"][0], "ranges": ["192.0.2.9-192.0.2.1"]}], "peers": []}
    },
    "ranges that are null": {"pools": {"pools": [{**FACTS["pools"]["pools"][0], "ranges": None}], "peers": []}},
    "a pool's name that is a number": {"pools": {"pools": [{**FACTS["pools"]["pools"][0], "name": 5}], "peers": []}},
    "a pool's peer with a zone": {"pools": {"pools": [], "peers": ["fe80::1%eth0"]}},
    "a local chain that is a number": {"local_chain": 5},
    "a local chain that is null": {"local_chain": None},
    "a configuration that is a list": {"config": []},
    "local addresses that are a text": {"local": "ab"},
    "local addresses alone": {"local": [[]]},
    "a local address with a zone": {"local": [["fe80::1%x"], []]},
    "a local network with a zone": {"local": [[], ["fe80::%x/64"]]},
    "a local network with host bits": {"local": [[], ["192.0.2.1/24"]]},
    "peers that are null": {"peers": None},
    "a peer that is a number": {"peers": [5]},
    "a peer with a zone": {"peers": ["fe80::1%x"]},
    "a peer that is a network": {"peers": ["192.0.2.1/32"]},
    "a time that is a number": {"as_of": 5},
}


@pytest.mark.parametrize("kind", HOSTILE_FACTS)
def test_a_record_of_facts_that_can_not_be_is_refused(kind: str) -> None:
    memory = replayed(json.dumps(["facts", FACTS]))
    with pytest.raises(REFUSALS):
        replay(memory, json.dumps(["facts", FACTS | HOSTILE_FACTS[kind]]))
    assert memory == replayed(json.dumps(["facts", FACTS])), "and changes nothing"


@pytest.mark.parametrize(
    "key", [*GOOD, *(key for key in FACTS if key not in ("public", "inside", "devices", "trunks"))]
)
def test_a_record_that_lacks_something_is_refused(key: str) -> None:
    kind, whole = (SERVICE, GOOD) if key in GOOD else ("facts", FACTS)
    with pytest.raises(REFUSALS):
        replay(Memory(), json.dumps([kind, {name: value for name, value in whole.items() if name != key}]))


@pytest.mark.parametrize(
    "content",
    [[], ["5", "192.0.2.1 . tcp . 80"], [-1, "192.0.2.1 . tcp . 80"], [True, "192.0.2.1 . tcp . 80"],
     [1.5, "192.0.2.1 . tcp . 80"], [5, 7], [5, ["192.0.2.1 . tcp . 80"]], [5, "192.0.2.1"], [5, ""],
     [5, "192.0.2.1 . tcp . 0"], [5, "192.0.2.1 . tcp . 65536"], [5, "192.0.2.1 . tcp . 080"],
     [5, "192.0.2.1 . tcp . 80 . 10.0.0.0/8"], [5, "192.0.2.1 . icmp . 80"], [5, "fe80::1%x . tcp . 80"],
     [5, "2001:DB8::1 . tcp . 80"], [5, "192.0.2.0/24 . tcp . 80"], [5, "192.0.2.1 . tcp . 80\n"],
     [5, "192.0.2.1 . tcp . 80", "192.0.2.1 . tcp . \u0668"], [None, "192.0.2.1 . tcp . 80 } "]],
)  # fmt: skip
def test_a_record_of_closed_endpoints_that_can_not_be_is_refused(content: list[object]) -> None:
    memory = Memory(closed={"192.0.2.9 . tcp . 9": 1})
    with pytest.raises(REFUSALS):
        replay(memory, json.dumps([CLOSED, *content]))
    assert memory == Memory(closed={"192.0.2.9 . tcp . 9": 1}), "and changes nothing"


@pytest.mark.parametrize(
    "record",
    ["", "{", "5", "null", '"service"', "[]", "{}", '["service"]', '["service",[],[]]', '["pinhole",{}]',
     '["gone","shop"]',
     '["gone","shop","web","x"]', '["gone",[],{}]', '["gone",1,2]', '["gone","shop","a b"]', "[[]]", "[null]", "NaN"],
)  # fmt: skip
def test_a_record_of_no_kind_that_there_is_is_refused(record: str) -> None:
    with pytest.raises(REFUSALS):
        replay(Memory(), record)


@pytest.mark.parametrize(
    "change",
    [{"rules": "one"}, {"rules": "a b c"}, {"rules": "a g"}, {"rules": None}, {"rules": " "}, {"ingress": True},
     {"ingress": "5"}, {"ingress": ["5"]},
     {"ingress": 5.0}],
)  # fmt: skip
def test_facts_of_this_boot_that_can_not_be_are_refused(change: dict[str, object]) -> None:
    good = {"rules": "ab 12", "ingress": 7, "base": False}
    assert parse_boot_facts(json.dumps(good)) == BootFacts("ab 12", frozenset({7}))
    with pytest.raises(REFUSALS):
        parse_boot_facts(json.dumps(good | change))


# --- whatever stands in a record: it is refused, or nothing but what the types say comes of it ------------------

KEY = re.compile(r"[0-9a-f.:]{2,45} \. (tcp|udp|sctp) \. [0-9]{1,5}")


def well_typed(memory: Memory) -> Iterator[bool]:
    for name, service in memory.services.items():
        yield name == service.name
        yield type(service.uid) is type(service.created) is str
        yield all(KEY.fullmatch(key) for key in pinholes_of(service))
        yield all(type(port.protocol) is Protocol and type(port.number) is int for port in service.ports)
        yield service.sources is None or all(type(each) in (IPv4Network, IPv6Network) for each in service.sources)
        yield type(service.limit) in (RateLimit, type(None))
    known = memory.facts
    yield type(known.spec) in (NftSpec, type(None))
    yield type(known.pools_listed) is bool
    yield {type(known.local_chain), type(known.config), type(known.as_of)} == {str}
    yield all(type(each) in (IPv4Address, IPv6Address) and "%" not in str(each) for each in known.peers)
    yield all(KEY.fullmatch(key) and type(when) is int for key, when in memory.closed.items())
    for pool in known.pools.pools if known.pools else ():
        yield (type(pool.name), type(pool.source), type(pool.advertised)) == (str, str, bool)
        yield all(type(each) is Range for each in pool.ranges)


leaves = json_values | st.sampled_from(["192.0.2.1", "fe80::1%x", "192.0.2.0/24", "tcp", "%", 80, "web", "a\nb"])


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A good record in which one value is another one."""
    record: list[Any] = json.loads(
        json.dumps(
            draw(
                st.sampled_from(
                    [
                        [SERVICE, GOOD],
                        ["facts", FACTS],
                        [GONE, "shop", "web"],
                        [CLOSED, 5, "192.0.2.1 . tcp . 80"],
                        [CLOSED, None, "192.0.2.1 . tcp . 80"],
                    ]
                )
            )
        )
    )
    place: Any = record
    while True:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 3)) == 0:
            place[key] = draw(leaves)
            return record
        place = inner


@settings(max_examples=500)
@given(mutated() | json_values)
@example(["service", GOOD | {"ports": [], "addresses": {}}])
def test_of_whatever_record_nothing_comes_but_what_the_types_say(record: object) -> None:
    memory = Memory(
        {Name("shop", "web"): Service(Name("shop", "web"), "", "", "", (), (Port(Protocol.TCP, 1),), None, None, ())}
    )
    try:
        replay(memory, json.dumps(record))
    except REFUSALS:
        return
    assert all(well_typed(memory))
