"""The commands that change the kernel while no daemon runs: `nftsync boot` and `nftsync flush`.

`nftsync boot` loads the remembered rules before the network is up, without a cluster.

A router without a memory gets the base: its rules let in nothing but ssh. The command is one sync
of a daemon that hears nothing from a cluster. You can run it again if the first run could not read
the memory.
"""

import fcntl
import logging
import socket
import struct
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nftsync import config
from nftsync.cluster.cache import Inputs
from nftsync.config import Config, ConfigError
from nftsync.daemon.observe import Observer
from nftsync.daemon.reconcile import Reconciler
from nftsync.daemon.record import Record
from nftsync.files.runtime import BootMark, LockedError, locked
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.objects.address import Address, Local
from nftsync.objects.nft import Nics
from nftsync.plan.memory import BootFacts, Facts
from nftsync.plan.result import Outcome, SyncResult
from nftsync.plan.snapshot import Interfaces
from nftsync.policy.public import PublicSide
from nftsync.ruleset.model import Ruleset
from nftsync.ruleset.text import transaction

_SIOCGIFFLAGS = 0x8913  # netdevice(7)
_UP = 1

log = logging.getLogger(__name__)


class _NoNetwork:
    """The network before it is up: remembered addresses count; rules match interfaces by name."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def look(self, nics: Nics) -> Interfaces:
        """The remembered interfaces, and the named ones by their real names."""
        side, facts = PublicSide.unseen(nics), self._facts
        public, inside = (tuple(map(_real_name, kind)) for kind in nics)
        # They may have changed meanwhile. Then a remembered name no longer counts as inside.
        same = facts.spec is not None and facts.spec.nics == nics
        # The remembered names may leave a named one out: a VRF with an inside port.
        known = same and bool(facts.public)
        named = {real for name, real in zip(nics.public, public, strict=True) if real != name or not known}
        seen = replace(
            side,
            names=None if side.names is None else facts.public | named,
            inside=None if side.inside is None else side.inside | set(inside) | (facts.inside if same else set()),
            devices=(facts.devices if same else ()) or public,
            trunks=facts.trunks if same else frozenset(),
        )
        return Interfaces(seen, facts.local or Local(), facts.peers)

    def settle(self, devices: Collection[str], ours: frozenset[int]) -> frozenset[int]:  # noqa: ARG002  # the daemon does
        return ours

    def routed(self, _: Address) -> bool | None:
        return None


def _real_name(name: str) -> str:
    """The name of an interface that you may have called by an alternative name; the same if it is not there."""
    with suppress(OSError):
        return socket.if_indextoname(socket.if_nametoindex(name))
    return name


def boot(path: Path | None, *, early: bool) -> None:
    """Bring the kernel to the remembered rules in one transaction.

    path: of the configuration file, None for the default place.
    early: True in the boot unit, which runs after the distribution loaded rules. Only the
    remembered rules count then. The base loads only while no interface but lo is up, so it never
    shuts a router that already forwards packets.
    Raises KernelError if the kernel refuses even the base.
    """
    try:
        chosen, valid = config.load(path), True
    except ConfigError as error:  # a mistake in the configuration must not leave the router open
        log.warning("the configuration is not valid: %s; nftsync uses the remembered one", error)
        chosen, valid = Config(), False
    try:
        with locked(chosen.runtime):
            record = Record(chosen.state, chosen.runtime, memory_is_right=early)
            facts = record.memory.facts
            observer = Observer(chosen if valid else _remembered(facts), Inputs.empty(), _NoNetwork(facts), facts)
            base = not early or not _network_is_up()
            result = Reconciler(observer, Kernel(), record, base=base).sync()
            record.finish()
            _tell(result, record.memory.facts)
    except LockedError:
        log.info("the daemon runs already and keeps the ruleset up to date: `nftsync boot` changes nothing")


def _remembered(facts: Facts) -> Config:
    try:
        return config.parse(facts.config, "the remembered configuration")
    except ConfigError as error:  # another version wrote it
        log.warning("%s", error)
        return Config()


def _network_is_up() -> bool:
    """True if an interface other than lo is up. Source: netdevice(7)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sh14x", name.encode(), 0))
            except OSError:
                continue  # the interface disappeared meanwhile
            if name != "lo" and struct.unpack_from("16sh", answer)[1] & _UP:
                return True
    return False


def _tell(result: SyncResult, facts: Facts) -> None:
    for rejection in result.rejections:
        if rejection.object.kind == "File":
            log.warning("your local chain is not in force as you wrote it: %s", rejection)
    verdicts = result.snapshot.verdicts if result.snapshot else None
    if verdicts and verdicts.limits:
        log.warning("no rate limit is in force until the daemon runs: %s", verdicts.limits)
    elif result.outcome is Outcome.FAILED:
        raise KernelError(result.message)
    if result.settings is None:
        log.info("%s", result.message)
    elif facts.spec is None:
        log.warning("this router has no remembered rules: nftsync loaded the base, which lets in nothing but ssh")
    else:
        log.info("the remembered rules are in force: %d pinholes", len(result.pinholes))


def flush(chosen: Config) -> None:
    """Remove our tables and our ingress qdisc from this machine. A second call changes nothing.

    Raises KernelError. Raises LockedError while a daemon runs, since it would put them back.
    """
    from nftsync.kernel.interfaces import Links  # pyroute2 is slow to import, and `nftsync boot` does not need it

    with locked(chosen.runtime):
        kernel, mark, network = Kernel(), BootMark(chosen.runtime), Links()
        ours = mark.facts.ingress if mark.facts else ()
        try:
            kernel.apply(transaction(kernel.read().ruleset, Ruleset()))
            for index in ours:
                if network.ingress_kind(index) == "ingress":
                    network.remove_ingress(index)
        finally:
            network.close()
        mark.write(BootFacts())
