"""Objects of the cluster as frozen values, parsed once: Service, Nft, MetalLB's kinds.

Nothing here does I/O, reads a clock or knows nftables. Each parser rejects bad input with a reason.
Every other package may import this one; it imports none of them.
"""
