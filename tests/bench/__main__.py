"""The benchmark: `make bench`, or `python -m tests.bench PART…` for some of its parts. Needs root and five minutes."""

from __future__ import annotations

import sys

from tests.bench import beside, changes, daemon, memory, packets, start
from tests.children import give_children_default_signals

PARTS = {
    "changes": changes.run,
    "start": start.run,
    "memory": memory.run,
    "packets": packets.run,
    "daemon": daemon.run,
    "beside": beside.run,
}


def main(chosen: list[str]) -> int:
    give_children_default_signals()
    goals = []
    for part in chosen or PARTS:
        goals += PARTS[part]()
    print("\nGoals")
    for goal in goals:
        print(goal)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
