"""The one loop that joins the effects: it syncs, publishes what came of it, and answers on its control socket.

Nothing here parses what a cluster says or writes nft's words: that is done below.
It imports everything but the commands, and only the commands may import it.
"""
