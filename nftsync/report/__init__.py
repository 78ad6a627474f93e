"""What people are told: notices, conditions of the Nft, Events, answers of explain, traffic by Service.

Nothing here sends or writes anything, or looks for what it tells: it makes sentences and values of what it is given.
It imports the packages below it; the effects, the daemon and the commands may import it.
"""
