"""`nftsync check`: test whether this router is ready. Each line has a result and a remedy."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from nftsync import config
from nftsync.cli.pools import known_of_cluster, nft_of_cluster
from nftsync.cluster.api import Api
from nftsync.cluster.backoff import ApiError
from nftsync.cluster.kubeconfig import allowed
from nftsync.config import Config, ConfigError, PoolMode
from nftsync.kernel.interfaces import LinkError, Links
from nftsync.objects.names import ADVERTISEMENT, CONFIG_MAP, KINDS, LEGACY, MEND, NFT, PEER, POOL, Malformed, quote
from nftsync.objects.nft import METALLB_NAMESPACE, NftSpec
from nftsync.policy.guard import Guard
from nftsync.ruleset.localchain import LocalChainError, parse_local_chain
from nftsync.ruleset.tables import Ruleset, Settings, tables
from nftsync.ruleset.text import render

# The rights that the daemon needs.
_PERMISSIONS = tuple({"group": kind.group, "resource": kind.plural} for kind in KINDS.values() if not kind.optional)
# The rights for reports to the cluster, each with its verbs.
_REPORTS = (
    ({"group": NFT.group, "resource": NFT.plural, "subresource": "status"}, ("patch",)),
    ({"group": "events.k8s.io", "resource": "events"}, ("create", "patch")),
)
# The rights for reading the cluster's address pools.
_METALLB = (
    *({"group": kind.group, "resource": kind.plural} for kind in (POOL, ADVERTISEMENT, PEER)),
    {"group": LEGACY.group, "resource": LEGACY.plural, "name": CONFIG_MAP},
)
_READ = ("list", "watch")
_FORWARDING = {"IPv4": Path("/proc/sys/net/ipv4/ip_forward"), "IPv6": Path("/proc/sys/net/ipv6/conf/all/forwarding")}


class Level(StrEnum):
    """The severity of a finding. WARN: the router works, but you should know this."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


OK, WARN, FAIL = Level


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check: the subject, the severity, and the fact or the remedy."""

    subject: str
    level: Level
    message: str

    def __str__(self) -> str:
        return f"{self.level:4}  {self.subject}: {self.message}"


def findings(path: Path | None) -> Iterator[Finding]:
    """Test each need of the daemon, in the daemon's own order. This changes nothing."""
    try:
        chosen = config.load(path)
    except ConfigError as fault:
        yield Finding("configuration", FAIL, str(fault))
        return
    given = path or config.DEFAULT_PATH
    yield Finding("configuration", OK, str(given) if given.exists() else f"{given} is not there, the defaults apply")
    yield _local_chain(chosen)
    yield _state(chosen)
    yield _nft()
    yield from _forwarding()
    spec = None
    api = Api(chosen.kubeconfig, allowed=allowed(unsafe=chosen.unsafe_kubeconfig))
    try:
        api.connect()
        version = _answer(api, "GET", "/version")
        yield Finding("kubeconfig", OK, f"{chosen.kubeconfig} reaches an API server {version.get('gitVersion', '')}".rstrip())
        yield from _permissions(api)
        spec, finding = _resource(api, chosen)
        yield finding
        yield from _pools(api, chosen, spec)
    except ApiError as fault:
        yield Finding("kubeconfig", FAIL, str(fault))
    finally:
        api.close()
    yield _nic(chosen, spec)


