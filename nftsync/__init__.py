"""nftsync turns Kubernetes Services and one Nft resource into the nftables firewall of a router."""

__version__ = "0.1.0"
