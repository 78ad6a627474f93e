"""The inputs of the tables beside the pinholes, as one frozen value."""

from dataclasses import dataclass, field

from nftsync.objects.address import AddressSet, Network
from nftsync.objects.nft import NftSpec
from nftsync.policy.public import PublicSide


@dataclass(frozen=True, slots=True)
class Settings:
    """The inputs of the tables beside the pinholes.

    side: the interfaces that count as public.
    local_chain: the body of the operator's own chain, verbatim.
    bgp_peers: peers that may speak BGP with the router on its public side; empty for everybody.
    cluster: addresses that only the cluster uses (see guard.Guard).
    stateless: whether packets of the pools shall bypass connection tracking.
    flags: of the tables.
    egress: whether any Service limits what it sends. Without one, packets do not pay for the look-up.
    limits_refused: whether the kernel refused the limits; then its present limits stay.
    """

    side: PublicSide = field(default_factory=PublicSide)
    enable_bgp: bool = False
    enable_dropall: bool = True
    enable_rateshape: bool = False
    enable_ssh: bool = True
    local_chain: str = ""
    bgp_peers: tuple[Network, ...] = ()
    cluster: AddressSet = field(default_factory=AddressSet)
    stateless: bool = False
    flags: frozenset[str] = frozenset()
    egress: bool = False
    limits_refused: bool = False

    @property
    def devices(self) -> tuple[str, ...]:
        """The interfaces with the ingress hook; none while no limit is in force."""
        return self.side.devices if self.enable_rateshape and not self.limits_refused else ()

    @property
    def is_stateless(self) -> bool:
        """Whether packets of the pools bypass connection tracking.

        They do not while every interface is public: then nothing tells an answer from a packet that
        pretends to be one.
        """
        return self.stateless and self.side.names is not None

    @classmethod
    def of(  # noqa: PLR0913  # each is a setting of its own
        cls,
        spec: NftSpec | None,
        side: PublicSide,
        *,
        local_chain: str,
        bgp_peers: tuple[Network, ...] = (),
        cluster: AddressSet = AddressSet(),  # noqa: B008  # immutable
        stateless: bool = False,
        flags: frozenset[str] = frozenset(),
        egress: bool = False,
    ) -> "Settings":
        """Settings from the Nft resource's spec; without a spec the strictest settings."""
        if spec is None:
            return cls(side, local_chain=local_chain, cluster=cluster)
        return cls(
            side,
            enable_bgp=spec.enable_bgp,
            enable_dropall=spec.enable_dropall,
            enable_rateshape=spec.enable_rateshape,
            enable_ssh=spec.enable_ssh,
            local_chain=local_chain,
            bgp_peers=bgp_peers,
            cluster=cluster,
            stateless=stateless,
            flags=flags,
            egress=egress,
        )
