"""The commands of nftsync: their names, their output, and their exit statuses.

The daemon does not import this package. Each command imports only the modules that it needs.
This package can import every other one. Only `python -m nftsync` and the console script import it.
"""
