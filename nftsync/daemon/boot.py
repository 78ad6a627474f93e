"""`nftsync boot`: what is remembered, before there is a network and without a cluster; of a router that remembers nothing the base.

It is one sync of a daemon that hears of no cluster. Run again, it makes up for what could not be loaded the first time.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import struct
from pathlib import Path

from nftsync import config
from nftsync.cluster.inputs import Inputs
from nftsync.config import Config, ConfigError
from nftsync.daemon.reconcile import Reconciler
from nftsync.daemon.record import Record, Store
from nftsync.files.bootmark import BootMark
from nftsync.files.journal import Journal
from nftsync.files.lock import LockedError, locked
from nftsync.kernel.nft import Kernel, KernelError
from nftsync.objects.address import Address, Local
from nftsync.plan.memory import Facts
from nftsync.plan.result import Outcome, SyncResult
from nftsync.plan.snapshot import Interfaces

_SIOCGIFFLAGS = 0x8913  # netdevice(7)
_UP = 1

log = logging.getLogger(__name__)


class _NoNetwork:
    """A network that nobody has looked at: what is remembered of it counts, and interfaces go by their names."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def look(self, _: str | None) -> Interfaces:
        return Interfaces(None, self._facts.local or Local(), self._facts.peers)

    def settle(self, *, shaped: bool, ours: int | None) -> int | None:  # noqa: ARG002  # the daemon sees to it
        return ours

    def routed(self, _: Address) -> bool | None:
        return None


def boot(path: Path | None, *, early: bool) -> None:
    """Load what is remembered, in one transaction from whatever stands.

    path: of the configuration, None for the default place.  early: as the boot unit calls it, after the distribution's rules were
    loaded. What stands is theirs, so what is remembered is right; and the base is loaded only while no interface but lo is up, so
    that a router that forwards already is not shut by mistake.
    Raises KernelError if the kernel takes not even the base.
    """
    try:
        chosen, valid = config.load(path), True
    except ConfigError as error:  # a mistake in the configuration must not leave the router open
        log.warning("%s; the configuration that is remembered counts", error)
        chosen, valid = Config(), False
    try:
        with locked(chosen.runtime):
            record = Record(Store(Journal(chosen.state), BootMark(chosen.runtime)), memory_is_right=early)
            if not valid:
                chosen = _remembered(record.memory.facts)
            network, base = _NoNetwork(record.memory.facts), not early or not _network_is_up()
            result = Reconciler(chosen, Inputs.empty(), Kernel(), network, record, base=base).sync()
            record.finish()
            _tell(result, record.memory.facts)
    except LockedError:
        log.info("nftsync runs: the ruleset is in its care")


def _remembered(facts: Facts) -> Config:
    try:
        return config.parse(facts.config, "the remembered configuration")
    except ConfigError as error:  # by another version
        log.warning("%s", error)
        return Config()


def _network_is_up() -> bool:
    """Whether an interface other than lo is up. Source: netdevice(7)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sh14x", name.encode(), 0))
            except OSError:
                continue  # it went meanwhile
            if name != "lo" and struct.unpack_from("16sh", answer)[1] & _UP:
                return True
    return False


def _tell(result: SyncResult, facts: Facts) -> None:
    for rejection in result.rejections:
        if rejection.object.kind == "File":
            log.warning("your local chain is not in force as it stands: %s", rejection)
    verdicts = result.snapshot.verdicts if result.snapshot else None
    if verdicts and verdicts.limits:
        log.warning("no rate limit is in force until nftsync runs: %s", verdicts.limits)
    elif result.outcome is Outcome.FAILED:
        raise KernelError(result.message)
    if result.settings is None:
        log.info("%s", result.message)
    elif facts.spec is None:
        log.warning("nothing is remembered: the base is loaded, which lets nothing in but ssh")
    else:
        log.info("what is remembered is in force: %d pinholes", len(result.pinholes))
