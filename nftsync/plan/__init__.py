"""From a Snapshot to the change in the kernel: accepted versions, the next transaction, its result.

This package does no I/O and reads no clock: the time is an input.
It imports objects, config, policy and ruleset. The packages above it may import it: report, the
four effects (kernel, cluster, files, exporter), the daemon and the commands.
"""
