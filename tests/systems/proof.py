"""The proof of the package on one router, step by step.

Each step finds the router as the step before has left it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.apiserver.harness import NFTS, ApiServer, eventually
from tests.lab.namespace import Namespace
from tests.lab.probe import CLIENT
from tests.load import Tally, listener, traffic_from
from tests.systems.machine import Machine

KUBECONFIG, PACKAGE, OLDER = "/etc/nftsync/kubeconfig", "/root/nftsync.deb", "/root/older.deb"
SMOKE = Path(__file__).parents[2] / "packaging" / "debian" / "tests" / "smoke"
OPEN, CLOSED, LIMITED = "172.30.254.1", "172.30.254.9", "172.30.254.2"
MEMORY = "/var/lib/nftsync/memory.journal"
PORT = 8080
PAUSE = 0.001  # seconds between two rounds of packets
RULE = f"{OPEN} . udp . {PORT}"
_SERVICES = "/api/v1/namespaces/default/services"
_CAP_NET_ADMIN = f"{1 << 12:016x}"


class Proof:
    """The router, its cluster, and who is outside."""

    def __init__(self, machine: Machine, client: Namespace, cluster: Namespace, server: ApiServer) -> None:
        self.machine, self.client, self.cluster, self.server = machine, client, cluster, server

    def steps(self) -> tuple[Callable[[], None], ...]:
        return (
            self.a_fresh_install_starts_nothing_and_says_what_to_do,
            self.with_a_kubeconfig_it_runs_and_the_rules_are_there,
            self.its_process_has_one_capability_and_a_seccomp_filter,
            self.everything_works_in_the_sandbox,
            self.a_restart_of_nftables_is_survived,
            self.an_upgrade_under_traffic_leaks_and_loses_no_packet,
            self.after_a_reboot_with_the_api_down_the_rules_are_there_before_an_interface_is_up,
            self.when_the_api_is_back_the_router_follows,
            self.a_power_cut_harms_nothing,
            self.a_kubeconfig_that_was_lost_opens_nothing,
            self.removal_keeps_the_configuration_and_the_rules,
            self.purging_leaves_nothing,
        )

    def a_fresh_install_starts_nothing_and_says_what_to_do(self) -> None:
        said = self.install(OLDER)
        assert [line for line in said.splitlines() if line.startswith("nftsync: ")] == [
            "nftsync: install a kubeconfig as /etc/nftsync/kubeconfig (root:nftsync, mode 0640; see nftsync(8)).",
            "nftsync: then run nftsync check and systemctl start nftsync. Until then nftsync adds no rules.",
        ]
        for unit in ("nftsync", "nftsync-boot"):
            assert self.machine.show(unit, "ActiveState") == "inactive"
            assert self.machine.show(unit, "UnitFileState") == "enabled"
        assert "nftsync" not in self.machine.run("nft", "list", "ruleset")
        checked = self.machine.try_run("nftsync", "check")
        assert checked.returncode == 1
        assert "put the router's kubeconfig there" in checked.stdout
        self.machine.write("/root/smoke", SMOKE.read_text())
        assert self.machine.run("sh", "/root/smoke").endswith("smoke: well\n")

    def with_a_kubeconfig_it_runs_and_the_rules_are_there(self) -> None:
        self.machine.write(KUBECONFIG, self.kubeconfig())
        self.machine.run("chown", "root:nftsync", KUBECONFIG)
        self.machine.run("chmod", "0640", KUBECONFIG)
        self.add("web", OPEN)
        self.machine.run("systemctl", "start", "nftsync")
        assert self.machine.show("nftsync", "ActiveState") == "active"
        self.has(RULE)
        checked = self.machine.try_run("nftsync", "check")
        assert checked.returncode == 0, checked.stdout

    def its_process_has_one_capability_and_a_seccomp_filter(self) -> None:
        pid = self.machine.show("nftsync", "MainPID")
        status = dict(re.findall(r"^(\w+):\s*(.*)$", self.machine.run("cat", f"/proc/{pid}/status"), re.MULTILINE))
        capabilities = {name: value for name, value in status.items() if name.startswith("Cap")}
        assert capabilities == dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), _CAP_NET_ADMIN)
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        user = self.machine.run("id", "--user", "nftsync").strip()
        assert status["Uid"].split() == [user] * 4
        assert user != "0"

    def everything_works_in_the_sandbox(self) -> None:
        self.add("limited", LIMITED, limit="2 mbytes/second burst 512 kbytes")
        self.has(f"{LIMITED} . udp . {PORT} limit rate over 2 mbytes/second")
        assert "hook ingress" in self.ruleset()
        self.questions_are_answered()
        self.cluster_is_told()
        self.machine.write(
            "/etc/nftables.d/local-chain.nft", "chain local-chain {\n\tip saddr 192.0.2.7 counter accept\n}\n"
        )
        self.has("ip saddr 192.0.2.7 counter")
        self.machine.run("systemctl", "reload", "nftsync")
        self.says("configuration reloaded")
        self.what_others_change_is_refused_or_repaired()
        assert self.machine.show("nftsync", "WatchdogTimestampMonotonic") != "0"
        assert self.machine.show("nftsync", "NRestarts") == "0"
        assert [line for line in self.journal().splitlines() if re.search("denied|not permitted", line)] == []
        opened = self.machine.run(
            "journalctl", "--quiet", "--output=cat", "NFTSYNC_NAMESPACE=default", "NFTSYNC_NAME=web"
        )
        assert "Service default/web: opened " in opened
        errors = self.machine.run(
            "journalctl", "--quiet", "--output=cat", "--priority=err", "SYSLOG_IDENTIFIER=nftsync"
        )
        assert errors == ""

    def what_others_change_is_refused_or_repaired(self) -> None:
        owned = "flags owner,persist" in self.ruleset()  # nft 1.1, which Debian 13 has, and a kernel that can
        flushed = self.machine.try_run("nft", "flush", "set", "inet", "nftsync", "services4")
        if owned:
            assert "Operation not permitted" in flushed.stderr
            assert RULE in self.ruleset()
        else:
            self.has(RULE)
            self.says("'nft' (pid ")

    def questions_are_answered(self) -> None:
        status = json.loads(self.machine.run("nftsync", "status", "--json"))
        assert status
        explained = self.machine.run("nftsync", "explain", str(CLIENT[0]), f"{OPEN}:{PORT}/udp")
        assert "default/web" in explained
        assert self.machine.run("nftsync", "top", "--once", "--seconds", "0.2")
        assert self.machine.run("nftsync", "diff") == ""
        confirmed = self.machine.try_run("nftsync", "confirm")
        assert "no settings wait for a confirmation" in confirmed.stderr
        fetch = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9469/metrics').read().decode())"
        assert "nftsync_" in self.machine.run("python3", "-c", fetch)

    def cluster_is_told(self) -> None:
        ready = [("Ready", "True")]
        eventually(lambda: [each for each in self.conditions() if each[0] == "Ready"] == ready, f"{self.conditions()}")
        events = "/apis/events.k8s.io/v1/namespaces/default/events"
        eventually(lambda: "Opened" in {each["reason"] for each in self.server.admin.get(events)["items"]}, "no Event")

    def a_restart_of_nftables_is_survived(self) -> None:
        self.machine.run("systemctl", "enable", "--now", "nftables")  # the distribution's begins with `flush ruleset`
        self.machine.run("systemctl", "restart", "nftables")
        self.has(RULE)
        self.machine.run("systemctl", "stop", "nftsync")
        assert RULE in self.ruleset()
        self.machine.run("systemctl", "restart", "nftables")
        self.has(RULE)
        self.machine.run("systemctl", "start", "nftsync")

    def an_upgrade_under_traffic_leaks_and_loses_no_packet(self) -> None:
        before = self.machine.show("nftsync", "MainPID")
        with self.traffic() as (flows, end):
            flows()
            said = self.install(PACKAGE)
            after = self.machine.show("nftsync", "MainPID")
            self.has(RULE)
            passed, *leaked = end()
        assert "nftsync: this router needs" not in said
        assert self.machine.show("nftsync", "ActiveState") == "active"
        assert after not in (before, "0")
        assert passed.sent > 1000
        assert passed.arrived == passed.sent, f"{passed}"
        assert [each.arrived for each in leaked] == [0, 0]

    def after_a_reboot_with_the_api_down_the_rules_are_there_before_an_interface_is_up(self) -> None:
        eventually(lambda: OPEN in self.remembered(), "nothing is remembered for the next boot")
        self.machine.power_off()
        self.server.kill()
        self.machine.plug()
        with self.traffic() as (flows, end):
            self.machine.boot()
            flows()
            passed, *leaked = end()
        assert passed.arrived
        assert [each.arrived for each in leaked] == [0, 0]
        for nic in ("lo", "public0", "cluster0"):
            assert RULE in self.machine.run("cat", f"/run/before-{nic}")
        assert self.machine.show("nftsync-boot", "Result") == "success"
        assert self.machine.show("nftsync", "ActiveState") == "active"
        assert self.machine.show("nftsync", "StatusText").startswith("Waiting: ")
        assert "hook ingress" in self.ruleset()  # it was attached once there was an interface

    def when_the_api_is_back_the_router_follows(self) -> None:
        self.server.restart()
        self.add("late", CLOSED)
        self.has(f"{CLOSED} . udp . {PORT}", 60.0)
        assert self.machine.show("nftsync", "NRestarts") == "0"

    def a_power_cut_harms_nothing(self) -> None:
        self.machine.pull_the_plug()
        self.machine.plug()
        self.machine.boot()
        assert RULE in self.machine.run("cat", "/run/before-public0")
        self.has(f"{CLOSED} . udp . {PORT}")

    def a_kubeconfig_that_was_lost_opens_nothing(self) -> None:
        self.machine.run("mv", KUBECONFIG, "/root/kubeconfig")
        self.machine.power_off()
        self.machine.plug()
        self.machine.boot()
        assert RULE in self.machine.run("cat", "/run/before-public0")
        assert self.machine.show("nftsync", "ActiveState") == "inactive"
        self.machine.run("mv", "/root/kubeconfig", KUBECONFIG)
        self.machine.run("systemctl", "start", "nftsync")
        assert self.machine.show("nftsync", "ActiveState") == "active"

    def removal_keeps_the_configuration_and_the_rules(self) -> None:
        self.machine.run("apt-get", "remove", "--yes", "--quiet", "nftsync")
        assert RULE in self.ruleset()
        for path in ("/etc/nftsync/nftsync.toml", KUBECONFIG, "/etc/nftables.d/local-chain.nft", MEMORY):
            self.machine.run("test", "-s", path)
        assert self.machine.try_run("test", "-e", "/usr/bin/nftsync").returncode == 1
        assert self.machine.try_run("systemctl", "is-active", "nftsync").returncode != 0

    def purging_leaves_nothing(self) -> None:
        self.machine.run("apt-get", "purge", "--yes", "--quiet", "nftsync")
        assert "nftsync" not in self.ruleset()
        assert "ingress" not in self.machine.run("tc", "qdisc", "show")
        names = ("(", "-name", "*nftsync*", "-o", "-name", "nftables.d", ")")
        for folder in ("/", "/run"):
            left = self.machine.run("find", folder, "-xdev", *names).splitlines()
            assert [path for path in left if not path.startswith("/root/")] == []
        assert self.machine.try_run("getent", "passwd", "nftsync").returncode == 2

    # --- how ------------------------------------------------------------------------------------------------

    def install(self, package: str) -> str:
        return self.machine.run("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", package)

    @contextmanager
    def traffic(self) -> Iterator[tuple[Callable[[], object], Callable[[], list[Tally]]]]:
        """Packets to an open address, to a closed address and to a closed port.

        Yields a wait until one has passed, and the fate of all.
        """
        destinations = [f"{OPEN} {PORT}", f"{CLOSED} {PORT}", f"{OPEN} {PORT + 1}"]
        sockets = [listener(self.cluster, port) for port in (PORT, PORT + 1)]
        with traffic_from(self.client, sockets, destinations, PAUSE) as flowing:
            yield lambda: eventually(lambda: flowing.through(1), "nothing comes through"), flowing.end

    def kubeconfig(self) -> str:
        """The router's, with everything in it."""
        authority = base64.b64encode((self.server.folder / "tls.crt").read_bytes()).decode()
        cluster = {"server": self.server.url, "certificate-authority-data": authority}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "cluster", "cluster": cluster}],
                "users": [{"name": "nftsync", "user": {"token": self.server.issue_token()}}],
                "contexts": [{"name": "nftsync", "context": {"cluster": "cluster", "user": "nftsync"}}],
                "current-context": "nftsync",
            }
        )

    def add(self, name: str, address: str, limit: str | None = None) -> None:
        annotations = {"ratelimit": limit} if limit else {}
        ports = [{"protocol": "UDP", "port": PORT}]
        service = {
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"type": "LoadBalancer", "ports": ports},
        }
        self.server.admin.post(_SERVICES, service)
        self.server.admin.patch(
            f"{_SERVICES}/{name}/status", {"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}
        )

    def conditions(self) -> list[tuple[str, str]]:
        status = self.server.admin.get(f"{NFTS}/nft").get("status", {})
        return [(each["type"], each["status"]) for each in status.get("conditions", ())]

    def ruleset(self) -> str:
        return self.machine.run("nft", "list", "ruleset")

    def has(self, text: str, seconds: float = 20.0) -> None:
        eventually(lambda: text in self.ruleset(), f"the kernel has no {text}", seconds)

    def remembered(self) -> str:
        return self.machine.try_run("cat", MEMORY).stdout

    def journal(self) -> str:
        return self.machine.journal("nftsync")

    def says(self, text: str) -> None:
        eventually(lambda: text in self.journal(), f"the daemon does not say: {text}")
