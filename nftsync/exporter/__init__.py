"""Metrics and health checks for Prometheus on one address.

Nothing here decides anything, and a scrape never holds up a sync.
It imports the pure packages only and none of the other three effects; the daemon and the commands may import it.
"""
