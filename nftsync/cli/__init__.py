"""The commands: what they are called, what they print, and their exit statuses.

Nothing here is needed by the daemon, and each command imports only what it needs.
It imports every other package; only `python -m nftsync` and the console script import it.
"""
