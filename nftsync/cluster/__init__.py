"""The API server, or files in its place: kubeconfig, transport, watches, caches, and reports to it.

This package does not touch the kernel and does not decide which pinholes open. Its threads hand
over frozen values. It imports the pure packages only, and none of the other three packages with
effects. The daemon and the commands may import it.
"""
