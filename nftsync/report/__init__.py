"""Reports for people: notices, conditions of the Nft, Events, explanations, traffic by Service.

Nothing here sends, writes or looks up anything: it turns its arguments into sentences and values.
It imports the packages below it; the effects, the daemon and the commands may import it.
"""
