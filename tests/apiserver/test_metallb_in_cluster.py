"""MetalLB's pools in a real API server say which addresses the daemon opens, judged by packets."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nftsync.objects.nft import METALLB_NAMESPACE
from tests.apiserver.client import Client, refusal_of
from tests.apiserver.harness import HERE, MANIFESTS, NAMESPACE, NFTS, ApiServer, Programs, eventually
from tests.apiserver.router import Router, fresh_router, running_cluster
from tests.lab.lab import Lab

CRDS = HERE / "metallb-crds.yaml"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
PLURALS = {"IPAddressPool": "ipaddresspools", "BGPAdvertisement": "bgpadvertisements", "BGPPeer": "bgppeers"}
OTHER_NAMESPACE = "lb"

# Of each of these /28 networks one address is a Service's.
FIRST, SECOND, THIRD, FOURTH = "172.30.254.0/28", "172.30.254.16/28", "172.30.254.32/28", "172.30.254.48/28"
IN_FIRST, IN_SECOND, IN_THIRD, IN_FOURTH = "172.30.254.1", "172.30.254.17", "172.30.254.33", "172.30.254.49"


class MetalLBCaches:
    """MetalLB's objects in a namespace of a cluster."""

    def __init__(self, server: ApiServer, namespace: str = METALLB_NAMESPACE) -> None:
        self.server = server
        self.namespace = namespace
        self.pools = f"/apis/metallb.io/v1beta1/namespaces/{namespace}/ipaddresspools"
        self.config_maps = f"/api/v1/namespaces/{namespace}/configmaps"

    def install(self) -> None:
        self.server.apply(CRDS)

    def uninstall(self) -> None:
        """Delete the kinds, and every object of them."""
        for plural in PLURALS.values():
            self.server.delete_kind(f"{plural}.metallb.io")

    def pool(self, name: str, *addresses: str) -> None:
        """Create an IPAddressPool, or give it other addresses."""
        metadata = {"name": name, "namespace": self.namespace}
        spec = {"addresses": list(addresses)}
        pool = {"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool", "metadata": metadata, "spec": spec}
        if refusal_of(lambda: self.server.admin.post(self.pools, pool)) is not None:
            self.server.admin.patch(f"{self.pools}/{name}", {"spec": spec})

    def delete_pool(self, name: str) -> None:
        self.server.admin.delete(f"{self.pools}/{name}")

    def config_map(self, text: str) -> None:
        """Create the ConfigMap of MetalLB up to 0.12, or give it another text."""
        config_map = {"metadata": {"name": "config"}, "data": {"config": text}}
        if refusal_of(lambda: self.server.admin.post(self.config_maps, config_map)) is not None:
            self.server.admin.patch(f"{self.config_maps}/config", config_map)

    def delete_config_map(self) -> None:
        self.server.admin.delete(f"{self.config_maps}/config")

    def grant(self) -> None:
        """Let the router read this namespace, with the shipped Role."""
        shipped = yaml.safe_load_all((MANIFESTS / "rbac.yaml").read_text(encoding="utf-8"))
        mine = [each for each in shipped if each["metadata"].get("namespace") == METALLB_NAMESPACE]
        assert [each["kind"] for each in mine] == ["Role", "RoleBinding"]
        for document in mine:
            document["metadata"]["namespace"] = self.namespace
            self.server.apply_object(document)
        eventually(lambda: not self._unreadable(), "the router's rights are there")

    def revoke(self) -> None:
        """Let the router no longer read this namespace.

        Watches under way go on: the server checks the right when a watch begins.
        """
        binding = f"{RBAC}/namespaces/{self.namespace}/rolebindings/nftsync"
        assert refusal_of(lambda: self.server.admin.delete(binding)) in (None, 404)
        eventually(self._unreadable, "the router's rights are gone")

    def _unreadable(self) -> bool:
        user = self.server.client(self.server.issue_token())
        return refusal_of(lambda: user.get(self.pools)) == 403


def legacy(*addresses: str) -> str:
    """What MetalLB up to 0.12 has in its ConfigMap."""
    pool = {"name": "public", "protocol": "bgp", "addresses": list(addresses)}
    peer = {"peer-address": "172.30.250.1", "peer-asn": 64512, "my-asn": 64512, "password": "sesame"}
    text: str = yaml.safe_dump({"peers": [peer], "address-pools": [pool]})
    return text


