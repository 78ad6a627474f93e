"""What a Service and an Nft resource ask for, sentence by sentence, and what becomes of hostile ones."""

from __future__ import annotations

import ipaddress
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftsync.cluster.cache import ObjectCache
from nftsync.config import Filters
from nftsync.objects.address import parse_address, parse_source_range
from nftsync.objects.names import Malformed, Name, Reason, Rejection, identify, quote
from nftsync.objects.nft import Nft, NftSpec, Nics, parse_nft
from nftsync.objects.ratelimit import RateLimit
from nftsync.objects.service import (
    EGRESS_ANNOTATION,
    RATELIMIT_ANNOTATION,
    SOURCE_RANGES_ANNOTATION,
    Service,
    parse_service,
)
from nftsync.policy.pinholes import pinholes_of
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import elements
from tests.support import json_leaves, json_values

pytestmark = pytest.mark.usefixtures("no_dns")

HTTP = ({"port": 80},)
ADDRESS = ("192.0.2.1",)
BOTH = ("192.0.2.1", "2001:db8::1")


def service(
    *, ips: Iterable[Any] = ADDRESS, ports: Iterable[Any] = HTTP, annotations: Any = None, uid: str = "u1", **spec: Any
) -> dict[str, Any]:
    """A Service as the API gives it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "uid": uid,
            "creationTimestamp": "2024-01-01T00:00:00Z",
            "annotations": annotations or {},
        },
        "spec": {"type": "LoadBalancer", "ports": list(ports)} | spec,
        "status": {"loadBalancer": {"ingress": [{"ip": ip} for ip in ips]}},
    }


def parsed(raw: object, before: Service | None = None) -> Service:
    """A Service that is ours."""
    found = parse_service(raw, before)
    assert found is not None
    return found


def opens(raw: object) -> set[str]:
    """The keys of its pinholes."""
    found = parse_service(raw, None)
    return set(pinholes_of(found)) if found else set()


def lets_in(raw: object) -> dict[str, tuple[str, ...] | None]:
    """The sources of each pinhole."""
    holes = pinholes_of(parsed(raw))
    return {key: None if hole.sources is None else tuple(map(str, hole.sources)) for key, hole in holes.items()}


def only_rejection(found: Service | Nft) -> Rejection:
    (rejection,) = found.rejections
    assert str(rejection).isprintable()
    assert rejection.object == found.ref
    return rejection


# --- which Services, which addresses, which ports ------------------------------------------------------


def test_every_ingress_address_of_both_families_is_opened_on_every_port() -> None:
    ports = [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 9, "protocol": "SCTP"}]
    assert opens(service(ips=["192.0.2.1", "192.0.2.2", "2001:db8::1"], ports=ports)) == {
        f"{address} . {port}"
        for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1")
        for port in ("tcp . 80", "udp . 53", "sctp . 9")
    }


@pytest.mark.parametrize("protocol", [None, ""])
def test_a_missing_protocol_is_tcp(protocol: str | None) -> None:
    assert opens(service(ports=[{"port": 80, "protocol": protocol}])) == {"192.0.2.1 . tcp . 80"}


def test_an_address_is_the_same_in_every_notation() -> None:
    assert opens(service(ips=["2001:DB8:0:0::1", "2001:db8::1"])) == {"2001:db8::1 . tcp . 80"}


def test_only_port_counts_and_only_the_ingress_address() -> None:
    raw = service(
        ports=[{"port": 80, "targetPort": 8080, "nodePort": 30080, "name": "http"}],
        externalIPs=["192.0.2.66"],
        loadBalancerIP="192.0.2.67",
        clusterIP="10.0.0.1",
        clusterIPs=["10.0.0.1"],
        healthCheckNodePort=32000,
        annotations={"metallb.universe.tf/loadBalancerIPs": "192.0.2.68", "metallb.io/loadBalancerIPs": "192.0.2.69"},
    )
    assert opens(raw) == {"192.0.2.1 . tcp . 80"}


def test_a_host_name_opens_nothing_and_is_no_fault() -> None:
    raw = service()
    raw["status"]["loadBalancer"]["ingress"] = [{"hostname": "www.example.com"}, {"ip": "", "hostname": "localhost"}]
    assert parsed(raw).addresses == ()
    assert parsed(raw).rejections == ()


@pytest.mark.parametrize(
    "status", [None, {}, {"loadBalancer": None}, {"loadBalancer": {}}, {"loadBalancer": {"ingress": None}}]
)
def test_a_service_without_an_address_yet_opens_nothing_and_is_no_fault(status: Any) -> None:
    raw = service() | {"status": status}
    assert opens(raw) == set()
    assert parsed(raw).rejections == ()


@pytest.mark.parametrize(
    "kind", ["ClusterIP", "NodePort", "ExternalName", "", None, "loadbalancer", "LoadBalancer ", 5, ["LoadBalancer"]]
)
def test_a_service_of_another_type_is_not_ours_whatever_its_status_still_lists(kind: Any) -> None:
    before = parsed(service())
    assert parse_service(service(type=kind), before) is None


def test_a_service_without_ports_opens_nothing() -> None:
    assert opens(service(ports=[])) == set()
    assert opens(service(ports=[]) | {"spec": {"type": "LoadBalancer"}}) == set()


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "::", "127.0.0.1", "127.9.9.9", "::1", "224.0.0.1", "ff02::1", "169.254.169.254", "fe80::1",
        "255.255.255.255",
        "fe80::1%eth0", "2001:db8::1%1 } ; flush ruleset", "::ffff:192.0.2.1", "192.0.2.1/32", "192.0.2", "192.0.2.256",
        "192.0.2.01", " 192.0.2.1", "192.0.2.1\n", "１92.0.2.1", "www.example.com", "3221225985", 3221225985, True,
        ["192.0.2.1"], {"a": 1}, 0, False,
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_service_is_refused_and_the_others_stay(address: Any) -> None:
    raw = service(ips=[address, "192.0.2.9"])
    assert opens(raw) == {"192.0.2.9 . tcp . 80"}
    assert only_rejection(parsed(raw)).reason is Reason.INVALID_ADDRESS


def test_an_address_in_mapped_notation_is_refused_with_the_notation_that_is_right() -> None:
    with pytest.raises(ValueError, match=r"^'::ffff:192.0.2.1' is an IPv4 address in IPv6 notation: write 192.0.2.1$"):
        parse_address("::ffff:192.0.2.1")


@pytest.mark.parametrize(
    "port",
    [0, -1, 65536, 2**64, "80", "http", 80.0, True, None, [80], {}, float("nan"), pytest.param(10**5000, id="huge")],
)
def test_what_is_no_port_is_refused_and_the_others_stay(port: Any) -> None:
    raw = service(ports=[{"port": port}, {"port": 443}])
    assert opens(raw) == {"192.0.2.1 . tcp . 443"}
    assert only_rejection(parsed(raw)).reason is Reason.INVALID_PORT


@pytest.mark.parametrize(
    "protocol", ["tcp", "Tcp", "ICMP", "TCP ", "TCP\n", 6, 0, False, [], {}, ["TCP"], "tcp . 80 accept"]
)
def test_what_is_no_protocol_is_refused_and_the_others_stay(protocol: Any) -> None:
    raw = service(ports=[{"port": 80, "protocol": protocol}, {"port": 443}])
    assert opens(raw) == {"192.0.2.1 . tcp . 443"}
    rejection = only_rejection(parsed(raw))
    assert rejection.reason is Reason.INVALID_PROTOCOL
    assert rejection.message.endswith("of port 80 is not TCP, UDP or SCTP")


def test_a_port_named_twice_is_one_pinhole() -> None:
    assert opens(service(ports=[{"port": 80}, {"port": 80, "protocol": "TCP", "name": "again"}])) == {
        "192.0.2.1 . tcp . 80"
    }


# --- source ranges -------------------------------------------------------------------------------------

UNDERSTOOD = {
    "10.0.0.0/8": "10.0.0.0/8",
    "10.1.2.3/8": "10.0.0.0/8",
    " 10.0.0.0/8\t": "10.0.0.0/8",
    "10.0.0.0/8\n": "10.0.0.0/8",
    "010.0.0.0/8": "10.0.0.0/8",
    "010.010.010.010/32": "10.10.10.10/32",
    "10.0.0.0/08": "10.0.0.0/8",
    "0.0.0.0/0": "0.0.0.0/0",
    "2001:DB8::1/32": "2001:db8::/32",
    "::/0": "::/0",
    "64:ff9b::192.0.2.1/128": "64:ff9b::c000:201/128",
}

REFUSED = [
    "", " ", "10.0.0.0", "2001:db8::1", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/8/8", "10.0.0.0/ 8",
    "10.0.0.0 /8",
    "10.0.0.0/255.0.0.0", "10.0.0.0/0.255.255.255", "10.0.0/8", "10/8", "256.0.0.0/8", "0x0a.0.0.0/8",
    "10.0.0.0-10.0.0.9", "/8",
    "/", "2001:db8::/129", "fe80::1%eth0/64", "fe80::%x } ; flush ruleset/64", "１0.0.0.0/8", "10.0.0.0/８",
    "10.0.0.0/8\n}",
    "010.0000000010.10.10/0",
    "all", "any/0", "::ffff:10.0.0.0/104", "0/0", "a" * 200, None, 10, True, ["10.0.0.0/8"], {"cidr": "10.0.0.0/8"},
]  # fmt: skip


@pytest.mark.parametrize(("text", "network"), UNDERSTOOD.items())
def test_a_source_range_is_understood_as_kube_proxy_reads_it(text: str, network: str) -> None:
    assert str(parse_source_range(text)) == network


@pytest.mark.parametrize("text", REFUSED)
def test_a_bad_source_range_narrows_and_never_widens(text: Any) -> None:
    raw = service(loadBalancerSourceRanges=[text, "198.51.100.0/24"])
    assert lets_in(raw) == {"192.0.2.1 . tcp . 80": ("198.51.100.0/24",)}
    rejection = only_rejection(parsed(raw))
    assert rejection.reason is Reason.INVALID_SOURCE_RANGE
    assert rejection.message.endswith("; it opens nothing")
    assert quote(text) in rejection.message


CLOSED = {"closed4": {"192.0.2.1 . tcp . 80": ""}}  # to everybody


@pytest.mark.parametrize("ranges", [["x"], [None], ["", ""], ["10.0.0.0/33", 5]])
def test_where_every_range_is_bad_nobody_is_let_in(ranges: list[Any]) -> None:
    raw = service(loadBalancerSourceRanges=ranges)
    assert lets_in(raw) == {"192.0.2.1 . tcp . 80": ()}
    assert elements(pinholes_of(parsed(raw)).values(), Settings()) == {"inet": CLOSED, "netdev": {}}


def test_duplicates_and_overlaps_become_one_range_and_neighbours_too() -> None:
    ranges = ["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "10.1.0.0/16", "198.51.100.7/32"]
    assert lets_in(service(loadBalancerSourceRanges=ranges)) == {
        "192.0.2.1 . tcp . 80": ("10.0.0.0/8", "198.51.100.7/32")
    }


def test_ranges_of_one_family_leave_the_other_family_closed() -> None:
    assert lets_in(service(ips=BOTH, loadBalancerSourceRanges=["10.0.0.0/8"])) == {
        "192.0.2.1 . tcp . 80": ("10.0.0.0/8",),
        "2001:db8::1 . tcp . 80": (),
    }


def test_without_ranges_everybody_is_let_in() -> None:
    assert lets_in(service(loadBalancerSourceRanges=None)) == {"192.0.2.1 . tcp . 80": None}
    assert lets_in(service(loadBalancerSourceRanges=[])) == {"192.0.2.1 . tcp . 80": None}
    for blank in ("", " \t"):
        assert lets_in(service(annotations={SOURCE_RANGES_ANNOTATION: blank})) == {"192.0.2.1 . tcp . 80": None}


@pytest.mark.parametrize("field", [None, []])
def test_where_the_field_is_empty_the_annotation_counts(field: Any) -> None:
    raw = service(annotations={SOURCE_RANGES_ANNOTATION: "10.0.0.0/8, 198.51.100.0/24"}, loadBalancerSourceRanges=field)
    assert lets_in(raw) == {"192.0.2.1 . tcp . 80": ("10.0.0.0/8", "198.51.100.0/24")}


def test_where_the_field_says_something_the_annotation_does_not_count() -> None:
    raw = service(annotations={SOURCE_RANGES_ANNOTATION: "0.0.0.0/0"}, loadBalancerSourceRanges=["x"])
    assert lets_in(raw) == {"192.0.2.1 . tcp . 80": ()}


@pytest.mark.parametrize("annotation", [",", "none", 5, ["10.0.0.0/8"], {"a": "b"}, False])
def test_an_annotation_that_is_no_list_of_ranges_lets_nobody_in(annotation: Any) -> None:
    raw = service(annotations={SOURCE_RANGES_ANNOTATION: annotation})
    assert lets_in(raw) == {"192.0.2.1 . tcp . 80": ()}
    assert parsed(raw).rejections


def test_a_port_that_nobody_may_reach_has_no_bucket_either() -> None:
    raw = service(annotations={RATELIMIT_ANNOTATION: "5/second"}, loadBalancerSourceRanges=["x"])
    assert elements(pinholes_of(parsed(raw)).values(), Settings(enable_rateshape=True)) == {
        "inet": CLOSED, "netdev": {},
    }  # fmt: skip


# --- the rate limit ------------------------------------------------------------------------------------

LIMITED = {RATELIMIT_ANNOTATION: "400/minute burst 10 packets"}
LIMIT = RateLimit(400, "minute", 10, packets=True)


def test_each_port_of_a_limited_service_gets_a_bucket_of_its_own() -> None:
    raw = service(ips=BOTH, ports=[{"port": 80}, {"port": 443}], annotations=LIMITED)
    shaped = elements(pinholes_of(parsed(raw)).values(), Settings(enable_rateshape=True))["netdev"]
    assert {name: set(members) for name, members in shaped.items()} == {
        "limited4-packets": {"192.0.2.1 . tcp . 80", "192.0.2.1 . tcp . 443"},
        "limited6-packets": {"2001:db8::1 . tcp . 80", "2001:db8::1 . tcp . 443"},
        "dropped4": {"192.0.2.1 . tcp . 80", "192.0.2.1 . tcp . 443"},
        "dropped6": {"2001:db8::1 . tcp . 80", "2001:db8::1 . tcp . 443"},
        "ingress4": {"192.0.2.1"},
        "ingress6": {"2001:db8::1"},
        "fragments4-packets": {"192.0.2.1"},
        "fragments6-packets": {"2001:db8::1"},
    }


@pytest.mark.parametrize("text", ["fast", "", "0/second", "5/second; flush ruleset", 5, True, ["5/second"]])
def test_an_invalid_limit_leaves_the_ports_open_and_the_previous_limit_in_force(text: Any) -> None:
    before = parsed(service(annotations=LIMITED))
    found = parsed(service(annotations={RATELIMIT_ANNOTATION: text}), before)
    assert set(pinholes_of(found)) == {"192.0.2.1 . tcp . 80"}
    assert found.limit == LIMIT
    rejection = only_rejection(found)
    assert rejection.reason is Reason.INVALID_RATELIMIT
    assert rejection.message.endswith("; the previous limit, 400/minute burst 10 packets, stays")


def test_an_egress_limit_is_parsed_beside_the_other_and_an_invalid_one_leaves_the_previous_in_force() -> None:
    before = parsed(service(annotations={**LIMITED, EGRESS_ANNOTATION: "2 mbytes/second"}))
    [hole] = pinholes_of(before).values()
    assert (str(hole.limit), str(hole.limit_egress)) == ("400/minute burst 10 packets", "2 mbytes/second")
    found = parsed(service(annotations={EGRESS_ANNOTATION: "10 mbit/s"}), before)
    assert (found.limit, str(found.limit_egress)) == (None, "2 mbytes/second")
    rejection = only_rejection(found)
    assert rejection.reason is Reason.INVALID_RATELIMIT
    assert rejection.message.startswith("annotation nftsync.io/ratelimit-egress: '10 mbit/s'")
    assert rejection.message.endswith("; write '1220 kbytes/second'; the previous limit, 2 mbytes/second, stays")
    assert only_rejection(parsed(service(annotations={EGRESS_ANNOTATION: "fast"}))).message.endswith(
        "; what it sends is not limited"
    )


def test_after_a_start_the_previous_limit_is_the_one_that_the_last_process_had_given_to_this_very_object() -> None:
    raw = service(annotations={RATELIMIT_ANNOTATION: "fast"}, uid="u1")
    remembered = {uid: parsed(service(annotations=LIMITED, uid=uid)) for uid in ("u1", "u2")}
    name = remembered["u1"].name

    def listed(before: Service, *objects: object) -> Service:
        """As it is after a start with this version, and a list that has these ones in turn."""
        cache = ObjectCache(parse_service, lambda: None, time.monotonic, remembered={name: before})
        for each in objects:
            cache.put(each)
        [found] = cache.objects()
        return found

    found = listed(remembered["u1"], raw)
    assert found.limit == LIMIT
    assert only_rejection(found).message.endswith("; the previous limit, 400/minute burst 10 packets, stays")
    assert listed(remembered["u2"], raw).limit is None
    assert parsed(raw, parsed(service(uid="u1"))).limit is None
    assert listed(remembered["u1"], service(uid="u1"), raw).limit is None, "what was parsed since counts"


def test_an_invalid_limit_without_a_previous_one_limits_nothing_and_says_so() -> None:
    found = parsed(service(annotations={RATELIMIT_ANNOTATION: "fast"}))
    assert found.limit is None
    assert only_rejection(found).message.endswith("; the Service is not limited")


def test_the_previous_limit_outlasts_a_row_of_invalid_ones_and_ends_with_the_annotation() -> None:
    found = parsed(service(annotations=LIMITED))
    for text in ("fast", "faster", "0/second"):
        found = parsed(service(annotations={RATELIMIT_ANNOTATION: text}), found)
    assert found.limit == LIMIT
    assert parsed(service(), found).limit is None


def test_another_service_of_the_same_name_inherits_nothing() -> None:
    before = parsed(service(annotations=LIMITED, uid="u1"))
    assert parsed(service(annotations={RATELIMIT_ANNOTATION: "fast"}, uid="u2"), before).limit is None
    assert opens(service(uid="u2", ports=5 * [{}])) == set()
    broken = service(uid="u2") | {"status": "gone"}
    assert parsed(broken, before).addresses == ()


# --- malformed objects ---------------------------------------------------------------------------------

MALFORMED = {
    "spec is not an object but 'x'": {"spec": "x"},
    "spec is not an object but a list": {"spec": []},
    "status is not an object but 5": {"status": 5},
    "status.loadBalancer is not an object but a list": {"status": {"loadBalancer": []}},
    "status.loadBalancer.ingress is not a list but a dict": {"status": {"loadBalancer": {"ingress": {}}}},
    "an entry of status.loadBalancer.ingress is not an object but '192.0.2.1'": {
        "status": {"loadBalancer": {"ingress": ["192.0.2.1"]}}
    },
    "spec.ports is not a list but 80": {"spec": {"type": "LoadBalancer", "ports": 80}},
    "an entry of spec.ports is not an object but 80": {"spec": {"type": "LoadBalancer", "ports": [80]}},
    "spec.loadBalancerSourceRanges is not a list but '10.0.0.0/8'": {
        "spec": {"type": "LoadBalancer", "loadBalancerSourceRanges": "10.0.0.0/8"}
    },
    "there is no spec": {"spec": None},
    "spec.ports is empty": {"spec": {"type": "LoadBalancer", "ports": None}},
    "spec.loadBalancerClass 5 is not a text": {
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "loadBalancerClass": 5}
    },
}


@pytest.mark.parametrize(("fault", "change"), MALFORMED.items())
def test_when_a_service_becomes_malformed_its_previous_version_stays(fault: str, change: dict[str, Any]) -> None:
    before = parsed(service())
    found = parsed(service() | change, before)
    assert pinholes_of(found) == pinholes_of(before)
    assert only_rejection(found).reason is Reason.MALFORMED
    assert found.rejections[0].message == f"{fault}; its previous version stays"


@pytest.mark.parametrize(("fault", "change"), MALFORMED.items())
def test_a_service_that_was_never_well_formed_opens_nothing(fault: str, change: dict[str, Any]) -> None:
    assert opens(service() | change) == set()
    assert only_rejection(parsed(service() | change)).message == f"{fault}; it opens nothing"


@pytest.mark.parametrize("annotations", ["x", ["ratelimit"], 5])
def test_annotations_that_are_no_mapping_are_malformed(annotations: Any) -> None:
    raw = service()
    raw["metadata"]["annotations"] = annotations
    assert only_rejection(parsed(raw)).reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "raw",
    [
        None, 5, "x", [], {}, {"metadata": None}, {"metadata": "web"}, {"metadata": {}}, {"metadata": {"name": 5}},
        {"metadata": {"name": "Web"}}, {"metadata": {"name": "-web"}}, {"metadata": {"name": "web\n"}},
        {"metadata": {"name": "w" * 254}},
        {"metadata": {"name": 'a"; flush ruleset; #'}}, {"metadata": {"name": "web", "namespace": ""}},
        {"metadata": {"name": "web", "namespace": 5}}, {"metadata": {"name": "wéb"}},
        {"metadata": {"name": "web/../x"}},
    ],
)  # fmt: skip
def test_an_object_that_can_not_be_named_is_malformed(raw: Any) -> None:
    for parse in (identify, lambda raw: parse_service(raw, None), lambda raw: parse_nft(raw, None)):
        with pytest.raises(Malformed) as fault:
            parse(raw)
        assert str(fault.value).isprintable()


def test_an_object_without_a_namespace_is_in_the_default_one() -> None:
    assert identify({"metadata": {"name": "web"}}) == (Name("default", "web"), "")
    assert identify({"metadata": {"name": "web", "namespace": None, "uid": "a b"}}) == (Name("default", "web"), "")


@pytest.mark.parametrize("when", ["now", "2024-01-01", "2024-01-01T00:00:00+01:00", 5, None, "2024-01-01T00:00:00Z\n"])
def test_an_age_that_is_not_written_as_the_api_writes_it_is_unknown(when: Any) -> None:
    raw = service()
    raw["metadata"]["creationTimestamp"] = when
    assert parsed(raw).created == ""


def test_a_hostile_value_is_quoted_on_one_line_and_cut() -> None:
    assert quote("a\nb\x1b[2J\u202e\ud800") == r"'a\nb\x1b[2J\u202e\ud800'"
    assert len(quote("x" * 10**6)) < 100
    assert quote(10**5000) == "a number of thousands of digits"
    assert quote({"a": object()}) == "a dict"


@pytest.mark.parametrize(
    ("filters", "admitted"),
    [
        (Filters(), True),
        (Filters(namespaces=frozenset({"shop"})), True),
        (Filters(namespaces=frozenset({"other"})), False),
        (Filters(exclude_namespaces=frozenset({"shop"})), False),
        (Filters(namespaces=frozenset({"shop"}), exclude_namespaces=frozenset({"shop"})), False),
        (Filters(load_balancer_classes=frozenset({"example.com/lb"})), True),
        (Filters(load_balancer_classes=frozenset({""})), False),
        (Filters(load_balancer_classes=frozenset({"", "example.com/lb"})), True),
    ],
)
def test_filters_say_which_services_are_ours(filters: Filters, admitted: bool) -> None:  # noqa: FBT001
    assert filters.admit(parsed(service(loadBalancerClass="example.com/lb"))) is admitted


# --- the Nft resource ----------------------------------------------------------------------------------


def nft(spec: Any, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "nft.acnodal.com/v1alpha1",
        "kind": "Nft",
        "metadata": {"name": "nft", "namespace": "arbf-operators", "uid": "n1", "generation": 3} | metadata,
        "spec": spec,
    }


def test_every_switch_of_an_nft_resource_is_true_if_absent() -> None:
    found = parse_nft(nft({"public_nic": "enp1s0"}), None)
    assert found == Nft(
        Name("arbf-operators", "nft"), "n1", 3, NftSpec(Nics(("enp1s0",)), True, True, True, True, "metallb-system")
    )
    assert parse_nft(nft({"public_nic": "enp1s0", "enable_bgp": None, "metallb-namespace": None}), None) == found


@pytest.mark.parametrize("switch", ["enable_bgp", "enable_dropall", "enable_rateshape", "enable_ssh"])
def test_each_switch_is_its_own(switch: str) -> None:
    spec = parse_nft(nft({"public_nic": "enp1s0", switch: False}), None).spec
    assert spec is not None
    switches = {
        each: getattr(spec, each) for each in ("enable_bgp", "enable_dropall", "enable_rateshape", "enable_ssh")
    }
    assert switches == {each: each != switch for each in switches}


@pytest.mark.parametrize(
    ("word", "meaning"),
    [(True, True), (False, False), ("true", True), ("True", True), ("yes", True), ("on", True), ("no", False),
     ("OFF", False),
     ("False", False)],
)  # fmt: skip
def test_the_old_operators_booleans_are_understood(word: Any, meaning: bool) -> None:  # noqa: FBT001
    spec = parse_nft(nft({"public_nic": "enp1s0", "enable_ssh": word}), None).spec
    assert spec is not None
    assert spec.enable_ssh is meaning


def test_metallb_may_live_in_another_namespace() -> None:
    spec = parse_nft(nft({"public_nic": "enp1s0", "metallb-namespace": "lb"}), None).spec
    assert spec is not None
    assert spec.metallb_namespace == "lb"


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (None, "public_nic is required"),
        ({}, "public_nic is required"),
        ("enp1s0", "spec is not an object"),
        ({"public_nic": ""}, "'' is not the name of a network interface"),
        ({"public_nic": "lo"}, "can be public"),
        ({"public_nic": ".."}, "can be public"),
        ({"public_nic": "*"}, "can be public"),
        ({"public_nic": "enp*"}, "can be public"),
        ({"public_nic": "a" * 16}, "can be public"),
        ({"public_nic": "eth0\n"}, "can be public"),
        ({"public_nic": 'x" accept; #'}, "can be public"),
        ({"public_nic": "eth 0"}, "can be public"),
        ({"public_nic": "-j"}, "can be public"),
        ({"public_nic": "eth/0"}, "can be public"),
        ({"public_nic": "ëth0"}, "can be public"),
        ({"public_nic": 5}, "5 is not the name"),
        ({"public_nics": []}, "public_nic is required"),
        ({"public_nics": "eth0"}, "public_nics is not a list"),
        ({"public_nics": ["eth0", "lo"]}, "'lo' is not the name"),
        ({"public_nic": "eth0", "inside_nics": ["eth1", 'x"']}, "is not the name"),
        ({"public_nic": "eth0", "inside_nics": ["eth0"]}, "eth0 is in inside_nics, and public as well"),
        ({"public_nics": [f"eth{number}" for number in range(33)]}, "more than 32 interfaces are named"),
        ({"public_nic": "eth0", "enable_ssh": "perhaps"}, "spec.enable_ssh 'perhaps' is neither true nor false"),
        ({"public_nic": "eth0", "enable_dropall": 0}, "spec.enable_dropall 0 is neither true nor false"),
        ({"public_nic": "eth0", "enable_dropall": []}, "spec.enable_dropall a list is neither true nor false"),
        ({"public_nic": "eth0", "metallb-namespace": "A B"}, "spec.metallb-namespace 'A B' is not a Kubernetes name"),
    ],
)
def test_where_the_settings_are_refused_the_last_good_ones_stay(spec: Any, fault: str) -> None:
    good = parse_nft(nft({"public_nic": "enp1s0", "enable_bgp": False}), None)
    found = parse_nft(nft(spec), good)
    assert found.spec == good.spec
    assert only_rejection(found).reason is Reason.INVALID_SETTINGS
    assert fault in found.rejections[0].message
    assert found.rejections[0].message.endswith("; the last good settings stay")
    first = parse_nft(nft(spec), None)
    assert first.spec is None
    assert only_rejection(first).message.endswith("; there are no earlier settings to keep")


def test_an_nft_resources_status_changes_nothing() -> None:
    raw = nft({"public_nic": "enp1s0"})
    assert parse_nft(raw | {"status": {"conditions": [5]}}, None) == parse_nft(raw, None)


# --- hostile objects -----------------------------------------------------------------------------------

hostile = json_leaves | json_values
nasty = st.sampled_from(
    [
        "192.0.2.1",
        "::1",
        "0.0.0.0/0",
        '"; flush ruleset; #',
        "10.0.0.0/8}",
        "80",
        "\n",
        "TCP",
        "x" * 300,
        "1 } ; add table x",
        "\x00",
        "１",
    ]
)
maybe = nasty | hostile


@st.composite
def mostly(draw: st.DrawFn, good: st.SearchStrategy[Any]) -> Any:
    """Something good, and one time in sixteen something hostile."""
    return draw(good if draw(st.integers(0, 15)) < 15 else maybe)


plain_ip = st.sampled_from(
    ["192.0.2.1", "192.0.2.2", "2001:db8::1", "64:ff9b::1.2.3.4", "::ffff:1.2.3.4", "fe80::1%x } ;"]
)
plain_range = st.sampled_from(
    ["10.0.0.0/8", "010.1.2.3/8", " 198.51.100.0/24", "2001:db8::/32", "10.0.0.0/0.255.255.255", "::/0", "/0"]
)
some_ports = st.fixed_dictionaries(
    {"port": mostly(st.integers(-1, 65537) | st.sampled_from([80, 443]))},
    optional={"protocol": mostly(st.sampled_from(["TCP", "UDP", "SCTP"])), "nodePort": st.just(30000)},
)
some_annotations = st.fixed_dictionaries(
    {RATELIMIT_ANNOTATION: mostly(st.sampled_from(["5/second", "2 mbytes/second", "5/second; flush ruleset"]))},
    optional={
        SOURCE_RANGES_ANNOTATION: mostly(st.sampled_from(["10.0.0.0/8,198.51.100.0/24", " ", "x", "10.0.0.0/8 }"])),
    },
)
some_services: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {"name": mostly(st.just("web")), "annotations": mostly(some_annotations)},
            optional={
                "namespace": mostly(st.just("shop")),
                "uid": mostly(st.just("u1")),
                "creationTimestamp": maybe,
            },
        ),
        "spec": st.fixed_dictionaries(
            {"type": st.just("LoadBalancer"), "ports": mostly(st.lists(mostly(some_ports), max_size=4))},
            optional={
                "loadBalancerSourceRanges": mostly(st.lists(mostly(plain_range), max_size=4)),
                "externalIPs": st.just(["203.0.113.1"]),
                "loadBalancerClass": maybe,
            },
        ),
        "status": mostly(
            st.fixed_dictionaries(
                {
                    "loadBalancer": st.fixed_dictionaries(
                        {"ingress": st.lists(mostly(st.fixed_dictionaries({"ip": mostly(plain_ip)})), max_size=4)}
                    )
                }
            )
        ),
    }
)

KEY = re.compile(r"([0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9a-f:]{2,39}) \. (tcp|udp|sctp) \. [1-9][0-9]{0,4}")
SOURCE = re.compile(rf"{KEY.pattern} \. [0-9a-f:.]{{2,39}}(/[0-9]{{1,3}})?")
FORMS = {  # of elements, by the start of their set's name
    "sources": SOURCE,
    "fragments": re.compile(KEY.pattern.partition(r" \.")[0]),
    "ingress": re.compile(KEY.pattern.partition(r" \.")[0]),
    "egress": re.compile(KEY.pattern.partition(r" \.")[0]),
    "errors": re.compile(r"0x[0-9a-f]{8,32} \. (6|17|132) \. [1-9][0-9]{0,4}"),
}
STATEMENT = re.compile(
    r"limit rate over ([0-9]+ [km]?bytes/[a-z]{3,6} burst [0-9]+ [km]?bytes|[0-9]+/[a-z]{3,6} burst [0-9]+ packets)"
)


def asked_for(raw: dict[str, Any]) -> set[str]:
    """Simply: every address of the ingress beside every port; what is neither is left out."""
    found = set()
    protocols = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp", "None": "tcp", "": "tcp"}
    for entry, port in product(raw["status"]["loadBalancer"]["ingress"], raw["spec"]["ports"]):
        with suppress(ValueError, TypeError, KeyError):  # hostile entries are no mappings, hold no address, no port
            protocol = protocols[str(dict(port).get("protocol"))]
            found.add(f"{ipaddress.ip_address(entry['ip'])} . {protocol} . {port['port']:d}")
    return found


def test_the_expressions_that_watch_over_nft_text_let_no_word_through() -> None:
    for text in (
        "192.0.2.1 . tcp . 80 accept",
        "a . tcp . 80",
        "192.0.2.1 . icmp . 80",
        "192.0.2.1 . tcp . 080",
        '1.2.3.4 . tcp . 80"',
    ):
        assert not KEY.fullmatch(text)


@given(json_values | some_services, st.none() | st.just(service(annotations=LIMITED)))
def test_no_object_ends_in_anything_but_a_service_or_malformed(raw: object, before: object) -> None:
    held = parse_service(before, None) if before else None
    parsers: list[Callable[[], Service | Nft | None]] = [lambda: parse_service(raw, held), lambda: parse_nft(raw, None)]
    for parse in parsers:
        try:
            found = parse()
        except Malformed as fault:
            message = str(fault)
            assert message.isprintable()
        else:
            for rejection in found.rejections if found else ():
                assert str(rejection).isprintable()
                assert len(str(rejection)) < 1024


@given(st.dictionaries(st.sampled_from(["public_nic", "enable_bgp", "enable_ssh", "metallb-namespace"]), maybe) | maybe)
def test_no_settings_end_in_anything_but_settings_or_a_rejection(spec: object) -> None:
    found = parse_nft(nft(spec), None)
    assert (found.spec is None) == bool(found.rejections)
    if found.spec is not None:
        assert all(re.fullmatch(r"[A-Za-z0-9_.:+=@-]{1,15}", name) for name in found.spec.nics.public)


def test_nothing_unparsed_reaches_nft_and_nothing_is_opened_that_was_not_asked_for() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=300)
    @given(some_services)
    def look(raw: dict[str, Any]) -> None:
        try:
            found = parse_service(raw, None)
        except Malformed:
            return
        assert found is not None
        holes = pinholes_of(found)
        for key, hole in holes.items():
            assert KEY.fullmatch(key)
            assert key in asked_for(raw)
            assert (hole.sources is not None) == restricted(raw), "what is restricted is never open to everybody"
        for family in elements(holes.values(), Settings(enable_rateshape=True)).values():
            for name, members in family.items():
                for key, statement in members.items():
                    form = next((form for stem, form in FORMS.items() if name.startswith(stem)), KEY)
                    assert form.fullmatch(key)
                    limits = name.startswith(("limited", "fragments"))
                    assert bool(STATEMENT.fullmatch(statement)) if limits else statement == ""
                    seen[name.rstrip("46")] += 1

    look()
    assert (
        min(seen["services"], seen["sources"], seen["limited"] + seen["limited4-packets"]) > 10
    ), "the property is not empty"


def restricted(raw: dict[str, Any]) -> bool:
    """Whether the field, or where it is empty the annotation, says anything."""
    annotation = (raw["metadata"].get("annotations") or {}).get(SOURCE_RANGES_ANNOTATION)
    blank = annotation is None or (isinstance(annotation, str) and not annotation.strip())
    return bool(raw["spec"].get("loadBalancerSourceRanges")) or not blank


def contains(texts: list[Any], address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether one of the ranges, read with a minimal reader of its own, holds the address."""
    for text in texts:
        match = re.fullmatch(r"\s*([0-9a-fA-F:.]+)/([0-9]{1,3})\s*", text, re.ASCII) if isinstance(text, str) else None
        if match is None or (":" in match[1]) != (address.version == 6):
            continue
        base = match[1] if ":" in match[1] else ".".join(octet.lstrip("0") or "0" for octet in match[1].split("."))
        width = address.max_prefixlen
        if int(match[2]) <= width:
            shift = width - int(match[2])
            try:
                if int(ipaddress.ip_address(base)) >> shift == int(address) >> shift:
                    return True
            except ValueError:
                continue
    return False


octets = st.integers(0, 255).map(str) | st.integers(0, 99).map(lambda each: f"0{each}")
ranges = st.builds("{}.{}.{}.{}/{}".format, octets, octets, octets, octets, st.integers(0, 34)) | plain_range | maybe
addresses = st.ip_addresses() | st.sampled_from(
    [ipaddress.ip_address(each) for each in ("10.1.2.3", "198.51.100.1", "2001:db8::7")]
)


@settings(max_examples=300)
@given(st.lists(ranges, min_size=1, max_size=5), st.lists(addresses, min_size=3, max_size=10))
def test_exactly_the_addresses_within_the_ranges_are_let_in(texts: list[Any], candidates: list[Any]) -> None:
    sources = parsed(service(loadBalancerSourceRanges=texts)).sources
    assert sources is not None
    edges = [edge for network in sources for edge in (network[0], network[-1])]
    for address in [*candidates, *edges]:
        assert any(address in network for network in sources) == contains(texts, address)
    for one, other in combinations(sources, 2):
        assert one[0] not in other
        assert other[0] not in one
