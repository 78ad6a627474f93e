"""Files that outlive the process: the journal, the mark in /run, the lock and the local chain.

Nothing here touches the kernel or the cluster. A sealed file counts only if its seal holds.
It imports the pure packages only and none of the other three effects; the daemon and the commands
may import it.
"""