@pytest.fixture(scope="module")
def cluster(programs: Programs) -> Iterator[tuple[Lab, ApiServer]]:
    """The tests of this module live in the network namespace of the lab's router."""
    with running_cluster(programs) as running:
        running[1].admin.post("/api/v1/namespaces", {"metadata": {"name": OTHER_NAMESPACE}})
        yield running


@pytest.fixture
def router(cluster: tuple[Lab, ApiServer], tmp_path: Path) -> Iterator[Router]:
    """A router with a cluster without MetalLB, and Services that have addresses all the same."""
    lab, server = cluster
    metallb = MetalLBCaches(server)
    assert refusal_of(metallb.delete_config_map) in (None, 404)
    metallb.uninstall()
    metallb.grant()
    MetalLBCaches(server, OTHER_NAMESPACE).revoke()
    with fresh_router(lab, server, tmp_path) as running:
        for number, address in enumerate((IN_FIRST, IN_SECOND, IN_THIRD, IN_FOURTH)):
            running.add(f"s{number}", address)
        yield running


@pytest.fixture
def metallb(router: Router) -> MetalLBCaches:
    """MetalLB's kinds, installed, without objects."""
    installed = MetalLBCaches(router.server)
    installed.install()
    return installed


def in_state(router: Router, state: str, *kinds: str) -> bool:
    """Whether the watches of these kinds are in this state."""
    return all(router.metric(f'nftsync_watch_state{{resource="{kind}",state="{state}"}}') == 1 for kind in kinds)


def all_in_state(router: Router, state: str, *kinds: str) -> None:
    eventually(lambda: in_state(router, state, *kinds), f"{', '.join(kinds)}: not {state}")


def restarts(router: Router, kind: str) -> float:
    """How often the watch of this kind had to be restarted, whatever the cause."""
    counted = re.findall(
        rf'^nftsync_watch_restarts_total{{.*resource="{kind}".*}} (\S+)$', router.page("/metrics"), re.MULTILINE
    )
    return sum(map(float, counted))


def logged(router: Router, level: str) -> list[str]:
    """What was logged at this level."""
    lines = router.log.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix(f"nftsync: {level}: ") for line in lines if line.startswith(f"nftsync: {level}: ")]


def open_ones(router: Router) -> list[str]:
    """The Services' addresses that can be reached."""
    return [address for address in (IN_FIRST, IN_SECOND, IN_THIRD, IN_FOURTH) if router.lab.arrives("tcp", address, 80)]


def only_open(router: Router, *addresses: str) -> None:
    eventually(lambda: open_ones(router) == list(addresses), f"open should be {addresses}")


def looked_at(router: Router, change: Callable[[], object]) -> None:
    """Change something in the cluster; on return a sync has followed it."""

    def syncs() -> float:
        return sum(map(float, re.findall(r"^nftsync_syncs_total{.*} (\S+)$", router.page("/metrics"), re.MULTILINE)))

    before = syncs()
    change()
    eventually(lambda: syncs() > before, "the daemon hears nothing of the change")


# --- what is not there --------------------------------------------------------------------------------


def test_without_metallb_all_is_open_and_once_it_is_installed_its_pools_decide(router: Router) -> None:
    router.start()
    assert open_ones(router) == [IN_FIRST, IN_SECOND, IN_THIRD, IN_FOURTH]
    assert "\nnftsync_pools_guarded 0.0\n" in router.page("/metrics")
    all_in_state(router, "absent", *PLURALS)
    all_in_state(router, "watching", "ConfigMap")
    assert [restarts(router, kind) for kind in PLURALS] == [0, 0, 0]
    assert logged(router, "ERROR") == []
    assert sum(line.startswith("addresses are not checked") for line in logged(router, "WARNING")) == 1

    metallb = MetalLBCaches(router.server)
    metallb.install()
    metallb.pool("first", FIRST)
    only_open(router, IN_FIRST)
    eventually(lambda: router.metric("nftsync_pools_guarded") == 1, "the pool guards")
    eventually(lambda: router.metric('nftsync_rejections{reason="outside_pools"}') == 3, "those outside are refused")
    all_in_state(router, "watching", *PLURALS)
    assert logged(router, "ERROR") == []


