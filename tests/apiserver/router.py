"""A lab's router with an API server beside the daemon, judged by packets.

Server, daemon and packets share the router's network namespace, so nothing of this touches the
machine's own network. The daemon has the shipped RBAC's rights and no others.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.apiserver.harness import MANIFESTS, NFTS, PATIENCE, ApiServer, Programs, eventually
from tests.lab.lab import Lab

SERVICES = "/api/v1/namespaces/default/services"
METRICS = "http://127.0.0.1:9469"
NFT = {"apiVersion": "nft.acnodal.com/v1alpha1", "kind": "Nft", "metadata": {"name": "nft"}}
SPEC = {"public_nic": "enp1s0"}


class Router:
    """A lab's router with an API server beside the daemon."""

    def __init__(self, lab: Lab, server: ApiServer, folder: Path) -> None:
        self.lab = lab
        self.server = server
        self.token = folder / "token"
        self.token.write_text(server.issue_token() + "\n", encoding="ascii")
        self.configuration = folder / "nftsync.toml"
        self.configuration.write_text(
            f'kubeconfig = "{server.kubeconfig(token_file=self.token)}"\n'
            f'[paths]\nstate = "{folder}/state"\nlocal_chain = "{folder}/local-chain.nft"\nruntime = "{folder}/run"\n',
            encoding="utf-8",
        )
        self.log = folder / "log"
        self.daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.launch()
        eventually(lambda: self.page("/readyz") == "ok\n", f"the daemon is not ready:\n{self.log.read_text()}")

    def launch(self) -> None:
        """Start it, ready or not."""
        command = [sys.executable, "-m", "nftsync", "run", "--config", str(self.configuration)]
        with self.log.open("wb") as log:
            self.daemon = subprocess.Popen(command, stderr=log)

    def stop(self) -> None:
        if self.daemon:
            self.daemon.send_signal(signal.SIGCONT)
            self.daemon.terminate()
            self.daemon.wait(PATIENCE)
            self.daemon = None

    def page(self, path: str) -> str:
        try:
            with urllib.request.urlopen(METRICS + path, timeout=20) as answer:
                content: bytes = answer.read()
        except OSError:
            return ""
        return content.decode()

    def metric(self, line: str) -> float:
        found = re.search(rf"^{re.escape(line)} (\S+)$", self.page("/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command of nftsync's, with the daemon's configuration."""
        command = [sys.executable, "-m", "nftsync", *arguments, "--config", str(self.configuration)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def add(self, name: str, address: str, port: int = 80, **spec: Any) -> None:
        """A Service of type LoadBalancer, with the address that MetalLB would give it."""
        service = {"metadata": {"name": name}, "spec": {"type": "LoadBalancer", "ports": [{"port": port}], **spec}}
        self.server.admin.post(SERVICES, service)
        self.server.admin.patch(
            f"{SERVICES}/{name}/status", {"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}
        )

    def opens(self, address: str, port: int = 80) -> None:
        eventually(lambda: self.lab.arrives("tcp", address, port), f"{address} port {port} does not open")

    def closes(self, address: str, port: int = 80) -> None:
        eventually(lambda: not self.lab.arrives("tcp", address, port), f"{address} port {port} does not close")


@contextmanager
def running_cluster(programs: Programs) -> Iterator[tuple[Lab, ApiServer]]:
    """A lab, and in its router's namespace an API server with the shipped CRD and RBAC.

    The caller is in that namespace, too.
    """
    with Lab(public_nic="enp1s0") as lab, lab.router.entered(), ApiServer(programs=programs) as server:
        server.apply(MANIFESTS / "crd.yaml", MANIFESTS / "rbac.yaml")
        yield lab, server


@contextmanager
def fresh_router(lab: Lab, server: ApiServer, folder: Path) -> Iterator[Router]:
    """A router with a cluster that has an Nft resource and no Services; its tables are gone afterwards."""
    for service in server.admin.get(SERVICES)["items"]:
        if service["metadata"]["name"] != "kubernetes":
            server.admin.delete(f"{SERVICES}/{service['metadata']['name']}")
    if server.admin.get(NFTS)["items"]:
        server.admin.delete(f"{NFTS}/nft")
    server.admin.post(NFTS, {**NFT, "spec": SPEC})
    running = Router(lab, server, folder)
    try:
        yield running
    finally:
        running.stop()
        flushed = running.run("flush")
        assert flushed.returncode == 0, flushed.stderr
