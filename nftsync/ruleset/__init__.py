"""The same in nft's words: tables, chains, sets and their elements, their text, and the smallest transaction between two of them.

Nothing here speaks to the kernel or decides who may pass, and no name of a chain or set stands anywhere else.
It imports objects, config and policy; plan and everything above may import it.
"""
