"""The rules that the kernel accepted last from this process. The next change starts from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nftsync.plan.changes import fingerprint
from nftsync.policy.pinholes import Pinhole
from nftsync.ruleset.tables import Settings, Table


@dataclass(slots=True)
class Applied:
    """The accepted tables, pinholes and settings.

    tables: None while unknown.  settings: None before the first transaction.
    fingerprint: of the pinholes.
    """

    tables: Mapping[str, Table] | None = None
    pinholes: dict[str, Pinhole] = field(default_factory=dict)
    settings: Settings | None = None
    fingerprint: int = 0

    @classmethod
    def of(cls, tables: Mapping[str, Table], pinholes: dict[str, Pinhole], settings: Settings) -> Applied:
        return cls(tables, pinholes, settings, fingerprint(pinholes.values()))

    def replace(self, before: Mapping[str, Pinhole], after: Mapping[str, Pinhole]) -> None:
        """Record that the kernel accepted the pinholes `after` in place of `before`."""
        for key in before:
            del self.pinholes[key]
        self.pinholes.update(after)
        self.fingerprint += fingerprint(after.values()) - fingerprint(before.values())
