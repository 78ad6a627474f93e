"""This machine: nftables by libnftables and netlink, counters, interfaces, routes, namespaces.

Nothing here knows Kubernetes, keeps files or decides which pinholes open.
It imports the pure packages only and none of the other three effects; the daemon and the commands
may import it.
"""
