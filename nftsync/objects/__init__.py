"""What the cluster says, parsed once: Service, Nft, MetalLB's kinds, addresses and rate limits as frozen values.

Nothing here does I/O, reads a clock or knows of nftables, and what can't be parsed is refused with a reason.
Every other package may import this one; it imports none of them.
"""
