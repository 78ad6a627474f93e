"""Who may pass: pinholes and who owns them, the guard of addresses, quotas, and settings that wait to be confirmed.

Nothing here does I/O, starts threads or knows how nftables says it: values in, values out.
It imports objects and config; ruleset and everything above may import it.
"""
