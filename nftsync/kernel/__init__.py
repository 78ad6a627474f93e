"""This machine: nftables by libnftables and netlink, counters, interfaces, routes and network namespaces.

Nothing here knows of Kubernetes, keeps files or decides what should be open.
It imports the pure packages only and none of the other three effects; the daemon and the commands may import it.
"""
