"""What outlives the process: sealed files, what was accepted last, the lock, and the operator's local chain.

Nothing here touches the kernel or the cluster, and what is read back is believed only if its seal holds.
It imports the pure packages only and none of the other three effects; the daemon and the commands may import it.
"""
