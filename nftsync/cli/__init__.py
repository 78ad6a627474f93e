"""The commands of nftsync: their names, their output, and their exit statuses.

The daemon needs nothing from here. Each command imports only the modules that it needs.
It imports every other package; only `python -m nftsync` and the console script import it.
"""
