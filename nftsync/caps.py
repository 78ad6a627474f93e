"""How many pinholes there may be: somebody who asks for too many gets none of them, and takes none away from others."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caps:
    """Pinholes in all, and of one namespace. 0: as many as are asked for."""

    pinholes: int = 100_000
    pinholes_per_namespace: int = 50_000


class Room:
    """What is left below the caps. A Service takes as much as it claims, whether it owns every pinhole of it or not."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._taken = 0
        self._by_namespace = Counter[str]()

    def take(self, namespace: str, more: int) -> bool:
        """Let a Service have so many more pinholes, or fewer; False if it may not. Who wants no more always may."""
        if more > 0 and self.cap_for(namespace, more):
            return False
        self._taken += more
        self._by_namespace[namespace] += more
        return True

    def cap_for(self, namespace: str, more: int) -> str:
        """The cap that so many more would exceed, in words; "" if they would not."""
        of_namespace, of_all = self._caps.pinholes_per_namespace, self._caps.pinholes
        if of_namespace and self._by_namespace[namespace] + more > of_namespace:
            return f"the namespace {namespace} may have {of_namespace} pinholes (pinholes_per_namespace)"
        if of_all and self._taken + more > of_all:
            return f"there may be {of_all} pinholes (pinholes)"
        return ""
