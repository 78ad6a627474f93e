"""The text of `nftsync status` and `nftsync top` for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nftsync.report.traffic import Reading

_SHOWN = 20  # rejections


def status(answer: dict[str, Any]) -> str:
    """The daemon's answer as lines for people."""
    return "\n".join(_status(answer)) + "\n"


def _status(answer: dict[str, Any]) -> Iterator[str]:
    sync, nic, pools = answer["sync"], answer["public_nic"], answer["pools"]
    success = sync["last_success_seconds"]
    ago = [] if success is None else [f"succeeded {duration(success)} ago"]
    yield f"router {answer['router']}, nftsync {answer['version']}, running for {duration(answer['running_seconds'])}"
    yield ""
    yield from table([
        ("sync", ", ".join(filter(None, [sync["result"], *ago, sync["message"]]))),
        ("watches", ", ".join(f"{kind} {state}" for kind, state in sorted(answer["watches"].items())) or "none yet"),
        ("public NIC", _nic(nic)),
        ("settings", answer["settings"]["message"]),
        ("pools", _pools(pools)),
        ("open", f"{answer['pinholes']} pinholes of {answer['services']} Services"),
        ("refused", f"{answer['rejected']}"),
    ])  # fmt: skip
    if answer["boot_failure"]:
        yield f"boot: {answer['boot_failure']}"
    for source, why in answer["stale"].items():
        yield f"stale: {source}: {why}"
    if answer["rejections"]:
        yield ""
        yield from table([("REFUSED", "REASON", "WHY"), *_rejections(answer["rejections"])])
        if answer["rejected"] > _SHOWN:
            yield f"… and {answer['rejected'] - _SHOWN} more (--json shows them)"
    if answer["changes"]:
        yield ""
        changes = [(each["time"], each["about"], each["message"]) for each in answer["changes"]]
        yield from table([("LAST CHANGES", "OF", "WHAT"), *changes])


def _pools(pools: dict[str, Any]) -> str:
    if pools["guarded"] is None:
        return "not known yet"
    return ", ".join(map(printable, pools["names"])) if pools["guarded"] else "unguarded: a Service may have any address"


def _rejections(rejections: Iterable[dict[str, str]]) -> list[tuple[str, str, str]]:
    return [(each["object"], each["reason"], each["message"]) for each in rejections][:_SHOWN]


def _nic(nic: dict[str, Any]) -> str:
    if nic["name"] is None:
        return "not known yet"
    if nic["missing"]:
        return f"{nic['name']} is not there: every interface counts as public, and no rate limit is in force"
    return f"{nic['name']}, " + ("rate limits in force" if nic["attached"] else "without rate limits")


def top(owners: Mapping[str, str], before: Reading, after: Reading, seconds: float, *, drops_first: bool) -> str:
    """Services by their traffic between two readings, as a table.

    owners: pinhole key → Service.  seconds: the time between the readings.
    drops_first: sort by dropped packets.
    """
    passed, dropped = Counter[str](), Counter[str]()
    packets = Counter[str]()
    for name, members in after.counts.items():
        held = before.counts.get(name, {})
        for (key, rest), count in members.items():
            new = count.since(held.get((key, rest)))
            owner = owners.get(key, "nobody any more")
            if name.startswith("dropped"):
                dropped[owner] += new.packets
            else:
                packets[owner] += new.packets
                passed[owner] += new.octets
    first, second = (dropped, passed) if drops_first else (passed, dropped)
    order = sorted({*passed, *dropped}, key=lambda each: (first[each], second[each], each))
    rows = [
        (f"{passed[each] / seconds / 1024:.1f}", f"{packets[each] / seconds:.0f}", f"{dropped[each] / seconds:.0f}", each)
        for each in reversed(order[-_SHOWN:])
        if passed[each] or dropped[each]
    ]
    return "\n".join(table([("KBYTES/S", "PACKETS/S", "DROPPED/S", "SERVICE"), *rows])) + "\n"


def duration(seconds: float) -> str:
    """A duration in a suitable unit, such as "3 h"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with aligned columns; the last column has no width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()


def printable(text: str) -> str:
    """Foreign text without the control characters that a terminal would obey."""
    return ascii(text)[1:-1]
