"""What versions before 1.1 left in the state directory, as a Memory: an upgrade forgets nothing. To be deleted one day.

They kept the settings in state.json, the names and limits of Services in `services`, and the ruleset as text in ruleset.nft.
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
from nftsync.objects.ratelimit import RateLimit, parse_ratelimit, parse_statement
from nftsync.objects.service import Port, Protocol, Service
from nftsync.plan.memory import Facts, Memory, parse_pools

_STATE, _SERVICES, _RULESET = ("state.json", 2), ("services", 1), ("ruleset.nft", 1)  # files and their formats
_SET = re.compile(r"\tset (\S+) \{\n.*?\n\t\}\n", re.DOTALL)
_ELEMENTS = re.compile(r"elements = \{ (.*?) \}", re.DOTALL)
_Found = tuple[dict[tuple[str, Port], set[Network] | None], dict[tuple[str, Port], RateLimit]]

log = logging.getLogger(__name__)


def read_version_1(folder: Path) -> Memory:
    """An empty Memory where there are no such files; a file that can't be used is as good as absent, and that is said."""
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
    """Remove these files, once a journal has what they held. Whoever removes the journal later wants no rules of long ago."""
    for name, _ in (_STATE, _SERVICES, _RULESET):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s is not needed any more, and can't be removed: %s", folder / name, error.strerror)


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
    """Their names, and what they were limited to; which addresses they had stands in the ruleset alone."""
    for line in text.splitlines():
        name, uid, limit = line.split(" ", 2)
        service = Name(*name.split("/"))
        memory.services[service] = Service(
            service, uid, "", None, (), (), None, parse_ratelimit(limit) if limit else None, rejections=()
        )


def _take_ruleset(memory: Memory, text: str) -> None:
    """Each address and what was open there, as a Service without a namespace: nobody wrote down whose it was."""
    sources, limits = _pinholes(text)
    alike: dict[tuple[str, tuple[Network, ...] | None, RateLimit | None], list[Port]] = {}
    for (address, port), ranges in sources.items():
        networks = None if ranges is None else tuple(sorted(ranges, key=str))
        alike.setdefault((address, networks, limits.get((address, port))), []).append(port)
    for number, ((address, networks, limit), ports) in enumerate(alike.items()):
        name = Name("", f"{address}-{number}")
        memory.services[name] = Service(name, "", "", None, (ip_address(address),), tuple(ports), networks, limit, rejections=())


def _pinholes(text: str) -> _Found:
    """By address and port: the ranges that may pass, None for everybody; and the limits."""
    sources: dict[tuple[str, Port], set[Network] | None] = {}
    limits: dict[tuple[str, Port], RateLimit] = {}
    for block in _SET.finditer(text):
        name = block[1]
        for element in _elements(block[0]):
            if name.startswith(("pools", "dropped")):
                continue
            key, _, statement = element.partition(" limit ")
            address, protocol, number, *source = key.split(" . ")
            place = address, Port(Protocol(protocol), int(number))
            if name.startswith("services"):
                sources[place] = None
            elif name.startswith("sources"):
                sources[place] = (sources.get(place) or set()) | {ip_network(source[0])}
            else:
                limits[place] = parse_statement(f"limit {statement}")
    return sources, limits


def _elements(block: str) -> Iterator[str]:
    for listed in _ELEMENTS.findall(block):
        yield from (" ".join(each.split()) for each in listed.split(","))
