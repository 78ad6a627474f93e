"""The kinds of objects that nftsync reads from a cluster, and their paths.

Source: the Kubernetes API, MetalLB's api/.
"""

from __future__ import annotations

from dataclasses import dataclass

from nftsync.objects.metallb import CONFIG_MAP

# The remedy if the cluster lacks a required kind or permission.
MEND = "run nftsync bootstrap with an administrator's kubeconfig"


@dataclass(frozen=True, slots=True)
class Resource:
    """An API path to list and watch, narrowed by `query`. kind: for people and metrics.

    optional: a cluster without this kind, or without the permission to read it, is no error.
    guarded: if a list suddenly lacks most known objects, nftsync believes only a second such list.
    """

    kind: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    optional: bool = False
    guarded: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind. group: "" for Kubernetes' own.  optional, guarded: see Resource."""

    name: str
    group: str
    version: str
    plural: str
    optional: bool = False
    guarded: bool = False

    @property
    def api_version(self) -> str:
        """The value of an object's apiVersion."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "") -> str:
        """The path of a list: of one namespace, or "" for all."""
        within = f"namespaces/{namespace}/" if namespace else ""
        return f"/{'apis' if self.group else 'api'}/{self.api_version}/{within}{self.plural}"

    def watched(self, namespace: str = "", name: str = "") -> Resource:
        """The resource to watch: all objects, those of a namespace, or the one with a name."""
        query = (("fieldSelector", f"metadata.name={name}"),) if name else ()
        return Resource(self.name, self.path(namespace), query, self.optional, self.guarded)


SERVICE = Kind("Service", "", "v1", "services", guarded=True)
NFT = Kind("Nft", "nft.acnodal.com", "v1alpha1", "nfts")
POOL = Kind("IPAddressPool", "metallb.io", "v1beta1", "ipaddresspools", optional=True)
ADVERTISEMENT = Kind("BGPAdvertisement", "metallb.io", "v1beta1", "bgpadvertisements", optional=True)
PEER = Kind("BGPPeer", "metallb.io", "v1beta2", "bgppeers", optional=True)
LEGACY = Kind("ConfigMap", "", "v1", "configmaps", optional=True)  # which MetalLB read up to 0.12

KINDS = {kind.name: kind for kind in (SERVICE, NFT, POOL, ADVERTISEMENT, PEER, LEGACY)}

SERVICES = SERVICE.watched()


def nfts(namespace: str, name: str) -> Resource:
    """The one Nft resource of this name."""
    return NFT.watched(namespace, name)


def metallb(namespace: str) -> tuple[Resource, Resource, Resource, Resource]:
    """MetalLB's pools, advertisements and peers, and the ConfigMap of MetalLB up to 0.12."""
    return POOL.watched(namespace), ADVERTISEMENT.watched(namespace), PEER.watched(namespace), LEGACY.watched(namespace, CONFIG_MAP)