def test_nobody_waits_for_pools_that_may_not_be_read_and_they_count_once_they_may(
    router: Router, metallb: MetalLBCaches
) -> None:
    metallb.pool("first", FIRST)
    metallb.revoke()
    router.start()
    assert open_ones(router) == [IN_FIRST, IN_SECOND, IN_THIRD, IN_FOURTH]
    all_in_state(router, "absent", *PLURALS, "ConfigMap")
    assert sum("403 Forbidden" in line for line in logged(router, "WARNING")) == 6
    metallb.grant()
    only_open(router, IN_FIRST)
    assert logged(router, "ERROR") == []


def test_when_the_kinds_go_the_last_pools_stay_until_there_are_others(router: Router, metallb: MetalLBCaches) -> None:
    metallb.pool("first", FIRST)
    router.start()
    only_open(router, IN_FIRST)
    metallb.uninstall()
    all_in_state(router, "absent", *PLURALS)
    assert open_ones(router) == [IN_FIRST]
    assert router.metric("nftsync_pools_guarded") == 1
    metallb.install()
    all_in_state(router, "watching", *PLURALS)
    assert open_ones(router) == [IN_FIRST]
    metallb.pool("second", SECOND)
    only_open(router, IN_SECOND)
    assert logged(router, "ERROR") == []


def test_when_the_kinds_go_all_pools_stay(router: Router, metallb: MetalLBCaches) -> None:
    """Before a kind goes, the server deletes its objects one by one, and tells of each."""
    metallb.pool("first", FIRST)
    metallb.pool("second", SECOND)
    metallb.pool("third", THIRD)
    router.start()
    only_open(router, IN_FIRST, IN_SECOND, IN_THIRD)
    time.sleep(1)  # what comes after a quiet time is taken at once, by itself
    metallb.uninstall()
    all_in_state(router, "absent", *PLURALS)
    assert open_ones(router) == [IN_FIRST, IN_SECOND, IN_THIRD]


# --- what changes -------------------------------------------------------------------------------------


def test_an_edit_of_a_pool_opens_and_closes(router: Router, metallb: MetalLBCaches) -> None:
    metallb.pool("first", FIRST)
    router.start()
    only_open(router, IN_FIRST)
    for _ in range(3):
        metallb.pool("first", FIRST, SECOND)
        router.opens(IN_SECOND)
        metallb.pool("first", FIRST)
        router.closes(IN_SECOND)
    assert open_ones(router) == [IN_FIRST]


def test_the_config_map_of_older_versions(router: Router) -> None:
    """Created, edited, made invalid, deleted; and what was good last is enforced after a restart, too."""
    metallb = MetalLBCaches(router.server)
    router.start()
    assert open_ones(router) == [IN_FIRST, IN_SECOND, IN_THIRD, IN_FOURTH]
    metallb.config_map(legacy(FIRST))
    only_open(router, IN_FIRST)
    eventually(lambda: router.metric("nftsync_pools_guarded") == 1, "the ConfigMap's pool guards")
    metallb.config_map(legacy(FIRST, "172.30.254.16-172.30.254.31"))
    only_open(router, IN_FIRST, IN_SECOND)

    invalid = 'nftsync_rejections{reason="invalid_pools"}'
    metallb.config_map(legacy(THIRD, "172.30.254.300/28"))
    eventually(lambda: router.metric(invalid) == 1, "the invalid text is refused")
    assert open_ones(router) == [IN_FIRST, IN_SECOND]
    metallb.delete_config_map()
    eventually(lambda: router.metric(invalid) == 0, "what is gone is not refused")
    assert open_ones(router) == [IN_FIRST, IN_SECOND]
    assert "sesame" not in router.log.read_text(encoding="utf-8")

    router.stop()
    router.add("late", "172.30.254.40")
    router.start()
    assert open_ones(router) == [IN_FIRST, IN_SECOND]
    assert not router.lab.arrives("tcp", "172.30.254.40", 80)
    assert "\nnftsync_pools_guarded 1.0\n" in router.page("/metrics")


