"""`make demo`: the daemon at work in a lab of three network namespaces, with real packets."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from nftsync.cli.preview import preview, read
from nftsync.config import Config
from nftsync.objects.address import Local
from nftsync.objects.ratelimit import RateLimit
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.settings import Settings
from tests.lab.lab import CLIENT, CLUSTER, PUBLIC, Flood, Lab, LabError, Probe
from tests.lab.lab import Protocol as ProbeProtocol

_EXAMPLES = Path(__file__).parents[2] / "examples"
_STARTED = 20.0  # seconds that the daemon may take until it is ready
_READY = "http://127.0.0.1:9469/readyz"  # the default address; the lab's router has a loopback of its own
_NOWHERE = "172.30.254.250"  # routed to the cluster, but no Service has it
_MBYTE = 1024 * 1024


class DemoError(Exception):
    """The demo can't run, or it showed a wrong result."""


@dataclass(frozen=True, slots=True)
class _Expectation:
    """A packet from the client, whether it should pass, and why."""

    probe: Probe
    passes: bool
    why: str


def demo(manifests: Sequence[Path] | None) -> None:
    """Print the passed and dropped packets, the measured rates and the ruleset.

    Raises DemoError.
    """
    paths = list(manifests) if manifests else [_EXAMPLES]
    config = Config()
    shown = preview(config, read(config, paths), local=Local(frozenset((*PUBLIC, *CLUSTER))))
    pinholes, settings = list(shown.pinholes.values()), shown.settings
    if settings is None or not settings.side.named:
        raise DemoError(f"{', '.join(map(str, paths))}: the demo needs an Nft resource with a public_nic")
    try:
        with Lab(public_nic=settings.side.named[0], gso=False) as lab, tempfile.TemporaryDirectory() as state:
            for address in {pinhole.key.split()[0] for pinhole in pinholes}:
                if not address.startswith("172.30.254."):
                    lab.route(address)
            with _daemon(lab, paths, Path(state)):
                _show(lab, pinholes, settings)
    except (LabError, OSError, subprocess.SubprocessError) as fault:
        raise DemoError(f"the lab could not be built (it needs root): {fault}") from fault


@contextmanager
def _daemon(lab: Lab, paths: Sequence[Path], state: Path) -> Iterator[None]:
    """The real daemon in the lab's router, until its ruleset is in the kernel."""
    configuration = state / "nftsync.toml"
    paths_of_its_own = f'[paths]\nstate = "{state}"\nlocal_chain = "{state}/local-chain.nft"\nruntime = "{state}"\n'
    configuration.write_text(paths_of_its_own, encoding="utf-8")
    command = [sys.executable, "-m", "nftsync", "run", "--config", str(configuration), "--manifests", *map(str, paths)]
    daemon = lab.router.popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + _STARTED
    while not lab.router.call(_ready):
        if daemon.poll() is not None:
            raise DemoError("the daemon ended at once: its message stands above")
        if time.monotonic() > deadline:
            raise DemoError(f"the daemon was not ready within {_STARTED:.0f} seconds")
        time.sleep(0.05)
    try:
        yield
    finally:
        daemon.terminate()
        daemon.wait()


def _ready() -> bool:
    try:
        with urllib.request.urlopen(_READY, timeout=1.0):
            return True
    except OSError:
        return False


def _show(lab: Lab, pinholes: Sequence[Pinhole], settings: Settings) -> None:
    expectations = list(_expectations(pinholes, settings))
    arrived = set(lab.deliver(expectation.probe for expectation in expectations))
    for title, passed in (("passed", True), ("dropped", False)):
        print(f"\n{title}")
        for expectation in expectations:
            if (expectation.probe in arrived) == passed:
                surprise = "" if expectation.passes == passed else "   ← this is wrong"
                print(f"  {_describe(expectation.probe):36} {expectation.why}{surprise}")
    astray = _show_rates(lab, pinholes, settings)
    print("\nruleset, as the router's kernel has it\n")
    print(lab.router.run(["nft", "list", "ruleset"]).stdout)
    wrong = [each for each in expectations if (each.probe in arrived) != each.passes]
    if wrong or astray:
        raise DemoError(f"{len(wrong)} packets and {astray} rates are wrong: see above")


def _expectations(pinholes: Sequence[Pinhole], settings: Settings) -> Iterator[_Expectation]:
    """A packet to every pinhole, packets just beside them, and some to the router itself."""
    open_keys = {pinhole.key for pinhole in pinholes}
    for pinhole in pinholes:
        passes = _admitted(pinhole) or not settings.enable_dropall
        yield _Expectation(_probe(pinhole.key), passes, f"Service {pinhole.service}")
        address, protocol, port = pinhole.key.split(" . ")
        other = "udp" if protocol == "tcp" else "tcp"
        for beside in (f"{address} . {protocol} . {int(port) % 65535 + 1}", f"{address} . {other} . {port}"):
            if beside not in open_keys:
                yield _Expectation(_probe(beside), not settings.enable_dropall, "no Service asks for it")
    yield _Expectation(_probe(f"{_NOWHERE} . tcp . 80"), not settings.enable_dropall, "no Service has this address")
    router = str(PUBLIC[0])
    for number, service, allowed in (
        (22, "ssh", settings.enable_ssh),
        (179, "bgp", settings.enable_bgp),
        (9469, "metrics", False),
    ):
        passes = allowed or not settings.enable_dropall
        yield _Expectation(Probe("tcp", router, number), passes, f"the router's own {service} port")
    yield _Expectation(Probe("icmp", router), True, "ping of the router")


def _probe(key: str) -> Probe:
    address, protocol, port = key.split(" . ")
    return Probe(cast(ProbeProtocol, protocol), address, int(port))


def _admitted(pinhole: Pinhole) -> bool:
    client = CLIENT[pinhole.version == 6]
    return pinhole.sources is None or any(ip_address(client) in network for network in pinhole.sources)


def _describe(probe: Probe) -> str:
    return f"{probe.protocol} {probe.destination}" + (f" port {probe.port}" if probe.port else "")


def _show_rates(lab: Lab, pinholes: Sequence[Pinhole], settings: Settings) -> int:
    """Print the rate of a flood after its bucket is empty.

    Returns the number of rates far from the limit.
    """
    astray = 0
    limited = [pinhole for pinhole in pinholes if pinhole.limit and settings.enable_rateshape and _admitted(pinhole)]
    if limited:
        print("\nrates that a flood reached")
    for pinhole in limited:
        probe = _probe(pinhole.key)
        flood = lab.flood(probe.destination, probe.port, protocol=probe.protocol, settle=1.0, seconds=2.0)
        reached = f"{flood.rate / _MBYTE:.2f} mbytes/second, {flood.arrived_packets / flood.seconds:.0f} packets/second"
        surprise = "" if _near(flood, pinhole.limit) else "   ← this is wrong"
        astray += bool(surprise)
        print(f"  {_describe(probe):36} limit {pinhole.limit}: {reached}{surprise}")
    return astray


def _near(flood: Flood, limit: RateLimit | None) -> bool:
    """Whether a rate is within a tenth of its limit.

    The lab never reaches a limit that is too high or takes too long to measure.
    """
    if limit is None or limit.per != "second":
        return True
    reached = flood.arrived_packets / flood.seconds if limit.packets else flood.rate
    return reached <= 1.1 * limit.rate
