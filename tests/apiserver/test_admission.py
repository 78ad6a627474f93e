"""A wrong rate limit is refused at `kubectl apply` where the API server knows admission policies.

An older server takes it, and nftsync rejects it. Everybody here types a real kubectl.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftsync.objects.service import EGRESS_ANNOTATION, RATELIMIT_ANNOTATION, parse_service
from tests.apiserver.client import RefusedError
from tests.apiserver.harness import ApiServer, eventually, programs_of
from tests.apiserver.kubectl import KUBECTL, has_policies, kubectl
from tests.objects.test_ratelimit import near_misses, others, spelt
from tests.objects.test_ratelimit_policy import TEXTS, mutated
from tests.programs.cache import NEW, OLD, ProgramsError
from tests.ratelimitpolicy import MANIFEST, POLICY, judged, parsers

SERVICES = "/api/v1/namespaces/default/services"
DENIED = "denied request: "
GOOD, WRONG = "2 mbytes/second burst 512 kbytes", "10 mbit/s"


@contextmanager
def serving(version: str) -> Iterator[ApiServer]:
    """A server of its own, since the policy holds for all Services. Service "older" is older than the policy."""
    try:
        programs = programs_of(version)
    except ProgramsError as fault:
        pytest.skip(str(fault))
    with ApiServer(programs=programs) as server:
        assert kubectl(server, "apply", "-f", "-", stdin=manifest("older", {RATELIMIT_ANNOTATION: WRONG})).status == 0
        yield server


@pytest.fixture(scope="module")
def applied() -> Iterator[ApiServer]:
    """Today's server, with the policy in force."""
    with serving(NEW) as server:
        assert has_policies(server)
        answer = kubectl(server, "apply", "-f", str(MANIFEST))
        assert (answer.status, answer.err) == (0, ""), answer
        assert answer.out.count(f"/{POLICY['metadata']['name']} created") == 2
        eventually(lambda: refusal(server, {RATELIMIT_ANNOTATION: WRONG}), "the policy is in force")
        yield server


@pytest.fixture(scope="module")
def old() -> Iterator[ApiServer]:
    with serving(OLD) as server:
        assert not has_policies(server)
        yield server


def document(name: str, annotations: Mapping[str, str], kind: str = "LoadBalancer") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": dict(annotations)},
        "spec": {"type": kind, "ports": [{"port": 80}]},
    }


def manifest(name: str, annotations: Mapping[str, str], kind: str = "LoadBalancer") -> str:
    return json.dumps(document(name, annotations, kind))


def refusal(server: ApiServer, annotations: Mapping[str, str]) -> str:
    """The policy's message about a new Service; "" if the server would take it."""
    try:
        server.admin.post(SERVICES, document("drawn", annotations), {"dryRun": "All"})
    except RefusedError as refused:
        _, denied, told = refused.message.partition(DENIED)
        if not denied:
            raise
        return told
    return ""


def check(server: ApiServer, annotations: Mapping[str, str]) -> None:
    """The server says what tests/cel.py makes of the policy, and refuses what the parser refuses."""
    told = refusal(server, annotations)
    assert told == judged(document("drawn", annotations)), annotations
    assert bool(told) == any(parsers(text) for text in annotations.values()), annotations


def test_kubectl_is_that_of_the_requirements() -> None:
    assert KUBECTL.is_file(), "make .venv/dev installs it"


def test_a_wrong_limit_is_refused_at_kubectl_apply_with_the_parsers_sentence(applied: ApiServer) -> None:
    for annotation, text in (("ratelimit", WRONG), ("ratelimit", ""), ("nftsync.io/ratelimit-egress", "0/second")):
        answer = kubectl(applied, "apply", "-f", "-", stdin=manifest("wrong", {annotation: text}))
        assert (answer.status, answer.out) == (1, "")
        assert answer.err.strip().endswith(f"{DENIED}{parsers(text, annotation)}")
    assert kubectl(applied, "get", "service", "wrong").err.startswith("Error from server (NotFound)")


