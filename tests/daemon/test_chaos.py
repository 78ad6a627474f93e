"""A short version of `make chaos`: every kind of fault can be drawn, and no promise is broken."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import chaos as chaos_module
from tests.chaos import Asked, Chaos, ChaosError, chaos
from tests.lab.lab import Lab
from tests.labtools import needs_root

pytestmark = needs_root


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_breaks_nothing_forbidden_passes_and_nothing_allowed_is_lost(seed: int) -> None:
    tally = chaos(seed, 30)
    print(tally)
    assert sum(tally.faults.values()) == 30
    assert min(tally.allowed, tally.forbidden) > 1000


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Chaos]:
    with Lab() as lab:
        chaos = Chaos(lab, tmp_path, 3)
        with chaos.daemon:
            yield chaos


@pytest.mark.parametrize(
    ("command", "caught"),
    [
        (
            "add element inet nftsync services4 { 172.30.254.200 . udp . 80 }",
            r"172.30.254.200 80: of \d+ packets [1-9]",
        ),
        (
            "delete element inet nftsync services6 { 2001:db8:254::1 . udp . 80 }",
            r"2001:db8:254::1 80: of (\d+) packets (?!\1)",
        ),
    ],
    ids=["leak", "loss"],
)
def test_a_leak_and_a_loss_are_caught_however_short(made: Chaos, command: str, caught: str) -> None:
    def meddle() -> None:
        with made.load():
            made.daemon.signal(signal.SIGSTOP)  # or it is repaired before the next packet
            made.foreign(command)
            time.sleep(1.0)  # some rounds of packets, on a busy machine too
            made.daemon.signal(signal.SIGCONT)
            made.converge("that")

    with pytest.raises(ChaosError, match=caught):
        meddle()


def test_a_router_that_does_not_come_to_what_was_asked_for_is_caught(
    made: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.converge("nothing")
    monkeypatch.setattr(chaos_module, "CONVERGES", 1.0)
    made.asked = {name: Asked((("TCP", 80), ("UDP", 53), ("TCP", 443)), []) for name in chaos_module.NAMES}
    with pytest.raises(ChaosError, match="after a lie: "):
        made.converge("a lie")
