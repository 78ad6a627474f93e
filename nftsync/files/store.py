"""What must outlive the process, in one small file of the state directory.

What can't be read is as good as absent: the daemon starts all the same. It is written at once when something of it changes, which
is rare: nothing of it is a Service's.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nftsync.files.sealed import read_sealed, replace_sealed
from nftsync.objects.address import Address, parse_range
from nftsync.objects.metallb import Configuration, Pool, parse_peer_address
from nftsync.objects.nft import NftSpec, describe_spec, parse_spec

FORMAT = 2

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_RETRY = 5.0  # seconds until a disk that took nothing is asked again

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class State:
    """local_chain: the last body that the kernel took.

    ingress: index of the NIC whose ingress qdisc is ours, or None; it means nothing after a reboot.
    metallb: MetalLB's last good configuration, None if none was ever seen.  former: addresses that had pinholes before they
    left the pools; it means nothing after a reboot, when no connection is left.
    spec: the last settings that held without waiting for a confirmation, None if there were none.  rolled_back: those that came
    after them and were not confirmed, None if there are none.
    rules: what the rules that the kernel took last add up to (see applied.digest()), "" if that is not certain.
    """

    local_chain: str = ""
    ingress: int | None = None
    metallb: Configuration | None = None
    former: frozenset[Address] = frozenset()
    spec: NftSpec | None = None
    rolled_back: NftSpec | None = None
    rules: str = ""


class Store:
    """The state file in a directory; it is written only when the state differs from what is there."""

    def __init__(self, directory: Path, boot: Path = _BOOT, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = directory / "state.json"
        self._boot = boot.read_text(encoding="ascii").strip()
        self._clock = clock
        self._tried = float("-inf")
        self._kept = True  # whether the disk has it
        self._told = False  # of a disk that takes nothing
        self._state = self._load()

    @property
    def kept(self) -> bool:
        """Whether the disk has it; not so, either, before a file that can't be used is replaced."""
        return self._kept

    @property
    def state(self) -> State:
        return self._state

    def save(self, state: State) -> None:
        """Keep `state`. A disk that is full or read-only is reported once, asked again after a while, and harms nothing else."""
        if state == self._state and (self._kept or self._clock() - self._tried < _RETRY):
            return
        self._state, self._kept, self._tried = state, False, self._clock()
        try:
            replace_sealed(self._path, json.dumps({"boot": self._boot, **_described(state)}), FORMAT)
            self._kept, self._told = True, False
        except OSError as fault:
            if not self._told:
                log.warning("%s: %s; after a restart the state is not known", self._path, fault.strerror)
            self._told = True

    def retry(self) -> None:
        """Ask a disk again that took nothing."""
        if self._told:
            self.save(self._state)

    def _load(self) -> State:
        try:
            found = json.loads(read_sealed(self._path, FORMAT))
            same_boot = found.pop("boot") == self._boot
            metallb, former = found.pop("metallb", None), found.pop("former", [])
            spec, rolled_back = found.pop("spec", None), found.pop("rolled_back", None)
            state = State(
                **found,
                spec=None if spec is None else parse_spec(spec),
                rolled_back=None if rolled_back is None else parse_spec(rolled_back),
                metallb=None if metallb is None else _configuration(metallb),
                former=frozenset(parse_peer_address(each, "former") for each in former),
            )
            if {type(state.local_chain), type(state.rules)} != {str} or type(state.ingress) not in (int, type(None)):
                raise TypeError("a value has the wrong type")
        except FileNotFoundError:
            return State()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as fault:
            log.warning("%s can't be used and is ignored: %s", self._path, fault)
            self._kept = False
            return State()
        return state if same_boot else replace(state, ingress=None, former=frozenset())


def _described(state: State) -> dict[str, object]:
    """As JSON has it. Only what was seen of MetalLB is written: None stands for nothing at all."""
    metallb = None
    if state.metallb is not None:
        pools = [
            {"name": pool.name, "source": pool.source, "ranges": list(map(str, pool.ranges)), "advertised": pool.advertised}
            for pool in state.metallb.pools
        ]
        metallb = {"pools": pools, "peers": sorted(map(str, state.metallb.peers))}
    former = sorted(map(str, state.former))
    specs = {"spec": state.spec, "rolled_back": state.rolled_back}
    described = {name: None if spec is None else describe_spec(spec) for name, spec in specs.items()}
    plain = {"local_chain": state.local_chain, "ingress": state.ingress, "rules": state.rules}
    return {**plain, **described, "metallb": metallb, "former": former}


def _configuration(described: dict[str, Any]) -> Configuration:
    """Raises ValueError, TypeError or KeyError if it is not what _described() wrote."""
    pools = tuple(
        Pool(str(pool["name"]), str(pool["source"]), tuple(map(parse_range, pool["ranges"])), pool["advertised"] is True)
        for pool in described["pools"]
    )
    return Configuration(pools, frozenset(parse_peer_address(peer, "peers") for peer in described["peers"]))
