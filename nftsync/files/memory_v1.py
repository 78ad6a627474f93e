"""Read the state of versions before 1.1 as a Memory, so that an upgrade forgets nothing.

Those versions kept settings in state.json, names and limits of Services in `services`,
and the ruleset as text in ruleset.nft. Delete this module when nobody upgrades from them.
"""

import json
import logging
import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

from nftsync.files.sealed import read_sealed
from nftsync.objects.address import Network
from nftsync.objects.names import Name
from nftsync.objects.nft import parse_spec
from nftsync.objects.ratelimit import RateLimit, parse_ratelimit
from nftsync.objects.service import Port, Protocol, Service
from nftsync.plan.memory import Facts, Memory, parse_pools

_STATE, _SERVICES, _RULESET = ("state.json", 2), ("services", 1), ("ruleset.nft", 1)  # files and their formats
_SETS = re.compile(r"\tset (services|sources|limited)\S+ \{\n(?:\t\t.*\n)*?\s*elements = \{ ([^}]*) \}")

log = logging.getLogger(__name__)


def read_version_1(folder: Path) -> Memory:
    """The old state; an empty Memory without such files. Log a warning about each broken file."""
    memory = Memory()
    for (name, form), take in ((_STATE, _take_state), (_SERVICES, _take_services), (_RULESET, _take_ruleset)):
        try:
            take(memory, read_sealed(folder / name, form))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning("%s can't be used and is ignored: %s", folder / name, error)
    return memory


def forget_version_1(folder: Path) -> None:
    """Remove the old files once a journal has their content.

    If you remove the journal later, the old rules must not come back.
    """
    for name, _ in (_STATE, _SERVICES, _RULESET):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            log.warning(
                "%s can't be removed: %s. nftsync does not need it any more: delete it", folder / name, error.strerror
            )


def _take_state(memory: Memory, text: str) -> None:
    state = json.loads(text)
    spec, rolled_back, pools = (state.get(name) for name in ("spec", "rolled_back", "metallb"))
    memory.facts = Facts(
        spec=None if spec is None else parse_spec(spec),
        rolled_back=None if rolled_back is None else parse_spec(rolled_back),
        pools=None if pools is None else parse_pools(pools),
        pools_listed=spec is not None,
        local_chain=str(state.get("local_chain", "")),
    )


def _take_services(memory: Memory, text: str) -> None:
    """Names and limits of Services. Only the ruleset has their addresses."""
    for line in text.splitlines():
        name, uid, limit = line.split(" ", 2)
        service = Name(*name.split("/"))
        memory.services[service] = Service(
            service, uid, "", None, (), (), None, parse_ratelimit(limit) if limit else None, rejections=()
        )


def _take_ruleset(memory: Memory, text: str) -> None:
    """Each address and open port, as a Service without a namespace: the owner is unknown."""
    sources: dict[tuple[str, Port], set[Network] | None] = {}
    limits: dict[tuple[str, Port], RateLimit] = {}
    for kind, element, limit in _elements(text):
        address, protocol, number, *source = element.split(" . ")
        pinhole = address, Port(Protocol(protocol), int(number))
        if kind == "limited":
            limits[pinhole] = parse_ratelimit(limit)
        elif kind == "sources":
            sources[pinhole] = (sources.get(pinhole) or set()) | {ip_network(source[0])}
        else:
            sources[pinhole] = None  # open to all
    for place, ((address, port), ranges) in enumerate(sources.items()):
        name = Name("", f"{address}-{place}")
        networks = None if ranges is None else tuple(sorted(ranges, key=str))
        memory.services[name] = Service(
            name, "", "", None, (ip_address(address),), (port,), networks, limits.get((address, port)), rejections=()
        )


def _elements(text: str) -> Iterator[tuple[str, str, str]]:
    """Of each element that opens or limits something: the kind of its set, its key, and its limit."""
    for kind, elements in _SETS.findall(text):
        for element in elements.split(","):
            key, _, rate = " ".join(element.split()).partition(" limit rate over ")
            yield kind, key, rate
