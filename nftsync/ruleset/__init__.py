"""The policy in nft's words: tables, chains, sets, elements, text, the smallest transaction.

Nothing here speaks to the kernel or decides about packets. Only here are names of chains and sets.
It imports objects, config and policy; plan and everything above may import it.
"""