def _local_chain(chosen: Config) -> Finding:
    subject = "local chain"
    try:
        parse_local_chain(chosen.local_chain.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Finding(subject, OK, f"{chosen.local_chain} is not there, the chain is empty")
    except (OSError, UnicodeDecodeError, LocalChainError) as fault:
        return Finding(subject, FAIL, f"{chosen.local_chain}: {fault}")
    return Finding(subject, OK, str(chosen.local_chain))


def _state(chosen: Config) -> Finding:
    folder = next(each for each in (chosen.state, *chosen.state.parents) if each.exists())
    if folder.is_dir() and os.access(folder, os.W_OK):
        return Finding("state", OK, str(chosen.state))
    return Finding("state", FAIL, f"cannot write {chosen.state}: make it a folder that the daemon's user owns")


def _nft() -> Finding:
    """Load a ruleset with every feature into a new network namespace, where it can do no harm."""
    settings = Settings(public_nic="lo", enable_bgp=True, enable_rateshape=True)
    try:
        version = _command("nft", "--version").stdout.strip()
        loaded = _command("unshare", "--net", "nft", "-f", "-", text=render(Ruleset(tables(settings))))
    except OSError as fault:
        return Finding("nft", FAIL, f"{fault.filename}: {fault.strerror}; install the packages nftables and util-linux")
    if loaded.returncode:
        reason = (loaded.stderr.strip() or "no reason given").splitlines()[0]
        return Finding("nft", FAIL, f"{version}: {reason}; run this as root, with kernel 5.10 or newer")
    return Finding("nft", OK, f"{version} and this kernel accept the ruleset")


def _command(*argv: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=False)  # noqa: S603  # our own words


def _forwarding() -> Iterator[Finding]:
    for family, switch in _FORWARDING.items():
        try:
            on = switch.read_text(encoding="ascii").strip() != "0"
        except OSError:
            continue  # this kernel does not have the family
        message = "on" if on else f"off: this machine does not route; write 1 to {switch}"
        yield Finding(f"{family} forwarding", OK if on else FAIL, message)


def _permissions(api: Api) -> Iterator[Finding]:
    for attributes in _PERMISSIONS:
        yield _right(api, attributes, _READ, FAIL)
    for attributes, verbs in _REPORTS:
        yield _right(api, attributes, verbs, WARN)


def _right(api: Api, attributes: dict[str, str], verbs: tuple[str, ...], otherwise: Level) -> Finding:
    """Test some verbs on a resource. otherwise: the level if a right is missing."""
    what = "/".join(attributes[key] for key in ("resource", "subresource") if key in attributes)
    if missing := _missing(api, attributes, verbs):
        return Finding("RBAC", otherwise, f"may not {' or '.join(missing)} {what}: {MEND}")
    return Finding("RBAC", OK, f"may {' and '.join(verbs)} {what}")


def _missing(api: Api, attributes: dict[str, str], verbs: tuple[str, ...] = _READ) -> list[str]:
    """The verbs that the router may not use."""
    return [verb for verb in verbs if not _allowed(api, {**attributes, "verb": verb})]


def _allowed(api: Api, attributes: dict[str, str]) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    status = _answer(api, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review).get("status")
    return isinstance(status, dict) and status.get("allowed") is True


def _pools(api: Api, chosen: Config, spec: NftSpec | None) -> Iterator[Finding]:
    """Test whether MetalLB's pools limit the legal addresses."""
    subject = "MetalLB's pools"
    pool_mode = chosen.address_policy.pool_mode
    if pool_mode is PoolMode.IGNORED:
        yield Finding(subject, WARN, f'addresses are unguarded: pools = "{pool_mode}"; a Service may have any address')
        return
    namespace = spec.metallb_namespace if spec else METALLB_NAMESPACE
    for attributes in _METALLB:
        if missing := _missing(api, {**attributes, "namespace": namespace}):
            what = f"may not {' or '.join(missing)} {attributes['resource']} in {namespace}"
            mend = MEND if namespace == METALLB_NAMESPACE else f"give it the Role there that it has in {METALLB_NAMESPACE}"
            yield Finding("RBAC", WARN, f"{what}: {mend}")
    known, rejections = known_of_cluster(api, chosen, namespace)
    for rejection in rejections:
        yield Finding(subject, WARN, str(rejection))
    guard = Guard.of(chosen.address_policy, known)
    if not guard.guarded:
        message = f'addresses are unguarded: {namespace} has no MetalLB configuration; pools = "required" would open nothing'
        yield Finding(subject, WARN, message)
    elif not guard.pools:
        yield Finding(subject, WARN, f"no address is legal: no pool in {namespace} counts")
    else:
        names = ", ".join(quote(pool.name)[1:-1] for pool in guard.pools[:5])
        yield Finding(subject, OK, f"{len(guard.pools)} in {namespace}: {names}")


def _answer(api: Api, method: str, path: str, **how: Any) -> dict[str, Any]:
    """The JSON object that the server answers. Raises ApiError."""
    answer = api.request(method, path, **how)
    if not isinstance(answer, dict):
        raise ApiError(f"{method} {path}: the answer is not a JSON object: this is not a Kubernetes API server")
    return answer


def _resource(api: Api, chosen: Config) -> tuple[NftSpec | None, Finding]:
    subject = f"Nft {chosen.nft}"
    try:
        nft = nft_of_cluster(api, chosen)
    except ApiError as fault:
        if fault.status != 404:
            raise
        return None, Finding(subject, FAIL, f"the API server does not know the kind: {MEND}")
    except Malformed as fault:
        return None, Finding(subject, FAIL, str(fault))
    if nft is None:
        return None, Finding(subject, FAIL, "there is no such resource; see the example of nftsync bootstrap --print")
    if nft.spec is None:
        return None, Finding(subject, FAIL, "; ".join(rejection.message for rejection in nft.rejections))
    return nft.spec, Finding(subject, OK, f"public_nic {nft.spec.public_nic}")


def _nic(chosen: Config, spec: NftSpec | None) -> Finding:
    subject = "public NIC"
    name = chosen.public_nic or (spec.public_nic if spec else None)
    if name is None:
        return Finding(subject, FAIL, "unknown: set public_nic in the Nft resource or in [overrides]")
    network = Links()
    try:
        present = network.index(name) is not None
    except LinkError as fault:
        return Finding(subject, FAIL, str(fault))
    finally:
        network.close()
    if present:
        return Finding(subject, OK, name)
    return Finding(subject, FAIL, f"this machine has no interface {name}: correct public_nic in the Nft resource, or override it")
