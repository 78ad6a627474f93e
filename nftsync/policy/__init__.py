"""The right to pass: pinholes and their owners, the guard of addresses, quotas.

Nothing here does I/O, starts threads or knows nftables: functions take values and return values.
It imports objects and config; ruleset and everything above may import it.
"""
