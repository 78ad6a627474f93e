"""The API server, or files in its place: kubeconfig, transport, watches, caches, and reports to it.

Nothing here touches the kernel or decides which pinholes open. Its threads hand over frozen values.
It imports the pure packages only and none of the other three effects; the daemon and the commands
may import it.
"""
