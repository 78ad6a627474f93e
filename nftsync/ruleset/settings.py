"""The inputs of the tables beside the pinholes, as one frozen value."""

from dataclasses import dataclass, field

from nftsync.objects.address import AddressSet, Network
from nftsync.objects.nft import NftSpec


@dataclass(frozen=True, slots=True)
class Settings:
    """The inputs of the tables beside the pinholes.

    public_nic: None while unknown. Then, or if the NIC is missing, every interface but lo is public.
    index: the public NIC's (if_nametoindex(3)); 0 while no NIC has its name, None before a look. The
    index keeps the NIC public under another name.
    local_chain: the body of the operator's own chain, verbatim.
    bgp_peers: peers that may speak BGP with the router on its public side; empty for everybody.
    cluster: addresses that only the cluster uses (see guard.Guard).
    flags: of the tables.
    limits_refused: whether the kernel refused the limits; then its present limits stay.
    """

    public_nic: str | None = None
    enable_bgp: bool = False
    enable_dropall: bool = True
    enable_rateshape: bool = False
    enable_ssh: bool = True
    index: int | None = None
    local_chain: str = ""
    bgp_peers: tuple[Network, ...] = ()
    cluster: AddressSet = field(default_factory=AddressSet)
    flags: frozenset[str] = frozenset()
    limits_refused: bool = False

    @property
    def nic_missing(self) -> bool:
        """Whether a look for the public NIC found no such interface."""
        return self.index == 0

    @property
    def public(self) -> str | None:
        """The only public NIC; None while every interface is public."""
        return None if self.nic_missing else self.public_nic

    @property
    def device(self) -> str | None:
        """The NIC with the ingress hook."""
        return self.public if self.enable_rateshape and not self.limits_refused else None

    @classmethod
    def of(  # noqa: PLR0913  # each is a setting of its own
        cls,
        spec: NftSpec | None,
        *,
        public_nic: str | None,
        index: int | None = None,
        local_chain: str,
        bgp_peers: tuple[Network, ...] = (),
        cluster: AddressSet = AddressSet(),  # noqa: B008  # immutable
        flags: frozenset[str] = frozenset(),
    ) -> "Settings":
        """Settings from the Nft resource's spec; without a spec the strictest settings.

        public_nic: from the local configuration; it overrides the resource's.
        """
        if spec is None:
            return cls(public_nic=public_nic, local_chain=local_chain, cluster=cluster)
        return cls(
            public_nic=public_nic or spec.public_nic,
            enable_bgp=spec.enable_bgp,
            enable_dropall=spec.enable_dropall,
            enable_rateshape=spec.enable_rateshape,
            enable_ssh=spec.enable_ssh,
            index=index,
            local_chain=local_chain,
            bgp_peers=bgp_peers,
            cluster=cluster,
            flags=flags,
        )
