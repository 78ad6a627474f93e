"""The API server, or files in its place: kubeconfig, transport, watch, caches of objects, and what is sent back.

Nothing here touches the kernel or decides what should be open; its threads hand over frozen values.
It imports the pure packages only and none of the other three effects; the daemon and the commands may import it.
"""
