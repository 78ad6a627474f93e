"""What is read of a cluster: API paths of the kinds of objects. Source: the Kubernetes API, MetalLB's api/."""

from __future__ import annotations

from dataclasses import dataclass

from nftsync.objects.metallb import CONFIG_MAP

# What helps where the cluster lacks a kind or a permission that it should have.
MEND = "run nftsync bootstrap with an administrator's kubeconfig"


@dataclass(frozen=True, slots=True)
class Resource:
    """What to watch: an API path that lists objects, narrowed by `query`. kind: for people and metrics.

    optional: that the cluster does not have this kind, or does not let us read it, is a state and no error.
    cautious: a list that has suddenly lost most of what was known needs another one that says the same.
    """

    kind: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    optional: bool = False
    cautious: bool = False


SERVICES = Resource("Service", "/api/v1/services", cautious=True)


def nfts(namespace: str, name: str) -> Resource:
    """The one Nft resource of this name."""
    path = f"/apis/nft.acnodal.com/v1alpha1/namespaces/{namespace}/nfts"
    return Resource("Nft", path, (("fieldSelector", f"metadata.name={name}"),))


def metallb(namespace: str) -> tuple[Resource, Resource, Resource, Resource]:
    """MetalLB's pools, advertisements and peers, and the ConfigMap that held all of them up to 0.12."""
    group, namespaced = "/apis/metallb.io", f"namespaces/{namespace}"
    config_map = (("fieldSelector", f"metadata.name={CONFIG_MAP}"),)
    return (
        Resource("IPAddressPool", f"{group}/v1beta1/{namespaced}/ipaddresspools", optional=True),
        Resource("BGPAdvertisement", f"{group}/v1beta1/{namespaced}/bgpadvertisements", optional=True),
        Resource("BGPPeer", f"{group}/v1beta2/{namespaced}/bgppeers", optional=True),
        Resource("ConfigMap", f"/api/v1/{namespaced}/configmaps", config_map, optional=True),
    )
