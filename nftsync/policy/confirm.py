"""The confirmation of settings that can lock the administrator out of the router.

This works like `commit confirmed` on other routers. nftsync applies the change and rolls it back
after confirm_seconds, unless somebody runs `nftsync confirm` meanwhile. Only a person with access
to the router can run it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nftsync.objects.nft import Confirmation, NftSpec


def cut_off(before: NftSpec, after: NftSpec) -> str:
    """The part of a change that can lock the administrator out, for people; "" for none."""
    was, now = (tuple(map(set, spec.nics)) for spec in (before, after))  # their order does not matter
    if was != now:
        return f"public_nic changed from {before.nics} to {after.nics}"
    # Whether the rules accept ssh from the public side.
    had_ssh, has_ssh = (spec.enable_ssh or not spec.enable_dropall for spec in (before, after))
    if had_ssh and not has_ssh:
        return (
            "enable_ssh was switched off" if before.enable_ssh else "enable_dropall was switched on without enable_ssh"
        )
    return ""


@dataclass(frozen=True, slots=True)
class Confirming:
    """The settings in force, and the settings that wait for a confirmation.

    settled: the last settings that need no confirmation; None before the first ones.
    state: of the settings that the resource asks for.
    asked: the settings that wait or were rolled back, None for none.
    cut: their part that can lock the administrator out, in words; "" for none.
    deadline: time of the rollback, in the clock's seconds; inf if none is due.
    """

    settled: NftSpec | None = None
    state: Confirmation = Confirmation.NOT_NEEDED
    asked: NftSpec | None = None
    cut: str = ""
    deadline: float = float("inf")

    @classmethod
    def remembered(cls, settled: NftSpec | None, rolled_back: NftSpec | None) -> Confirming:
        """The state at the start of a process. rolled_back: settings that nobody confirmed."""
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
        """The state after the resource asks for `asked`.

        seconds: the time to confirm in; 0 for no confirmation.  now: the clock's seconds.
        """
        if asked == self.settled:  # the resource took any other request back
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
        """The state after a confirmation; the same state if no settings wait."""
        if self.state is not Confirmation.WAITING:
            return self
        return Confirming(self.asked, Confirmation.CONFIRMED, cut=self.cut)

    def __str__(self) -> str:
        return f"{self.cut}{_SENTENCES[self.state]}" if self.cut else "the settings cannot lock you out"


_SENTENCES = {
    Confirmation.NOT_NEEDED: ". This can lock you out. It applies at once because confirm_seconds is 0.",
    Confirmation.CONFIRMED: "; it was confirmed",
    Confirmation.WAITING: (
        ". nftsync takes it back after confirm_seconds unless you run `nftsync confirm` on the router."
    ),
    Confirmation.ROLLED_BACK: (
        "; nobody ran `nftsync confirm`, so the former settings hold until you change the resource"
    ),
}