def test_pools_win_over_the_config_map_that_they_replace(router: Router) -> None:
    metallb = MetalLBCaches(router.server)
    metallb.config_map(legacy(FIRST))
    router.start()
    only_open(router, IN_FIRST)
    metallb.install()
    all_in_state(router, "watching", *PLURALS)
    assert open_ones(router) == [IN_FIRST], "kinds without objects say nothing"
    metallb.pool("second", SECOND)
    only_open(router, IN_SECOND)
    looked_at(router, lambda: metallb.config_map(legacy(FIRST, THIRD)))
    assert open_ones(router) == [IN_SECOND]
    looked_at(router, metallb.delete_config_map)
    assert open_ones(router) == [IN_SECOND]
    assert logged(router, "ERROR") == []


# --- another namespace --------------------------------------------------------------------------------


def test_the_pools_of_the_namespace_that_the_nft_names_count(router: Router, metallb: MetalLBCaches) -> None:
    other = MetalLBCaches(router.server, OTHER_NAMESPACE)
    metallb.pool("default", FIRST)
    other.pool("other", SECOND)
    router.start()
    only_open(router, IN_FIRST)

    router.server.admin.patch(f"{NFTS}/nft", {"spec": {"metallb-namespace": OTHER_NAMESPACE}})
    all_in_state(router, "absent", *PLURALS, "ConfigMap")
    assert open_ones(router) == [IN_FIRST], "what can't be read takes nothing away, and gives nothing"
    metallb.pool("default", THIRD)
    other.grant()
    only_open(router, IN_SECOND)
    all_in_state(router, "watching", *PLURALS, "ConfigMap")
    for kind in (*PLURALS, "ConfigMap"):
        (refused,) = (line for line in logged(router, "WARNING") if line.startswith(f"{kind}: "))
        assert "403 Forbidden" in refused
        assert restarts(router, kind) == 0

    other.revoke()
    router.server.restart()  # ends the watches
    all_in_state(router, "absent", *PLURALS, "ConfigMap")
    other.pool("other", FOURTH)
    assert open_ones(router) == [IN_SECOND]
    router.stop()
    router.start()
    assert open_ones(router) == [IN_SECOND]
    shown = json.loads(router.run("pools", "--json").stdout)
    assert [(pool["name"], pool["ranges"]) for pool in shown["pools"]] == [("other", ["172.30.254.16-172.30.254.31"])]
    assert {rejection["reason"] for rejection in shown["rejections"]} == {"missing_pools", "unreadable"}


# --- rights -------------------------------------------------------------------------------------------

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
RESOURCES = (
    *(("metallb.io", plural) for plural in PLURALS.values()),
    *(("", core) for core in ("configmaps", "secrets", "pods", "nodes")),
)


def test_of_metallb_the_router_may_read_its_configuration_and_no_more(router: Router) -> None:
    user = router.server.client(router.server.issue_token())

    def allowed(verb: str, group: str, resource: str, namespace: str, name: str) -> bool:
        attributes = {"verb": verb, "group": group, "resource": resource, "namespace": namespace, "name": name}
        review = {"spec": {"resourceAttributes": attributes}}
        answer: Any = user.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    namespaces = ("", METALLB_NAMESPACE, OTHER_NAMESPACE, NAMESPACE, "default", "kube-system")
    asked = [
        (verb, *resource, namespace, name)
        for verb, resource, namespace, name in itertools.product(VERBS, RESOURCES, namespaces, ("", "config", "other"))
    ]
    objects = [
        ("metallb.io", plural, METALLB_NAMESPACE, name)
        for plural in PLURALS.values()
        for name in ("", "config", "other")
    ]
    objects.append(("", "configmaps", METALLB_NAMESPACE, "config"))
    expected = {(verb, *each) for verb in ("list", "watch") for each in objects}
    assert {each for each in asked if allowed(*each)} == expected


def test_the_server_takes_the_field_selector_for_the_config_maps_name(router: Router) -> None:
    """RBAC's resourceNames are meant for single objects; a list is one when it selects one."""
    metallb = MetalLBCaches(router.server)
    metallb.config_map(legacy(FIRST))
    user: Client = router.server.client(router.server.issue_token())
    listed = user.get(metallb.config_maps, {"fieldSelector": "metadata.name=config"})
    assert [each["metadata"]["name"] for each in listed["items"]] == ["config"]
    assert refusal_of(lambda: user.get(metallb.config_maps)) == 403
    assert refusal_of(lambda: user.get(metallb.config_maps, {"fieldSelector": "metadata.name!=config"})) == 403
    assert refusal_of(lambda: user.get(metallb.config_maps, {"fieldSelector": "metadata.name=other"})) == 403


