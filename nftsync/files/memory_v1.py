"""Read the state of versions before 1.1 as a Memory, so that an upgrade forgets nothing.

Those versions kept settings in state.json, names and limits of Services in `services`,
and the ruleset as text in ruleset.nft. Delete this module when nobody upgrades from them.
"""

from __future__ import annotations

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
_SET = re.compile(r"\tset (\S+) \{\n.*?\n\t\}\n", re.DOTALL)
_ELEMENTS = re.compile(r"elements = \{ (.*?) \}", re.DOTALL)
_Found = tuple[dict[tuple[str, Port], set[Network] | None], dict[tuple[str, Port], RateLimit]]

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
            log.warning("%s can't be removed: %s. nftsync does not need it any more: delete it", folder / name, error.strerror)


def _take_state(memory: Memory, text: str) -> None:
    found = json.loads(text)
    spec, rolled_back = (None if found.get(name) is None else parse_spec(found[name]) for name in ("spec", "rolled_back"))
    pools = found.get("metallb")
    memory.facts = Facts(
        spec=spec,
        rolled_back=rolled_back,
        pools=None if pools is None else parse_pools(pools),
        pools_listed=spec is not None,
        local_chain=str(found.get("local_chain", "")),
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
    """Each address and its open ports, as a Service without a namespace: the owner is unknown."""
    sources, limits = _pinholes(text)
    alike: dict[tuple[str, tuple[Network, ...] | None, RateLimit | None], list[Port]] = {}
    for (address, port), ranges in sources.items():
        networks = None if ranges is None else tuple(sorted(ranges, key=str))
        alike.setdefault((address, networks, limits.get((address, port))), []).append(port)
    for number, ((address, networks, limit), ports) in enumerate(alike.items()):
        name = Name("", f"{address}-{number}")
        memory.services[name] = Service(name, "", "", None, (ip_address(address),), tuple(ports), networks, limit, rejections=())


def _pinholes(text: str) -> _Found:
    """By address and port: the allowed source ranges, None for all sources; and the limits."""
    sources: dict[tuple[str, Port], set[Network] | None] = {}
    limits: dict[tuple[str, Port], RateLimit] = {}
    for block in _SET.finditer(text):
        name = block[1]
        for element in _elements(block[0]):
            if name.startswith(("pools", "dropped")):
                continue
            key, _, statement = element.partition(" limit rate over ")
            address, protocol, number, *source = key.split(" . ")
            place = address, Port(Protocol(protocol), int(number))
            if name.startswith("services"):
                sources[place] = None
            elif name.startswith("sources"):
                sources[place] = (sources.get(place) or set()) | {ip_network(source[0])}
            else:
                limits[place] = parse_ratelimit(statement)
    return sources, limits


def _elements(block: str) -> Iterator[str]:
    for listed in _ELEMENTS.findall(block):
        yield from (" ".join(each.split()) for each in listed.split(","))
