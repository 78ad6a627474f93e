"""Settings that would cut off whoever administers the router have to be confirmed, or are taken back.

As with `commit confirmed` of other routers: the change is applied, and rolled back after a while unless `nftsync confirm` was run
meanwhile, which can only be done by who still gets to the router.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from nftsync.objects.nft import NftSpec
from nftsync.objects.status import Confirmation


def cut_off(before: NftSpec, after: NftSpec) -> str:
    """What of the way to the router a change may cut, for people; "" for nothing."""
    if before.public_nic != after.public_nic:
        return f"public_nic was changed from {before.public_nic} to {after.public_nic}"
    if _ssh(before) and not _ssh(after):
        return "enable_ssh was switched off" if before.enable_ssh else "enable_dropall was switched on without enable_ssh"
    return ""


def _ssh(spec: NftSpec) -> bool:
    """Whether ssh from the public side comes in."""
    return spec.enable_ssh or not spec.enable_dropall


class Confirming:
    """Decides which settings are in force.

    settled: the last ones that wait for nothing; None if there never were any.  rolled_back: those that nobody confirmed.
    state: of what the resource asks for.  cut: what of the way to the router that cuts, in words; "" for nothing.
    clock: monotonic seconds.
    """

    def __init__(
        self, settled: NftSpec | None, rolled_back: NftSpec | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.settled = settled
        self._asked = rolled_back  # what waits, or was rolled back
        self.state = Confirmation.ROLLED_BACK if rolled_back else Confirmation.NOT_NEEDED
        self.cut = cut_off(settled, rolled_back) if settled and rolled_back else ""
        self._until = float("inf")

    @property
    def rolled_back(self) -> NftSpec | None:
        return self._asked if self.state is Confirmation.ROLLED_BACK else None

    def take(self, asked: NftSpec, seconds: float) -> NftSpec:
        """The settings in force now. asked: what the resource says.  seconds: to confirm in; 0 for no confirmation."""
        if asked == self.settled:
            if self._asked is not None:  # it was taken back in the resource
                self._settle(asked, Confirmation.NOT_NEEDED, "")
            return asked
        if asked != self._asked:
            self._ask(asked, seconds)
        if self.state is Confirmation.WAITING and self.waits == 0:
            self.state, self._until = Confirmation.ROLLED_BACK, float("inf")
        return self.settled if self.settled and self.state is Confirmation.ROLLED_BACK else asked

    def _ask(self, asked: NftSpec, seconds: float) -> None:
        cut = cut_off(self.settled, asked) if self.settled else ""
        if cut and seconds:
            self.state, self.cut, self._asked, self._until = Confirmation.WAITING, cut, asked, self._clock() + seconds
        else:
            self._settle(asked, Confirmation.NOT_NEEDED, cut)

    def confirm(self) -> bool:
        """Let what waits hold for good; returns whether anything waited."""
        if self.state is not Confirmation.WAITING or self._asked is None:
            return False
        self._settle(self._asked, Confirmation.CONFIRMED, self.cut)
        return True

    def _settle(self, spec: NftSpec, state: Confirmation, cut: str) -> None:
        self.settled, self.state, self.cut, self._asked, self._until = spec, state, cut, None, float("inf")

    @property
    def waits(self) -> float:
        """Seconds until the rollback; inf if none is due."""
        return max(0.0, self._until - self._clock())

    def __str__(self) -> str:
        if not self.cut:
            return "the settings cut off nobody"
        return f"{self.cut}{_SENTENCES[self.state]}"


_SENTENCES = {
    Confirmation.NOT_NEEDED: ": who administers this router from outside may be cut off; nobody was asked (confirm_seconds = 0)",
    Confirmation.CONFIRMED: "; it was confirmed",
    Confirmation.WAITING: ": it is taken back after confirm_seconds unless `nftsync confirm` is run on the router",
    Confirmation.ROLLED_BACK: "; nobody ran `nftsync confirm`, so the former settings hold until the resource says something else",
}
