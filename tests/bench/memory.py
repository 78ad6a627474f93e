"""Memory above what importing the libraries costs that the daemon has to use."""

from __future__ import annotations

from statistics import median

from tests.bench.measure import Goal, Samples, spread, table
from tests.bench.start import COUNT, canned

ROUNDS = 3
RESYNCS = 5
MB = 1e6


def run() -> list[Goal]:
    samples: Samples = {}
    with canned() as made:
        for _ in range(ROUNDS):
            for who, arguments in (("libraries", ("libraries",)), ("daemon", ("memory", made.config, RESYNCS))):
                for when, size in made.process(*arguments).items():
                    samples.setdefault(f"{who}, {when}", []).append(size)
    table(
        f"Memory with {COUNT} Services after the start and {RESYNCS} resyncs, in MB",
        ("", "median", "95 %", "samples"),
        [[name, *spread(taken, 1 / MB, 1)] for name, taken in samples.items()],
    )
    above = {
        when: (median(samples[f"daemon, {when}"]) - median(samples[f"libraries, {when}"])) / MB
        for when in ("now", "peak")
    }
    return [
        Goal(f"{size:.1f} MB above the libraries, {what} (goal: at most 45)", size <= 45)
        for what, size in (("resident", above["now"]), ("at its peak", above["peak"]))
    ]
