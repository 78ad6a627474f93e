"""Settings that would cut off whoever administers the router have to be confirmed, or are taken back.

As with `commit confirmed` of other routers: the change is applied, and rolled back after a while unless `nftsync confirm` was run
meanwhile, which can only be done by who still gets to the router.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class Confirming:
    """Which settings are in force.

    settled: the last ones that wait for nothing; None if there never were any.  state: of what the resource asks for.
    asked: what waits or was rolled back, None for nothing.  cut: what of the way to the router that cuts, in words; "" for nothing.
    deadline: when they are rolled back, in the clock's seconds; inf if that is not due.
    """

    settled: NftSpec | None = None
    state: Confirmation = Confirmation.NOT_NEEDED
    asked: NftSpec | None = None
    cut: str = ""
    deadline: float = float("inf")

    @classmethod
    def remembered(cls, settled: NftSpec | None, rolled_back: NftSpec | None) -> Confirming:
        """As a new process begins. rolled_back: what nobody confirmed."""
        if rolled_back is None:
            return cls(settled)
        return cls(settled, Confirmation.ROLLED_BACK, rolled_back, cut_off(settled, rolled_back) if settled else "")

    @property
    def rolled_back(self) -> NftSpec | None:
        return self.asked if self.state is Confirmation.ROLLED_BACK else None

    @property
    def in_force(self) -> NftSpec | None:
        return self.asked if self.state is Confirmation.WAITING else self.settled

    def take(self, asked: NftSpec, seconds: float, now: float) -> Confirming:
        """With what the resource says now. seconds: to confirm in; 0 for no confirmation."""
        if asked == self.settled:  # if something else was asked for, it was taken back in the resource
            return self if self.asked is None else Confirming(asked)
        if asked != self.asked:
            cut = cut_off(self.settled, asked) if self.settled else ""
            if not (cut and seconds):
                return Confirming(asked, cut=cut)
            return Confirming(self.settled, Confirmation.WAITING, asked, cut, now + seconds)
        if now >= self.deadline:
            return replace(self, state=Confirmation.ROLLED_BACK, deadline=float("inf"))
        return self

    def confirmed(self) -> Confirming:
        """With what waits for good; the same where nothing waits."""
        if self.state is not Confirmation.WAITING:
            return self
        return Confirming(self.asked, Confirmation.CONFIRMED, cut=self.cut)

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
