"""A router with systemd, in a container between a client and the cluster's side.

    client eth0 ────── public0 router cluster0 ────── eth0 (the cluster's side)

On the cluster's side are the API server and the targets of Services.

All three have network namespaces of their own, so nothing of this touches the machine's network;
the caller has entered the cluster's side. The router's interfaces are there, and down, before its
first unit starts.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.apiserver.harness import eventually
from tests.lab.namespace import Namespace
from tests.lab.probe import CLIENT, CLUSTER, NODE, PEER_MAC, PUBLIC, ROUTER_MAC

SERVICES = "172.30.254.0/24"
_INTERFACES = f"""auto lo public0 cluster0
iface lo inet loopback
iface public0 inet static
    address {PUBLIC[0]}/24
iface cluster0 inet static
    address {CLUSTER[0]}/24
    post-up ip route add {SERVICES} via {NODE[0]}
"""
# What stands in the kernel before an interface is up.
_BEFORE_UP = '#!/bin/sh\nnft list ruleset >"/run/before-$IFACE"\n'
_PATIENCE = 180.0  # seconds until a start that always ends, on a busy machine too, is taken to have failed
_COMPLAINT = 4000  # characters of the console's end
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Machine:
    """The router. root: its root file system, which is changed."""

    def __init__(self, root: Path, cluster: Namespace, client: Namespace) -> None:
        self.root = root
        self._cluster = cluster
        self._client = client
        self._network: Namespace | None = None
        self._container: subprocess.Popen[str] | None = None
        self._leader = 0
        self._console = root.parent / "console"
        self.write("/etc/hostname", "edge1\n")
        self.write("/etc/network/interfaces", _INTERFACES)
        self.write("/etc/network/if-pre-up.d/before", _BEFORE_UP)
        (root / "etc/network/if-pre-up.d/before").chmod(0o755)

    def write(self, path: str, text: str) -> None:
        """A file of the router's, whether it runs or not."""
        target = self.root / path.lstrip("/")
        if self._leader:
            self.run("sh", "-c", f"cat >{path}", text=text)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)

    def remove(self, path: str) -> None:
        """A file of the router's, which does not run."""
        (self.root / path.lstrip("/")).unlink()

    def plug(self) -> None:
        """Lay both wires to a router that knows nothing of nftables; its ends are down.

        No packet waits for a neighbour.
        """
        self._unplug()
        self._network = Namespace()
        self._network.sysctl({"ipv4/conf/all/forwarding": 1, "ipv6/conf/all/forwarding": 1})
        for nic, peer, here, there in (
            ("public0", self._client, CLIENT, PUBLIC),
            ("cluster0", self._cluster, NODE, CLUSTER),
        ):
            self._network.ip(
                f"link add {nic} address {ROUTER_MAC} type veth peer name eth0 address {PEER_MAC} netns {peer.path}"
            )
            peer.ip(
                f"address add {here[0]}/24 dev eth0",
                "link set eth0 up",
                f"neighbour add {there[0]} lladdr {ROUTER_MAC} nud permanent dev eth0",
                f"route add default via {there[0]}",
            )

    def boot(self) -> None:
        """Return when every unit that is to start has started. After plug()."""
        assert self._network
        # In a process namespace of its own, so that all of it ends when we end. Its network is made
        # here: nspawn looks for interfaces that it must move in /sys, which shows those of the machine.
        command = [
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "systemd-nspawn",
            "--quiet",
            "--register=no",
        ]
        command += [
            "--keep-unit",
            "--boot",
            "--directory",
            str(self.root),
            "--network-namespace-path=/proc/self/ns/net",
        ]
        command.append("--capability=CAP_NET_ADMIN,CAP_NET_RAW")
        with self._console.open("w") as console:
            streams = {"stdin": subprocess.DEVNULL, "stdout": console, "stderr": console}
            self._container = self._network.popen(command, env={"PATH": _PATH}, **streams)
        eventually(self._started, "the container does not start", _PATIENCE)
        eventually(self._booted, "not every unit has started", _PATIENCE)

    def _started(self) -> bool:
        assert self._container
        if self._container.poll() is not None:
            raise AssertionError(f"the container has ended: {self._console.read_text()[-_COMPLAINT:]}")
        nspawn = _child(self._container.pid)
        self._leader = _child(nspawn) if nspawn else 0
        return bool(self._leader) and self.try_run("test", "-S", "/run/systemd/private").returncode == 0

    def _booted(self) -> bool:
        return self.try_run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def power_off(self) -> None:
        assert self._container
        self.try_run("systemctl", "poweroff")
        try:
            self._container.wait(_PATIENCE)
        finally:
            self.pull_the_plug()

    def pull_the_plug(self) -> None:
        """As when the power fails."""
        if self._container:
            self._container.kill()
            self._container.wait()
            remains = Path(f"/proc/{self._leader or 'none'}")
            eventually(lambda: not remains.exists(), "the container does not end")
        self._container, self._leader = None, 0
        self._unplug()

    def _unplug(self) -> None:
        if self._network:
            for nic in ("public0", "cluster0"):
                self._network.run(["ip", "link", "del", nic], check=False)
            self._network.close()
            self._network = None

    def try_run(self, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command as the router's root."""
        enter = ["nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        environment = ["env", "--ignore-environment", f"PATH={_PATH}", "DEBIAN_FRONTEND=noninteractive"]
        return subprocess.run(
            [*enter, "--", *environment, *command], input=text, capture_output=True, text=True, check=False
        )

    def run(self, *command: str, text: str = "") -> str:
        """What it printed; an AssertionError if it failed."""
        done = self.try_run(*command, text=text)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--boot", "--output=cat", "--no-pager", "--unit", unit)


def _child(pid: int) -> int:
    """The first child of a process, 0 if it has none."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


@contextmanager
def between(root: Path) -> Iterator[tuple[Machine, Namespace, Namespace]]:
    """A router that is switched off, the client, and the cluster's side, which the caller is in."""
    cluster, client = Namespace(), Namespace()
    machine = Machine(root, cluster, client)
    try:
        with cluster.entered():
            for namespace in (cluster, client):
                namespace.ip("link set lo up")
            cluster.ip(f"route add local {SERVICES} dev lo", f"address add {NODE[0]}/32 dev lo")
            yield machine, client, cluster
    finally:
        machine.pull_the_plug()
        client.close()
        cluster.close()
