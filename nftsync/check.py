"""`nftsync check`: whether this router is ready, one line for each thing, with what to do where it is not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nftsync import config
from nftsync.api import Api, ApiError
from nftsync.config import Config, ConfigError
from nftsync.links import Links
from nftsync.localchain import LocalChainError, parse_local_chain
from nftsync.nftresource import NftSpec, parse_nft
from nftsync.objects import Malformed
from nftsync.ruleset import Ruleset, Settings, render, tables
from nftsync.watch import nfts

# What the daemon can't do without, as (group, resource, verbs).
_PERMISSIONS = (
    ("", "services", ("list", "watch")),
    ("nft.acnodal.com", "nfts", ("list", "watch")),
)
_FORWARDING = {"IPv4": Path("/proc/sys/net/ipv4/ip_forward"), "IPv6": Path("/proc/sys/net/ipv6/conf/all/forwarding")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check: about what, whether it is as it should be, and what was found or is to be done."""

    subject: str
    ok: bool
    message: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.subject}: {self.message}"


def findings(path: Path | None) -> Iterator[Finding]:
    """Look at everything the daemon needs, in the order in which it needs it. Nothing is changed."""
    try:
        chosen = config.load(path)
    except ConfigError as fault:
        yield Finding("configuration", False, str(fault))
        return
    given = path or config.DEFAULT_PATH
    yield Finding("configuration", True, str(given) if given.exists() else f"{given} is not there, the defaults hold")
    yield _local_chain(chosen)
    yield _state(chosen)
    yield _nft()
    yield from _forwarding()
    spec = None
    api = Api(chosen.kubeconfig)
    try:
        api.connect()
        version = _answer(api, "GET", "/version")
        yield Finding("kubeconfig", True, f"{chosen.kubeconfig} reaches an API server {version.get('gitVersion', '')}".rstrip())
        yield from _permissions(api)
        spec, finding = _resource(api, chosen)
        yield finding
    except ApiError as fault:
        yield Finding("kubeconfig", False, str(fault))
    finally:
        api.close()
    yield _nic(chosen, spec)


def _local_chain(chosen: Config) -> Finding:
    subject = "local chain"
    try:
        parse_local_chain(chosen.local_chain.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Finding(subject, True, f"{chosen.local_chain} is not there, the chain is empty")
    except (OSError, UnicodeDecodeError, LocalChainError) as fault:
        return Finding(subject, False, f"{chosen.local_chain}: {fault}")
    return Finding(subject, True, str(chosen.local_chain))


def _state(chosen: Config) -> Finding:
    folder = next(each for each in (chosen.state, *chosen.state.parents) if each.exists())
    if folder.is_dir() and os.access(folder, os.W_OK):
        return Finding("state", True, str(chosen.state))
    return Finding("state", False, f"{chosen.state} can't be written: make it a folder that the daemon's user owns")


def _nft() -> Finding:
    """Load everything the rulesets use into a network namespace of its own, where it can harm nothing."""
    settings = Settings(public_nic="lo", enable_bgp=True, enable_rateshape=True, device="lo")
    try:
        version = _command("nft", "--version").stdout.strip()
        loaded = _command("unshare", "--net", "nft", "-f", "-", text=render(Ruleset(tables(settings))))
    except OSError as fault:
        return Finding("nft", False, f"{fault.filename}: {fault.strerror}; install the packages nftables and util-linux")
    if loaded.returncode:
        reason = (loaded.stderr.strip() or "no reason given").splitlines()[0]
        return Finding("nft", False, f"{version}: {reason}; run this as root, with kernel 5.10 or newer")
    return Finding("nft", True, f"{version} and this kernel take the ruleset")


def _command(*argv: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=False)  # noqa: S603  # our own words


def _forwarding() -> Iterator[Finding]:
    for family, switch in _FORWARDING.items():
        try:
            on = switch.read_text(encoding="ascii").strip() != "0"
        except OSError:
            continue  # a kernel without this family forwards none of it
        yield Finding(f"{family} forwarding", on, "on" if on else f"off: this machine routes nothing; write 1 to {switch}")


def _permissions(api: Api) -> Iterator[Finding]:
    for group, resource, verbs in _PERMISSIONS:
        missing = [verb for verb in verbs if not _allowed(api, group, resource, verb)]
        if missing:
            yield Finding("RBAC", False, f"may not {' or '.join(missing)} {resource}: apply packaging/kubernetes/rbac.yaml")
        else:
            yield Finding("RBAC", True, f"may {' and '.join(verbs)} {resource}")


def _allowed(api: Api, group: str, resource: str, verb: str) -> bool:
    attributes = {"group": group, "resource": resource, "verb": verb}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    status = _answer(api, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review).get("status")
    return isinstance(status, dict) and status.get("allowed") is True


def _answer(api: Api, method: str, path: str, **how: Any) -> dict[str, Any]:
    """A JSON object. Raises ApiError."""
    answer = api.request(method, path, **how)
    if not isinstance(answer, dict):
        raise ApiError(f"{method} {path}: the answer is not a JSON object: this is no Kubernetes API server")
    return answer


def _resource(api: Api, chosen: Config) -> tuple[NftSpec | None, Finding]:
    resource = nfts(chosen.nft.namespace, chosen.nft.name)
    subject = f"Nft {chosen.nft}"
    try:
        listed = _answer(api, "GET", resource.path, query=dict(resource.query))
    except ApiError as fault:
        if fault.status != 404:
            raise
        return None, Finding(subject, False, "the API server does not know the kind: apply packaging/kubernetes/crd.yaml")
    items = listed.get("items")
    if not isinstance(items, list) or not items:
        return None, Finding(subject, False, "there is no such resource: apply packaging/kubernetes/nft.yaml with your public_nic")
    try:
        nft = parse_nft(items[0], None)
    except Malformed as fault:
        return None, Finding(subject, False, str(fault))
    if nft.spec is None:
        return None, Finding(subject, False, "; ".join(rejection.message for rejection in nft.rejections))
    return nft.spec, Finding(subject, True, f"public_nic {nft.spec.public_nic}")


def _nic(chosen: Config, spec: NftSpec | None) -> Finding:
    subject = "public NIC"
    name = chosen.public_nic or (spec.public_nic if spec else None)
    if name is None:
        return Finding(subject, False, "not known: neither the Nft resource nor [overrides] names it")
    network = Links()
    try:
        present = network.index(name) is not None
    finally:
        network.close()
    if present:
        return Finding(subject, True, name)
    return Finding(subject, False, f"this machine has no interface {name}: mend public_nic in the Nft resource, or override it")

