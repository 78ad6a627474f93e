"""From a Snapshot to the change in the kernel: accepted versions, the next transaction, its result.

Nothing here does I/O or reads a clock: the time is an input like everything else.
It imports objects, config, policy and ruleset; report, the effects and the daemon may import it.
"""
