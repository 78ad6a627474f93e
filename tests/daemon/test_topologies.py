"""A short version of `make topologies`: whatever is built on a public NIC, nothing closed passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.labtools import needs_root
from tests.topologies import Tally, World, bare, topology

pytestmark = needs_root


@pytest.mark.parametrize("seed", range(1, 13))
def test_whatever_is_built_on_a_public_nic_nothing_closed_passes_and_nothing_open_is_lost(
    seed: int, tmp_path: Path
) -> None:
    tally = Tally()
    topology(seed, tmp_path, tally)
    print(tally)
    assert tally.probes > 100


def test_a_leak_and_a_loss_are_caught_at_every_level_of_a_wire() -> None:
    passes = bare(4)
    with Lab("wan0") as lab:
        world = World(lab, 4)
        for _ in world.events():
            pass
        leaks = world.wrong(passes[-1])
        assert {each.split(":")[0] for each in leaks} == {"passes"}
        for device in world.uplinks[0].devices[1:]:
            assert any(f"'{device}'" in each for each in leaks), device
        lab.router.nft("add table inet every")
        for hook in ("forward", "input"):
            lab.router.nft(f"add chain inet every {hook} {{ type filter hook {hook} priority 0; policy drop; }}")
        assert {each.split(":")[0] for each in world.wrong(passes[-1])} == {"is lost"}
