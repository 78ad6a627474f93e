"""Configurations of other authors, most of them MetalLB's own tests.

nftsync gives MetalLB's verdict and reads the same addresses.

The file is not a part of this project. Where it is not there, nor are these tests.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from nftsync.cli.main import main
from nftsync.objects.metallb import MetalLBConfig, Peer, configuration, parse_advertisement, parse_peer, parse_pool
from nftsync.objects.metallb_v0 import parse_configuration
from nftsync.objects.names import Malformed
from nftsync.objects.yaml import documents
from tests.support import ROOT

CASES = ROOT.parent / "shared" / "cases" / "metallb_pools.json"

PEERS = "AS numbers, timers, router IDs, node selectors and doubles of a peer change no address that is the cluster's"
SECRETS = "passwords are never looked at, and Secrets are not read at all (least privilege)"
DETAILS = "how a pool is announced changes no address of it"
COMMUNITIES = "communities change no address, and Community objects are not read at all (least privilege)"
PROFILES = "BFD profiles change no address, and BFDProfile objects are not read at all (least privilege)"
LAYER2 = "L2Advertisement objects are not read at all (least privilege)"
SHAPE = "the text may have every key that MetalLB 0.12 knew; 0.9 knew fewer"

# Where nftsync takes what MetalLB refuses: all faulty cases of a kind with the fault in one place, or those of a name.
LENIENT: dict[tuple[str, str] | str, str] = {
    ("ipaddresspool", "community"): COMMUNITIES,
    ("configmap", "bfd"): PROFILES,
    ("ipaddresspool", "bfd"): PROFILES,
    "invalid my-asn": PEERS,
    "invalid peer-asn": PEERS,
    "peer without asn or dynamic asn": PEERS,
    "peer with both asn and dynamic asn": PEERS,
    "invalid ebgp-multihop": PEERS,
    "invalid hold time (wrong format)": PEERS,
    "invalid hold time (too short)": PEERS,
    "invalid keepalivetime larger than holdtime": PEERS,
    "invalid router ID": PEERS,
    "invalid RouterID": PEERS,
    "invalid expression node selector (missing key)": PEERS,
    "invalid expression node selector (missing operator)": PEERS,
    "invalid expression node selector (invalid operator)": PEERS,
    "duplicate values node selector match expression": PEERS,
    "duplicate peers": PEERS,
    "unnumbered peer without address without interface nok": PEERS,
    "unnumbered peer with address with interface nok": PEERS,
    "BGP Peer with both password and secret ref set": SECRETS,
    "BGP Peer with invalid secret type": SECRETS,
    "BGP Peer without password set in the secret": SECRETS,
    "BGP Peer with unavailable secret ref": SECRETS,
    "Peer with non existing BFD Profile": PROFILES,
    "Session with ipv6 and bfd echo mode": PROFILES,
    "different local pref - same peers and nodes": DETAILS,
    "Duplicate bgp advertisment definition": DETAILS,
    "Duplicate communities definition": COMMUNITIES,
    "duplicate ip address pools - in L2 adv": LAYER2,
    "use duplicate ip pool selectors - in L2 adv": LAYER2,
    "shipped manifests/example-config.yaml (v0.11)": SHAPE,
    "config-data-bfdprofile.yaml": SHAPE,
    "config-data-convert-names.yaml": SHAPE,
    "config-data-peers.yaml": SHAPE,
    "docs website/content/configuration/_index.md block 5": SHAPE,
    "docs website/content/configuration/_index.md block 8": SHAPE,
}

Case = dict[str, Any]


def reason(case: Case) -> str | None:
    """Why nftsync takes a case that MetalLB refuses; None if it has to refuse it, too."""
    return LENIENT.get((case["kind"], case["fault_in"])) or LENIENT.get(case["name"])


def objects(case: Case) -> list[Any]:
    """The custom resources as an API server would have taken them.

    Go's unit tests omit names and write some with capitals. A pool without a name is a case of its own.
    """
    found = [each for each in documents(case["yaml"]) if each is not None]
    for number, raw in enumerate(found):
        assert isinstance(raw, dict)
        metadata = raw.setdefault("metadata", {})
        if raw["kind"] != "IPAddressPool":
            metadata.setdefault("name", f"unnamed{number}")
        if "name" in metadata:
            metadata["name"] = metadata["name"].lower()
        spec = raw.get("spec") or {}
        if spec.get("ipAddressPools"):
            spec["ipAddressPools"] = [name.lower() for name in spec["ipAddressPools"]]
    return found


def read(case: Case) -> MetalLBConfig:
    """Raises ValueError where the case is refused."""
    if case["kind"] == "configmap":
        return parse_configuration(case["yaml"], "the case")
    kinds: dict[str, list[Any]] = defaultdict(list)
    for raw in objects(case):
        kinds[raw["kind"]].append(raw)
    peers: list[Peer] = [parse_peer(raw, None) for raw in kinds["BGPPeer"]]
    found, rejections = configuration(
        [parse_pool(raw, None) for raw in kinds["IPAddressPool"]],
        [parse_advertisement(raw, None) for raw in kinds["BGPAdvertisement"]],
        peers,
        [],
    )
    if rejections:
        raise Malformed("\n".join(map(str, rejections)))
    # Where there is no pool the peers count for nothing; what they are can be compared all the same.
    return found or MetalLBConfig(peers=frozenset(peer.address for peer in peers if peer.address is not None))


def wanted_ranges(case: Case) -> dict[str, list[str]]:
    return {name: pool["ranges"] for name, pool in case["pools"].items()}


def wanted_peers(case: Case) -> set[str]:
    """The addresses: of "1.2.3.4:179" in a ConfigMap's case; "<nil>" in another is a peer behind an interface."""
    found = {
        peer["address"] if isinstance(peer, dict) else peer.rpartition(":")[0].strip("[]") for peer in case["peers"]
    }
    return found - {"<nil>"}


