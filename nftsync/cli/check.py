"""`nftsync check`: test whether this router is ready. Each line has a result and a remedy."""

import os
import subprocess
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from nftsync.cli.applied import not_kept
from nftsync.cli.preview import KnownOfDaemon, known_of_cluster, local_chain, nft_of_cluster, preview, read
from nftsync.cli.trial import refusal
from nftsync.cluster.api import Api
from nftsync.cluster.backoff import ApiError
from nftsync.cluster.kubeconfig import allowed
from nftsync.cluster.manifests import ManifestError
from nftsync.config import DEFAULT_PATH, Config, ConfigError, PoolMode, load
from nftsync.files.localchainfile import read_local_chain
from nftsync.kernel import others, routes
from nftsync.kernel.interfaces import local_now
from nftsync.kernel.links import read_links
from nftsync.kernel.netlink import DumpError
from nftsync.objects.address import AddressSet, Network, Range
from nftsync.objects.metallb import MetalLBConfig
from nftsync.objects.names import (
    CONFIG_MAP,
    FORMER_POOL,
    KINDS,
    LEGACY,
    MEND,
    METALLB,
    NFT,
    POOL,
    SERVICES,
    Malformed,
    NftsyncError,
    Rejection,
    Resource,
    quote,
)
from nftsync.objects.nft import METALLB_NAMESPACE, NftSpec, Nics
from nftsync.policy.guard import Guard
from nftsync.policy.public import PublicSide, public_side
from nftsync.report.others import HOW_SEEN
from nftsync.ruleset.established import accepting_rule
from nftsync.ruleset.model import Ruleset
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import tables
from nftsync.ruleset.text import render


class Level(StrEnum):
    """The severity of a finding. WARN: the router works, but you should know this."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


OK, WARN, FAIL = Level

_READ = ("list", "watch")
# The rights of the daemon: its lists, and its reports to the cluster. Each with the level of a missing right.
_RIGHTS = (
    *(({"group": kind.group, "resource": kind.plural}, _READ, FAIL) for kind in KINDS.values() if not kind.optional),
    ({"group": NFT.group, "resource": NFT.plural, "subresource": "status"}, ("patch",), WARN),
    ({"group": "events.k8s.io", "resource": "events"}, ("create", "patch"), WARN),
)
_OTHERS = 10  # findings about chains of other programs, or about fields of one kind
_FORWARDING = {"IPv4": Path("/proc/sys/net/ipv4/ip_forward"), "IPv6": Path("/proc/sys/net/ipv6/conf/all/forwarding")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check: the subject, the severity, and the fact or the remedy."""

    subject: str
    level: Level
    message: str

    def __str__(self) -> str:
        return f"{self.level:4}  {self.subject}: {self.message}"


def findings(path: Path | None, manifests: Sequence[Path] = ()) -> Iterator[Finding]:
    """Test each need of the daemon, in the daemon's own order. This changes nothing.

    manifests: files to test in place of a cluster.
    """
    try:
        config = load(path)
    except ConfigError as error:
        yield Finding("configuration", FAIL, str(error))
        return
    file = path or DEFAULT_PATH
    yield Finding("configuration", OK, str(file) if file.exists() else f"{file} is not there, the defaults apply")
    yield _local_chain(config.local_chain)
    yield _state(config.state)
    yield _nft()
    yield from _other_tables()
    yield from _forwarding()
    spec = legal = None
    if manifests:
        spec, legal = yield from _files(config, manifests)
        yield from _nics(config.nics.over(spec.nics if spec else Nics()), legal)
        return
    try:
        with closing(Api(config.kubeconfig, allowed=allowed(unsafe=config.unsafe_kubeconfig))) as api:
            version = _answer(api, "GET", "/version").get("gitVersion", "")
            yield Finding("kubeconfig", OK, f"{config.kubeconfig} reaches an API server {version}".rstrip())
            yield from _rights(api)
            spec, finding = _resource(api, config)
            yield finding
            for resource in (NFT.watched(config.nft.namespace, config.nft.name), SERVICES):
                yield from _not_kept(api, resource)
            legal = yield from _pools(api, config, spec)
            if config.stateless:
                yield _stateless(legal, local_now().networks)
    except ApiError as error:
        yield Finding("kubeconfig", FAIL, str(error))
        spec, legal = yield from _of_daemon(config, error)
    yield from _nics(config.nics.over(spec.nics if spec else Nics()), legal)


def _local_chain(path: Path) -> Finding:
    chain, subject = read_local_chain(path), "local chain"
    try:
        error = chain.error or refusal(chain)
    except NftsyncError as reason:
        return Finding(subject, WARN, f"{path}: nft could not try it: {reason}")
    if error:
        return Finding(subject, FAIL, f"{path}: {error}")
    if (rule := accepting_rule(chain.body or "")) is not None:
        place = f"{path}, line {chain.line + rule.line}"
        accepts = f"{rule.text} also accepts packets of existing connections to ports that nftsync has closed"
        return Finding(subject, WARN, f"{place}: {accepts}; remove it: nftsync accepts established packets itself")
    return Finding(subject, OK, f"nft accepts {path}" if path.exists() else f"{path} is not there, the chain is empty")


