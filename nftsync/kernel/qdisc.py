"""The public NIC and its ingress qdisc, which the rate limits hang on."""

from __future__ import annotations

import logging

from nftsync.kernel.interfaces import LinkError, Links

log = logging.getLogger(__name__)


class Ingress:
    """Gives the NIC an ingress qdisc if it has none; what was there before is left alone."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self.index: int | None = None  # the NIC's at the last look
        self._missed: str | None = None  # the NIC that was not there

    def look(self, name: str | None) -> int | None:
        """The index of the NIC of this name, None if there is none. Raises LinkError."""
        self.index = self._links.index(name) if name else None
        missed = name if self.index is None else None
        if missed and missed != self._missed:
            log.warning("there is no interface %s: until there is, every one counts as public, no rate limit is in force", missed)
        elif self._missed and not missed:
            log.info("the interface %s is there: it alone counts as public", name)
        self._missed = missed
        return self.index

    def differs(self, name: str | None) -> bool:
        """Whether the NIC came, went, or is another one than at the last look. Raises LinkError."""
        return (self._links.index(name) if name else None) != self.index

    def settle(self, device: str | None, ours: int | None) -> int | None:
        """Take our qdisc away where it is no longer wanted, and make it where it is.

        device: the NIC that the shaper's chain is attached to, None for none.  ours: the index of the NIC whose qdisc is ours, None
        if none is. Returns the same as it is now.
        """
        wanted = self.index if device else None
        try:
            if ours is not None and ours != wanted:
                if self._links.ingress_kind(ours) == "ingress":
                    self._links.remove_ingress(ours)
                ours = None
            if wanted is not None and self._links.ingress_kind(wanted) is None:
                self._links.add_ingress(wanted)
                ours = wanted
        except LinkError as fault:
            log.warning("%s: %s", device or "public NIC", fault)
        return ours
