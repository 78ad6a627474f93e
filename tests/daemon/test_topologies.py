"""A short version of `make topologies`: whatever is built on a public NIC, nothing closed passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.labtools import needs_root
from tests.topologies import Tally, topology

pytestmark = needs_root


@pytest.mark.parametrize("seed", range(1, 13))
def test_whatever_is_built_on_a_public_nic_nothing_closed_passes_and_nothing_open_is_lost(
    seed: int, tmp_path: Path
) -> None:
    tally = Tally()
    topology(seed, tmp_path, tally)
    print(tally)
    assert tally.probes > 100