def test_a_right_limit_passes_and_a_wrong_annotate_leaves_it(applied: ApiServer) -> None:
    assert kubectl(applied, "apply", "-f", "-", stdin=manifest("right", {RATELIMIT_ANNOTATION: GOOD})).status == 0
    answer = kubectl(applied, "annotate", "--overwrite", "service", "right", f"ratelimit={WRONG}")
    assert answer.status == 1
    assert answer.err.strip().endswith("; write '1220 kbytes/second'")
    answer = kubectl(applied, "annotate", "service", "right", f"{EGRESS_ANNOTATION}=400 pps")
    assert answer.status == 1
    assert answer.err.strip().endswith("; write '400/second'")
    assert applied.admin.get(f"{SERVICES}/right")["metadata"]["annotations"][RATELIMIT_ANNOTATION] == GOOD
    answer = kubectl(applied, "annotate", "--overwrite", "service", "right", "ratelimit=1220 kbytes/second")
    assert (answer.status, answer.err) == (0, "")


def test_an_older_wrong_limit_does_not_keep_anybody_from_writing_something_else(applied: ApiServer) -> None:
    older = f"{SERVICES}/older"
    applied.admin.patch(older, {"metadata": {"finalizers": ["service.kubernetes.io/load-balancer-cleanup"]}})
    applied.admin.patch(f"{older}/status", {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}})
    assert kubectl(applied, "annotate", "service", "older", "team=shop").status == 0
    assert kubectl(applied, "apply", "-f", "-", stdin=manifest("older", {RATELIMIT_ANNOTATION: WRONG})).status == 0
    assert kubectl(applied, "annotate", "--overwrite", "service", "older", "ratelimit=20 mbit/s").status == 1
    applied.admin.patch(older, {"metadata": {"finalizers": None}})
    assert kubectl(applied, "annotate", "service", "older", "ratelimit-").status == 0


def test_other_types_of_services_pass_until_they_become_load_balancers(applied: ApiServer) -> None:
    inside = manifest("inside", {RATELIMIT_ANNOTATION: WRONG}, "ClusterIP")
    assert kubectl(applied, "apply", "-f", "-", stdin=inside).status == 0
    answer = kubectl(applied, "patch", "service", "inside", "-p", '{"spec": {"type": "LoadBalancer"}}')
    assert answer.status == 1
    assert parsers(WRONG) in answer.err


def test_the_server_judges_each_text_of_the_tables_as_the_parser_does(applied: ApiServer) -> None:
    for text in TEXTS:
        check(applied, {RATELIMIT_ANNOTATION: text})


def test_two_annotations_at_once_cost_the_server_no_more_than_it_allows(applied: ApiServer) -> None:
    for text in TEXTS:
        check(applied, {RATELIMIT_ANNOTATION: text, EGRESS_ANNOTATION: text[::-1]})


@settings(max_examples=300)
@given(mutated() | spelt() | others | near_misses | st.text(max_size=140))
def test_the_server_judges_drawn_texts_as_the_parser_does(applied: ApiServer, text: str) -> None:
    check(applied, {RATELIMIT_ANNOTATION: text})


@pytest.mark.parametrize("piece", ["x", " ", "9", "\n", "é", "10 mbit/s ", "\\", "5/second burst "])
def test_as_much_as_an_annotation_can_hold_is_refused_as_too_long(applied: ApiServer, piece: str) -> None:
    longest = piece * (100_000 // len(piece.encode()))
    check(applied, {RATELIMIT_ANNOTATION: longest, EGRESS_ANNOTATION: longest})


def test_an_older_server_has_no_such_kind_takes_the_limit_and_nftsync_rejects_it(old: ApiServer) -> None:
    answer = kubectl(old, "apply", "-f", str(MANIFEST))
    assert answer.status == 1
    assert 'no matches for kind "ValidatingAdmissionPolicy" in version "admissionregistration.k8s.io/v1"' in answer.err
    assert kubectl(old, "apply", "-f", "-", stdin=manifest("wrong", {RATELIMIT_ANNOTATION: WRONG})).status == 0
    assert kubectl(old, "annotate", "service", "wrong", f"{EGRESS_ANNOTATION}=fast").status == 0
    answer = kubectl(old, "get", "service", "wrong", "-o", "json")
    parsed = parse_service(json.loads(answer.out), None)
    assert parsed is not None
    refused = [rejection.message for rejection in parsed.rejections]
    assert refused == [
        f"{parsers(WRONG)}; the Service is not limited",
        f"{parsers('fast', EGRESS_ANNOTATION)}; what it sends is not limited",
    ]