def _state(folder: Path) -> Finding:
    present = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if present.is_dir() and os.access(present, os.W_OK):
        return Finding("state", OK, str(folder))
    return Finding("state", FAIL, f"cannot write {folder}: make it a folder that the daemon's user owns")


def _nft() -> Finding:
    """Load a ruleset with every feature into a new network namespace, where it can do no harm."""
    side = PublicSide.unseen(Nics(("lo",)))
    settings = Settings(side, enable_bgp=True, enable_rateshape=True, stateless=True)
    try:
        version = _command("nft", "--version").stdout.strip()
        loaded = _command("unshare", "--net", "nft", "-f", "-", text=render(Ruleset(tables(settings))))
    except OSError as error:
        return Finding("nft", FAIL, f"{error.filename}: {error.strerror}; install the packages nftables and util-linux")
    if loaded.returncode:
        reason = (loaded.stderr.strip() or "no reason given").splitlines()[0]
        return Finding("nft", FAIL, f"{version}: {reason}; run this as root, with kernel 5.10 or newer")
    return Finding("nft", OK, f"{version} and this kernel accept the ruleset")


def _other_tables() -> Iterator[Finding]:
    subject, warnings = "other tables", list(others.read().warnings())
    yield from (Finding(subject, WARN, warning) for warning in warnings[:_OTHERS])
    if len(warnings) > _OTHERS:
        yield Finding(subject, WARN, f"… and {len(warnings) - _OTHERS} more chains: see `nft list chains`")
    yield Finding(subject, WARN, HOW_SEEN) if warnings else Finding(subject, OK, "no other chain drops packets")


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


def _rights(api: Api) -> Iterator[Finding]:
    for attributes, verbs, otherwise in _RIGHTS:
        what = "/".join(attributes[key] for key in ("resource", "subresource") if key in attributes)
        if missing := _missing(api, attributes, verbs):
            yield Finding("RBAC", otherwise, f"may not {' or '.join(missing)} {what}: {MEND}")
        else:
            yield Finding("RBAC", OK, f"may {' and '.join(verbs)} {what}")


def _missing(api: Api, attributes: dict[str, str], verbs: tuple[str, ...] = _READ) -> list[str]:
    return [verb for verb in verbs if not _allowed(api, {**attributes, "verb": verb})]


def _allowed(api: Api, attributes: dict[str, str]) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    status = _answer(api, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).get("status")
    return isinstance(status, dict) and status.get("allowed") is True


def _answer(api: Api, method: str, path: str, body: object = None) -> dict[str, Any]:
    """The JSON object that the server answers. Raises ApiError."""
    answer = api.request(method, path, body=body)
    if not isinstance(answer, dict):
        raise ApiError(f"{method} {path}: the answer is not a JSON object: this is not a Kubernetes API server")
    return answer


def _resource(api: Api, config: Config) -> tuple[NftSpec | None, Finding]:
    subject = f"Nft {config.nft}"
    try:
        nft = nft_of_cluster(api, config)
        if nft is None:
            problem = "there is no such resource; see the example of nftsync bootstrap --print"
        elif nft.spec is None:
            problem = "; ".join(rejection.message for rejection in nft.rejections)
        else:
            return nft.spec, Finding(subject, OK, f"public_nic {nft.spec.nics}")
    except Malformed as error:
        problem = str(error)
    except ApiError as error:
        if error.status != 404:
            raise
        problem = f"the API server does not know the kind: {MEND}"
    return None, Finding(subject, FAIL, problem)


def _files(config: Config, paths: Sequence[Path]) -> Generator[Finding, None, tuple[NftSpec | None, AddressSet | None]]:
    """Returns the settings and the addresses that may be opened, as in a cluster."""
    subject = "manifests"
    try:
        inputs = read(config, paths)
    except ManifestError as error:
        yield Finding(subject, FAIL, str(error))
        return None, None
    result = preview(config, inputs, local_chain(config))
    yield from (Finding(subject, FAIL, str(rejection)) for rejection in result.rejections)
    if not result.rejections:
        yield Finding(subject, OK, f"{len(inputs.services.objects())} Services of type LoadBalancer")
    return result.nft.spec if result.nft else None, result.guard.legal


def _not_kept(api: Api, resource: Resource) -> Iterator[Finding]:
    lines = not_kept(api, resource)
    yield from (Finding(resource.kind, FAIL, line) for line in lines[:_OTHERS])
    if len(lines) > _OTHERS:
        yield Finding(resource.kind, FAIL, f"… and {len(lines) - _OTHERS} more such fields")


