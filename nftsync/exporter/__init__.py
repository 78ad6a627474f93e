"""Metrics and health checks for Prometheus on one address.

Nothing here decides anything. A scrape never delays a sync.
It imports the pure packages only and none of the other three effects; the daemon and the commands
may import it.
"""
