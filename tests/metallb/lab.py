"""A cluster with MetalLB's own controller and speakers, and the router in front of it with FRR and nftsync.

    client ── enp1s0 router enp6s0 ─┬─ master: switch, API server, controller
                                    ├─ node 1: speaker, backends
                                    └─ node 2: speaker, backends

Each is a network namespace. A Service's address comes from the controller, its route from the
speakers over BGP, and its pinhole from nftsync. Nobody plays a part but kubelet and kube-proxy: Nodes,
Pods and endpoints are written by hand, and a node answers for every address of the pools.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

import yaml

from tests.apiserver.client import RefusedError, refusal_of
from tests.apiserver.harness import MANIFESTS, NAMESPACE, PATIENCE, ApiServer, eventually, programs_of
from tests.lab.frr import Frr, Reloader, configuration
from tests.lab.lab import ROUTER, open_namespace
from tests.lab.namespace import Namespace, TcpServer
from tests.programs.cache import build, metallb

Raw = dict[str, Any]

SERVICES = "/api/v1/namespaces/default/services"
METALLB_NAMESPACE = "metallb-system"
POOL4, POOL6 = "172.30.254.0/24", "2001:db8:254::/112"
PORTS = (80, 81)  # of the backends
ROUTER_AS, NODES_AS = 65551, 65552
INSIDE = ("172.30.250.1", "2001:db8:250::1")
_MASTER = "172.30.250.10"
_NODES = {"n1": ("172.30.250.11", "2001:db8:250::11"), "n2": ("172.30.250.12", "2001:db8:250::12")}
_CLIENT, _OUTSIDE = ("203.0.113.7", "2001:db8:203::7"), ("203.0.113.1", "2001:db8:203::1")
_FORWARDS = {**ROUTER, "ipv4/fib_multipath_hash_policy": 1}
_METALLB_OBJECTS = f"/apis/metallb.io/v1beta1/namespaces/{METALLB_NAMESPACE}"
CONFIG_MAP = "metallb-config"  # of 0.12, not the name that everybody expects
_TRIES = 0.5  # seconds for a connection that is expected to be open


@dataclass(frozen=True, slots=True)
class Kind:
    """Which MetalLB on which Kubernetes.

    frr: announce by FRR, both families; otherwise MetalLB's own BGP, IPv4 alone.
    dual: the cluster has addresses of both families.
    """

    metallb: str
    kubernetes: str
    frr: bool = False
    dual: bool = False

    def __str__(self) -> str:
        return f"{self.metallb} {'frr' if self.frr else 'native'}"


class MetalLBLab:
    """Everything that runs. Use it as a context manager; the calling thread is then in the master's namespace.

    Raises LabError, HarnessError and ProgramsError.
    """

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.programs = metallb(kind.metallb)
        self.daemon: subprocess.Popen[str] | None = None
        self.log = folder / "nftsync.log"
        self._running: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        build([self.programs])
        with ExitStack() as opened:
            self.client, self.router, self.master, *nodes = (open_namespace(opened) for _ in range(5))
            self.nodes = dict(zip(_NODES, nodes, strict=True))
            self._cable()
            for node in nodes:
                for port in PORTS:
                    opened.enter_context(TcpServer(node, port))
            opened.enter_context(self.master.entered())
            ranges = "10.96.0.0/16,fd00:10:96::/112" if self.kind.dual else "10.96.0.0/16"
            self.server = opened.enter_context(
                ApiServer([f"--service-cluster-ip-range={ranges}"], programs_of(self.kind.kubernetes), _MASTER)
            )
            self._bootstrap()
            crds = self.programs / "crds"
            self.server.apply(*sorted(crds.glob("*.yaml")) if crds.is_dir() else ())
            self._routing(opened)
            self._describe_nodes()
            self._peer()
            self.start("controller")
            for name in self.nodes:
                self.start(name)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    # --- MetalLB --------------------------------------------------------------------------------------------

    def start(self, program: str) -> None:
        """Start "controller", or the speaker of a node."""
        where = self.nodes.get(program, self.master)
        environment = {**os.environ, "KUBECONFIG": str(self.server.kubeconfig("admin"))}
        name = "speaker" if program in self.nodes else program
        old = self.kind.metallb.startswith("0.12.")
        dash = "-" if old else "--"
        options = [f"{dash}namespace={METALLB_NAMESPACE}"]
        if old:
            options += [f"-kubeconfig={environment['KUBECONFIG']}", f"-config={CONFIG_MAP}"]
        if name == "speaker":
            options.append(f"{dash}node-name={program}")
            if self.kind.metallb.startswith("0.15."):
                options.append(f"--pod-name=speaker-{program}")
            environment["METALLB_BGP_TYPE"] = "frr" if self.kind.frr else "native"
            if self.kind.frr:
                reloader = self._reloaders[program]
                environment["FRR_CONFIG_FILE"] = str(reloader.configuration)
                environment["FRR_RELOADER_PID_FILE"] = str(reloader.pid_file)
        elif not old:
            options += ["--webhook-mode=disabled", "--disable-cert-rotation"]
        with (self.folder / f"{program}.log").open("ab") as log:
            self._running[program] = where.popen(
                [str(self.programs / name), *options], stdout=log, stderr=log, env=environment
            )

    def kill(self, program: str) -> None:
        """End the controller or a speaker as a power cut would."""
        self._running[program].kill()
        self._running[program].wait()

    def pools(self, **pools: Sequence[str]) -> None:
        """These pools and no others, by name, each announced over BGP if its name does not begin with "silent"."""
        if self.kind.metallb.startswith("0.12."):
            self._apply(_config_map(pools))
            return
        kind = "AddressPool" if self.kind.metallb.startswith("0.13.") else "IPAddressPool"
        plural = f"{kind.lower()}s"
        for name in self._names(plural) - pools.keys():
            self.server.admin.delete(f"{_METALLB_OBJECTS}/{plural}/{name}")
        for name, addresses in pools.items():
            spec: Raw = {"addresses": list(addresses)}
            if kind == "AddressPool":
                spec["protocol"] = "layer2" if name.startswith("silent") else "bgp"
            self._apply(_object(kind, name, spec))
        if kind == "IPAddressPool":
            announced = [name for name in pools if not name.startswith("silent")]
            self._apply(_object("BGPAdvertisement", "pools", {"ipAddressPools": announced or ["none"]}))

    def _names(self, plural: str) -> set[str]:
        return {each["metadata"]["name"] for each in self.server.admin.get(f"{_METALLB_OBJECTS}/{plural}")["items"]}

    def _peer(self) -> None:
        """Let the speakers connect to the router. The ConfigMap of 0.12 says that beside its pools."""
        if not self.kind.metallb.startswith("0.12."):
            for address in INSIDE if self.kind.frr else INSIDE[:1]:
                spec = {"myASN": NODES_AS, "peerASN": ROUTER_AS, "peerAddress": address, "holdTime": "9s"}
                peer = _object("BGPPeer", f"router{len(address)}", spec)
                self._apply({**peer, "apiVersion": "metallb.io/v1beta2"})

    def _apply(self, document: Raw) -> None:
        document["metadata"]["namespace"] = METALLB_NAMESPACE
        self.server.apply_object(document)

    # --- the cluster ------------------------------------------------------------------------------------------

    def add(self, name: str, *ports: int, annotations: Raw | None = None, **spec: Any) -> None:
        """A Service of type LoadBalancer whose backends are on both nodes."""
        families = {"ipFamilyPolicy": "PreferDualStack"} if self.kind.frr else {}
        listed = [{"name": f"p{port}", "port": port} for port in ports or PORTS[:1]]
        service = {
            "metadata": {"name": name, "annotations": annotations or {}},
            "spec": {"type": "LoadBalancer", "ports": listed, **families, **spec},
        }
        self.server.admin.post(SERVICES, service)
        self._endpoints(name)

    def delete(self, name: str) -> None:
        self.server.admin.delete(f"{SERVICES}/{name}")

    def addresses(self, name: str) -> list[str]:
        """What MetalLB's controller has given to a Service."""
        status = self.server.admin.get(f"{SERVICES}/{name}")["status"]
        return [entry["ip"] for entry in status.get("loadBalancer", {}).get("ingress") or ()]

    def has_address(self, name: str, count: int | None = None) -> list[str]:
        """Wait for the addresses of a Service: one of each family that the lab announces, unless `count` says else."""
        wanted = count or (2 if self.kind.frr else 1)
        return eventually(
            lambda: found if len(found := self.addresses(name)) == wanted else None, f"{name} has {wanted} addresses"
        )

    # --- what is true at the router ---------------------------------------------------------------------------

    def announced(self, address: str) -> bool:
        """Whether both nodes announce an address to the router."""
        return self.routes(address) == {nodes[":" in address] for nodes in _NODES.values()}

    def routes(self, address: str) -> set[str]:
        return self.frr.routes(f"{address}/{ip_address(address).max_prefixlen}")

    def connects(self, address: str, port: int = 80) -> bool:
        """Whether the client gets back what it sends to an address."""
        try:
            with self.client.call(socket.create_connection, (address, port), _TRIES) as connection:
                connection.sendall(b"hello")
                return connection.recv(5) == b"hello"
        except OSError:
            return False

    def opens(self, *addresses: str, port: int = 80) -> None:
        """Wait until addresses are announced, and answer the client."""
        eventually(lambda: all(map(self.announced, addresses)), f"both nodes announce {addresses}")
        eventually(lambda: all(self.connects(each, port) for each in addresses), f"{addresses} open: {self.tail()}")

    def closes(self, *addresses: str, port: int = 80) -> None:
        """Wait until no packet reaches a node, whether a route is there or not."""
        keys = {f"{address} . tcp . {port}" for address in addresses}
        eventually(lambda: keys.isdisjoint(self.pinholes()), f"{addresses} close: {self.tail()}")
        assert not any(self.connects(each, port) for each in addresses)

    def withdrawn(self, *addresses: str) -> None:
        eventually(lambda: not any(map(self.routes, addresses)), f"{addresses} are withdrawn")

    def pinholes(self) -> set[str]:
        """What is open in the kernel: "address . protocol . port"."""
        shown = "".join(
            self.router.run(["nft", "list", "set", "inet", "nftsync", f"services{family}"], check=False).stdout
            for family in "46"
        )
        return set(re.findall(r"[0-9a-f.:]+ \. (?:tcp|udp|sctp) \. \d+", shown))

    def asked(self) -> set[str]:
        """What the statuses of all Services say should be open."""
        return {
            f"{entry['ip']} . {port.get('protocol', 'TCP').lower()} . {port['port']}"
            for service in self.server.admin.get(SERVICES)["items"]
            if service["spec"]["type"] == "LoadBalancer"
            for entry in service["status"].get("loadBalancer", {}).get("ingress") or ()
            for port in service["spec"]["ports"]
        }

    # --- nftsync ----------------------------------------------------------------------------------------------

    def run_nftsync(self, extra: str = "") -> None:
        """Start the daemon on the router, with the rights that the package's RBAC gives."""
        paths = "\n".join(
            f'{key} = "{self.folder}/{name}"'
            for key, name in (("state", "state"), ("local_chain", "local-chain.nft"), ("runtime", "run"))
        )
        self.config = self.folder / "nftsync.toml"
        self.config.write_text(f'kubeconfig = "{self.kubeconfig}"\n{extra}\n[paths]\n{paths}\n')
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "nftsync", "run", "--config", str(self.config)]
            self.daemon = self.router.popen(command, stdout=log, stderr=log)
        eventually(lambda: self.nftsync("status").returncode == 0, f"nftsync is ready: {self.tail()}")

    def stop_nftsync(self) -> None:
        """End the daemon, and forget its rules and its memory."""
        if self.daemon:
            self.daemon.send_signal(signal.SIGTERM)
            self.daemon.wait(PATIENCE)
            self.daemon = None
            self.nftsync("flush")

    def nftsync(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command with the daemon's configuration."""
        command = [sys.executable, "-m", "nftsync", *arguments, "--config", str(self.config)]
        return self.router.run(command, check=False)

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8")[-2000:] if self.log.exists() else ""

    # --- how it is done ---------------------------------------------------------------------------------------

    def _cable(self) -> None:
        for namespace in (self.router, *self.nodes.values()):
            namespace.sysctl(_FORWARDS)
        self.master.ip("link add br0 type bridge", "link set br0 up", f"address add {_MASTER}/24 dev br0")
        _plug(self.client, "eth0", self.router, "enp1s0")
        for name, namespace, nic in (
            ("router", self.router, "enp6s0"),
            *((name, namespace, "eth0") for name, namespace in self.nodes.items()),
        ):
            _plug(namespace, nic, self.master, f"to-{name}")
            self.master.ip(f"link set to-{name} master br0")
        _address(self.client, "eth0", _CLIENT, _OUTSIDE)
        _address(self.router, "enp1s0", _OUTSIDE)
        _address(self.router, "enp6s0", INSIDE)
        self.master.ip(f"route add default via {INSIDE[0]}")
        for name, namespace in self.nodes.items():
            _address(namespace, "eth0", _NODES[name], INSIDE)
            # What kube-proxy does: the pools' addresses are answered here.
            namespace.ip(*(f"route add local {pool} dev lo" for pool in (POOL4, POOL6)))

    def _bootstrap(self) -> None:
        """Set the cluster up as an administrator does. Only an old MetalLB needs a word in the Nft first."""
        self.kubeconfig = self.folder / "kubeconfig"
        if self.kind.metallb.startswith("0.12."):
            self.server.apply(MANIFESTS / "crd.yaml")
            self.server.admin.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
            nft: Raw = yaml.safe_load((MANIFESTS / "nft.yaml").read_text(encoding="utf-8"))
            nft["spec"]["metallb-configmap"] = CONFIG_MAP
            self.server.apply_object(nft)
        command = ["bootstrap", "--kubeconfig", str(self.server.kubeconfig("admin")), "--output", str(self.kubeconfig)]
        with self.server.token_controller():
            self.master.run([sys.executable, "-m", "nftsync", *command])

    def _routing(self, opened: ExitStack) -> None:
        """FRR at the router, and where MetalLB wants it, on the nodes."""
        peers = [address for addresses in _NODES.values() for address in addresses]
        self.frr = Frr(self.router, self.folder / "frr", configuration(ROUTER_AS, INSIDE[0], peers, NODES_AS))
        opened.callback(self.frr.close)
        self._reloaders: dict[str, Reloader] = {}
        if self.kind.frr:
            for name, namespace in self.nodes.items():
                frr = Frr(namespace, self.folder / name, "frr defaults traditional\n")
                opened.callback(frr.close)
                self._reloaders[name] = Reloader(frr, self.folder / name)
                opened.callback(self._reloaders[name].close)

    def _describe_nodes(self) -> None:
        admin, now = self.server.admin, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with suppress(RefusedError):
            admin.post("/api/v1/namespaces", {"metadata": {"name": METALLB_NAMESPACE}})
        for name, addresses in _NODES.items():
            admin.post("/api/v1/nodes", {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})
            ready = {
                "type": "Ready",
                "status": "True",
                "reason": "Lab",
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            }
            listed = [{"type": "InternalIP", "address": address} for address in addresses]
            admin.patch(f"/api/v1/nodes/{name}/status", {"status": {"addresses": listed, "conditions": [ready]}})
            spec = {"nodeName": name, "hostNetwork": True, "containers": [{"name": "speaker", "image": "speaker"}]}
            pod = {"metadata": {"name": f"speaker-{name}"}, "spec": spec}
            admin.post(f"/api/v1/namespaces/{METALLB_NAMESPACE}/pods", pod)

    def _endpoints(self, name: str) -> None:
        """As the endpoint controllers would write them; an old MetalLB on an old Kubernetes reads Endpoints."""
        admin = self.server.admin
        if refusal_of(lambda: admin.get("/apis/discovery.k8s.io/v1")) is None:
            path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
            endpoints: Raw = {
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "ports": [{"name": "p80", "port": 80, "protocol": "TCP"}],
                "endpoints": [
                    {"addresses": addresses[:1], "conditions": {"ready": True}, "nodeName": node}
                    for node, addresses in _NODES.items()
                ],
            }
        else:
            path = "/api/v1/namespaces/default/endpoints"
            placed = [{"ip": addresses[0], "nodeName": node} for node, addresses in _NODES.items()]
            endpoints = {
                "metadata": {"name": name},
                "subsets": [{"addresses": placed, "ports": [{"name": "p80", "port": 80}]}],
            }
        if refusal_of(lambda: admin.post(path, endpoints)) == 409:
            admin.patch(f"{path}/{name}", endpoints)


def _object(kind: str, name: str, spec: Raw) -> Raw:
    return {"apiVersion": "metallb.io/v1beta1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _config_map(pools: Mapping[str, Sequence[str]]) -> Raw:
    listed = [
        {"name": name, "protocol": "layer2" if name.startswith("silent") else "bgp", "addresses": list(addresses)}
        for name, addresses in pools.items()
    ]
    peer = {"peer-address": INSIDE[0], "peer-asn": ROUTER_AS, "my-asn": NODES_AS, "hold-time": "9s"}
    text = yaml.safe_dump({"peers": [peer], "address-pools": listed})
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG_MAP}, "data": {"config": text}}


def _plug(here: Namespace, nic: str, there: Namespace, other: str) -> None:
    here.ip(f"link add {nic} type veth peer name {other} netns {there.path}", f"link set {nic} up")
    there.ip(f"link set {other} up")


def _address(namespace: Namespace, nic: str, own: Sequence[str], gateway: Sequence[str] = ()) -> None:
    namespace.ip(
        f"address add {own[0]}/24 dev {nic}",
        f"address add {own[1]}/64 dev {nic} nodad",
        *(f"route add default via {each}" for each in gateway),
    )
