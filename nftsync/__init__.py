"""nftsync: Kubernetes Services and one Nft resource become the router's nftables firewall."""

__version__ = "0.1.0"
