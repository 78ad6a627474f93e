"""From what is known to what must change: what was applied, what a sync changed, and what came of it.

Nothing here does I/O or reads a clock: the time is an input like everything else.
It imports objects, config, policy and ruleset; report, the effects and the daemon may import it.
"""