def _pools(api: Api, config: Config, spec: NftSpec | None) -> Generator[Finding, None, AddressSet | None]:
    """Returns the addresses that may be opened, None for all."""
    subject = "MetalLB's pools"
    pool_mode = config.address_policy.pool_mode
    if pool_mode is PoolMode.IGNORED:
        yield Finding(subject, WARN, f'addresses are unguarded: pools = "{pool_mode}"; a Service may have any address')
        return None
    namespace = spec.metallb_namespace if spec else METALLB_NAMESPACE
    name = spec.metallb_configmap if spec else ""
    role = f"give it the Role there that it has in {METALLB_NAMESPACE}"
    mend = MEND if namespace == METALLB_NAMESPACE else role
    for kind in METALLB:
        attributes = {"group": kind.group, "resource": kind.plural, "namespace": namespace}
        if kind is LEGACY:
            attributes["name"] = name or CONFIG_MAP
        if missing := _missing(api, attributes):
            what = f"{kind.plural} {name}" if kind is LEGACY and name else kind.plural
            yield Finding("RBAC", WARN, f"may not {' or '.join(missing)} {what} in {namespace}: {mend}")
    known, rejections = known_of_cluster(api, config, spec)
    every = not name and not _missing(api, {"group": "", "resource": LEGACY.plural, "namespace": namespace}, ("list",))
    config_map = "every ConfigMap" if every else f"the ConfigMap {name or CONFIG_MAP}"
    looked = f"looked for {POOL.name}, {FORMER_POOL.name} and {config_map}"
    return (yield from _guarding(config, known, rejections, namespace, looked))


def _guarding(
    config: Config, known: MetalLBConfig | None, rejections: Iterable[Rejection], namespace: str, looked: str
) -> Generator[Finding, None, AddressSet | None]:
    """The legal addresses of a configuration, None for all. looked: where this comes from."""
    subject = "MetalLB's pools"
    yield from (Finding(subject, WARN, str(rejection)) for rejection in rejections)
    guard = Guard.of(config.address_policy, known)
    pools = guard.pools
    if pools is None:
        reason = f'{namespace} has no MetalLB configuration ({looked}); pools = "required" would open nothing'
        yield Finding(subject, WARN, f"addresses are unguarded: {reason}")
    elif not pools:
        why = guard.no_pool or f"no pool in {namespace} counts"
        yield Finding(subject, WARN, f"no address is legal: {why} ({looked})")
    else:
        names = ", ".join(quote(pool.name)[1:-1] for pool in pools[:5])
        config_maps = sorted({f" ({pool.source})" for pool in pools if pool.kind == LEGACY.name})
        places = sorted({pool.source.partition(" ")[2].partition("/")[0] for pool in pools})  # a former one, too
        yield Finding(subject, OK, f"{len(pools)} in {', '.join(places[:5])}: {names}{''.join(config_maps)}")
    return guard.legal


def _of_daemon(config: Config, error: ApiError) -> Generator[Finding, None, tuple[NftSpec | None, AddressSet | None]]:
    """Settings and legal addresses that the running daemon knows; nothing if none runs."""
    try:
        known = KnownOfDaemon.ask(config, error)
    except ApiError:
        return None, None
    yield Finding("daemon", OK, "it runs; what follows of settings and pools is what it knows")
    if config.address_policy.pool_mode is PoolMode.IGNORED:
        return known.spec, None
    namespace = known.spec.metallb_namespace if known.spec else METALLB_NAMESPACE
    legal = yield from _guarding(config, known.pools, known.rejections, namespace, "the daemon says so")
    return known.spec, legal


def _stateless(legal: AddressSet | None, attached: Iterable[Network]) -> Finding:
    """legal: the addresses of the pools, None without pools.  attached: the router's networks."""
    if legal is None or not legal.ranges:
        return Finding("stateless", WARN, "no pool counts: the router tracks the connections of every Service")
    inside = [network for network in attached if network.num_addresses > 1 and legal.covers(Range.of(network))]
    if inside:
        wide = f"a pool contains {min(map(str, inside))}, a network of this router, so it is wider than the cluster"
        return Finding("stateless", WARN, f"{wide}: the router and the nodes can't reach its other hosts")
    return Finding("stateless", OK, "packets of the pools bypass connection tracking")


def _nics(nics: Nics, legal: AddressSet | None) -> Iterator[Finding]:
    """The interfaces that count as public, as the daemon works them out."""
    subject = "public NIC"
    if not nics.public:
        yield Finding(subject, FAIL, "unknown: set public_nic in the Nft resource or in [overrides]")
        return
    try:
        side = public_side(read_links(), nics, routes.uplinks(legal))
    except DumpError as error:
        yield Finding(subject, FAIL, str(error))
        return
    for name in side.missing:
        problem = f"this machine has no interface {name}: correct public_nic in the Nft resource, or override it"
        yield Finding(subject, FAIL, problem)
    if len(side.missing) < len(nics.public):
        yield Finding(subject, OK, f"these interfaces count as public: {side}")
    yield from (Finding(subject, WARN, warning) for warning in side.warnings)
