"""`nftsync flush`: nftsync's tables leave the kernel."""

from __future__ import annotations

from nftsync.config import Config
from nftsync.files.bootmark import BootMark
from nftsync.files.lock import locked
from nftsync.kernel.interfaces import Links
from nftsync.kernel.nft import Kernel
from nftsync.plan.memory import BootFacts
from nftsync.ruleset.tables import Ruleset
from nftsync.ruleset.text import transaction


def flush(chosen: Config) -> None:
    """Remove our tables and our ingress qdisc from this machine. A second call changes nothing.

    Raises KernelError. Raises LockedError while a daemon runs, since it would put them back.
    """
    with locked(chosen.runtime):
        kernel, mark, network = Kernel(), BootMark(chosen.runtime), Links()
        ours = mark.facts.ingress if mark.facts else None
        try:
            kernel.apply(transaction(kernel.read().ruleset, Ruleset()))
            if ours is not None and network.ingress_kind(ours) == "ingress":
                network.remove_ingress(ours)
        finally:
            network.close()
        mark.write(BootFacts())