def manifest(case: Case, folder: Path) -> Path:
    """The case as a file for kubectl."""
    if case["kind"] == "configmap":
        metadata = {"namespace": "metallb-system", "name": "config"}
        items = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config": case["yaml"]}}]
    else:
        items = objects(case)
    path = folder / "case.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}), encoding="utf-8")
    return path


if CASES.exists():
    ALL: list[Case] = json.loads(CASES.read_text(encoding="utf-8"))
    VALID = [case for case in ALL if case["valid"]]
    IDS = [f"{number}-{case['kind']}-{case['name']}" for number, case in enumerate(ALL)]
    VALID_IDS = [each for each, case in zip(IDS, ALL, strict=True) if case["valid"]]

    @pytest.mark.parametrize("case", ALL, ids=IDS)
    def test_a_configuration_has_metallbs_verdict_except_where_a_fault_changes_no_address(case: Case) -> None:
        refusal = ""
        try:
            read(case)
        except ValueError as fault:
            refusal = str(fault)
        if case["valid"]:
            assert refusal == ""
        elif reason(case) is None:
            assert refusal, f"MetalLB refuses it: {case['note']}"
        else:
            assert refusal == "", f"it is refused, so the table need not say: {reason(case)}"

    def test_every_entry_of_the_table_is_about_a_case_that_metallb_refuses() -> None:
        faulty = {key for case in ALL if not case["valid"] for key in (case["name"], (case["kind"], case["fault_in"]))}
        assert LENIENT.keys() - faulty == set()

    @pytest.mark.parametrize("case", VALID, ids=VALID_IDS)
    def test_a_valid_configuration_holds_the_pools_that_metallb_sees(case: Case) -> None:
        found = read(case)
        assert {pool.name: list(map(str, pool.ranges)) for pool in found.pools} == wanted_ranges(case)
        assert sorted(str(each) for pool in found.pools for each in pool.ranges) == sorted(case["ranges"])
        assert {pool.name: pool.advertised for pool in found.pools} == {
            name: pool["protocol"] == "bgp" if case["kind"] == "configmap" else pool["bgp_advertisements"] > 0
            for name, pool in case["pools"].items()
        }
        assert set(map(str, found.peers)) == wanted_peers(case)

    @pytest.mark.usefixtures("no_dns")
    @pytest.mark.parametrize("case", ALL, ids=IDS)
    def test_the_command_prints_the_ranges_of_what_is_valid_and_none_but_reasons_of_what_is_not(
        case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        plain = tmp_path / "plain.toml"
        plain.write_text(f'paths.state = "{tmp_path}/state"\n', encoding="utf-8")
        assert main(["pools", "--json", "--config", str(plain), "--manifests", str(manifest(case, tmp_path))]) == 0
        printed = json.loads(capsys.readouterr().out)
        if case["valid"]:
            assert {pool["name"]: pool["ranges"] for pool in printed["pools"]} == wanted_ranges(case)
        if case["valid"] or reason(case) is not None:
            assert printed["rejections"] == []
        else:
            assert printed["pools"] == []
            assert {each["reason"] for each in printed["rejections"]} <= {"invalid_pools", "malformed", "duplicate"}
            assert printed["rejections"]
