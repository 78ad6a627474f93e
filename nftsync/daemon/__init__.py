"""The loop that joins the effects: it syncs, publishes the result, and answers on a control socket.

Nothing here parses objects of the cluster or writes text for nft: the packages below do that.
It imports everything but the commands, and only the commands may import it.
"""