# --- commands -----------------------------------------------------------------------------------------


def findings(router: Router) -> tuple[int, list[str]]:
    """The exit status of `nftsync check`, and its lines that are not ok or speak of pools."""
    checked = router.run("check")
    lines = checked.stdout.splitlines()
    return checked.returncode, [
        line for line in lines if not line.startswith("ok") or "pools" in line.partition(": ")[0]
    ]


def test_the_commands_name_the_pools_that_guard(router: Router, metallb: MetalLBCaches) -> None:
    metallb.pool("public", "172.30.254.5-172.30.254.9", "2001:db8:254::/120")
    metallb.pool("extra", SECOND)
    shown = router.run("pools", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout) == {
        "pools": [
            {
                "name": "extra",
                "source": f"IPAddressPool {METALLB_NAMESPACE}/extra",
                "ranges": ["172.30.254.16-172.30.254.31"],
            },
            {
                "name": "public",
                "source": f"IPAddressPool {METALLB_NAMESPACE}/public",
                "ranges": ["172.30.254.5-172.30.254.9", "2001:db8:254::-2001:db8:254::ff"],
            },
        ],
        "rejections": [],
    }
    assert findings(router) == (0, [f"ok    MetalLB's pools: 2 in {METALLB_NAMESPACE}: extra, public"])


def test_the_commands_speak_of_what_is_there_now_not_of_what_the_daemon_saw_before(
    router: Router, metallb: MetalLBCaches
) -> None:
    metallb.pool("first", FIRST)
    metallb.pool("second", SECOND)
    router.start()
    only_open(router, IN_FIRST, IN_SECOND)
    router.stop()
    metallb.delete_pool("second")
    assert [each["name"] for each in json.loads(router.run("pools", "--json").stdout)["pools"]] == ["first"]
    assert findings(router) == (0, [f"ok    MetalLB's pools: 1 in {METALLB_NAMESPACE}: first"])
    metallb.delete_pool("first")
    shown = [each["name"] for each in json.loads(router.run("pools", "--json").stdout)["pools"]]
    assert shown == ["first", "second"], "where there is none, what the daemon saw last holds"


def test_the_commands_say_that_nothing_guards(router: Router) -> None:
    shown = router.run("pools", "--json")
    assert (shown.returncode, json.loads(shown.stdout)) == (0, {"pools": [], "rejections": []})
    assert "every address is legal" in router.run("pools").stdout
    status, (found,) = findings(router)
    assert status == 0
    assert found.startswith("warn  MetalLB's pools: addresses are unguarded")


def test_the_commands_say_which_rights_are_missing(router: Router, metallb: MetalLBCaches) -> None:
    metallb.pool("public", FIRST)
    metallb.revoke()
    shown = router.run("pools", "--json")
    status, found = findings(router)
    assert shown.returncode == 0
    rejections = json.loads(shown.stdout)["rejections"]
    assert [(each["object"], each["reason"]) for each in rejections] == [
        (f"{kind} {METALLB_NAMESPACE}", "unreadable")
        for kind in (*PLURALS, "ConfigMap", "AddressPool", "ConfigurationState")
    ]
    assert status == 0, "the router works without"
    assert all(line.startswith("warn") for line in found)
    for resource in (*PLURALS.values(), "configmaps"):
        (line,) = (line for line in found if f"may not list or watch {resource} in {METALLB_NAMESPACE}" in line)
        assert line.endswith(": run nftsync bootstrap with an administrator's kubeconfig")


def test_check_says_what_another_namespace_of_metallb_needs(router: Router) -> None:
    router.server.admin.patch(f"{NFTS}/nft", {"spec": {"metallb-namespace": OTHER_NAMESPACE}})
    status, found = findings(router)
    assert status == 0
    for resource in (*PLURALS.values(), "configmaps"):
        missing = f"warn  RBAC: may not list or watch {resource} in {OTHER_NAMESPACE}"
        assert f"{missing}: give it the Role there that it has in {METALLB_NAMESPACE}" in found
