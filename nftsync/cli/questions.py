"""The commands that ask the running daemon: status, explain, confirm, top and diff.

With --manifests, explain and diff answer without a daemon.
"""

import json
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nftsync.cli.output import FAILED, WRONG, fail, printable, table
from nftsync.config import load
from nftsync.daemon.control import call
from nftsync.files.journal import Journal
from nftsync.kernel import counters
from nftsync.report import answer as report
from nftsync.report.query import parse_query
from nftsync.report.traffic import Reading
from nftsync.ruleset.text import render

WATCH = 2.0  # seconds between two looks
_SHOWN = 20  # rejections
_STATELESS = {
    True: "packets of the pools bypass connection tracking",
    False: "not in force: no pool counts, or every interface is public",
}
_OTHERS = 5  # sentences about other programs' tables; `nftsync check` has all


def status(options: Namespace) -> int:
    config = load(options.config)
    while True:
        answer = call(config.runtime, {"command": "status"})
        _show([json.dumps(answer)] if options.json else _status_lines(answer), clear=options.watch)
        if not options.watch:
            return 0
        time.sleep(WATCH)


def explain(options: Namespace) -> int:
    config = load(options.config)
    paths, words = _paths_and_words(options)
    try:
        parse_query(words)
        if paths:
            from nftsync.cli.preview import preview_here

            explanation = report.explain(preview_here(config, paths), words)
            answer: dict[str, Any] = {"text": explanation.text(), **explanation.as_json()}
        else:
            answer = call(config.runtime, {"command": "explain", "words": words})
    except ValueError as error:
        return fail(WRONG, str(error))
    text = answer.pop("text")
    print(json.dumps(answer) if options.json else text)
    return 0


def confirm(options: Namespace) -> int:
    answer = call(load(options.config).runtime, {"command": "confirm"})
    if not answer["confirmed"]:
        return fail(FAILED, f"no settings wait for a confirmation: {answer['text']}")
    print(answer["text"])
    return 0


def top(options: Namespace) -> int:
    config = load(options.config)
    if not 0.1 <= options.seconds <= 3600:
        return fail(WRONG, f"--seconds {options.seconds}: write a number from 0.1 to 3600")
    while True:
        owners = call(config.runtime, {"command": "owners"})["owners"]
        began, before = time.monotonic(), counters.read()
        time.sleep(options.seconds)
        after, seconds = counters.read(), time.monotonic() - began
        _show(_top_lines(owners, before, after, seconds, drops_first=options.drops), clear=not options.once)
        if options.once:
            return 0


def diff(options: Namespace) -> int:
    """Exit as diff(1) does: 0 no difference, 1 some difference, 2 trouble."""
    from nftsync.cli.diff import differences

    config = load(options.config)
    try:
        if options.manifests:
            from nftsync.cli.preview import preview_here

            result = preview_here(config, options.manifests).result
            remembered = Journal(config.state).load().closed  # files don't tell what closed earlier
            result = replace(result, closed={key: remembered[key] for key in remembered.keys() - result.index.pinholes})
            assert result.wanted is not None
            wanted = render(result.wanted)
            for rejection in result.rejections:
                print(rejection, file=sys.stderr)
        else:
            wanted = call(config.runtime, {"command": "ruleset"})["text"]
        lines = differences(wanted)
    except PermissionError:
        return fail(WRONG, "only root can read the kernel's ruleset: run this as root")
    except OSError as error:
        return fail(WRONG, str(error))
    sys.stdout.write(lines)
    return FAILED if lines else 0


def _paths_and_words(options: Namespace) -> tuple[Sequence[Path], Sequence[str]]:
    """Split the words from the paths.

    argparse takes every argument after `--manifests` for a path. Without other words, the last one
    or two of these arguments are the words.
    """
    paths = options.manifests
    if options.words:
        return paths, options.words
    split = len(paths) - 1
    if split > 1 and not paths[split - 1].exists():
        split -= 1
    return paths[:split], list(map(str, paths[split:]))


def _show(lines: Iterator[str] | Sequence[str], *, clear: bool) -> None:
    """Print lines. clear: on a terminal, they take the place of earlier ones."""
    if clear and sys.stdout.isatty():
        sys.stdout.write("\x1b[H\x1b[2J")
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def _status_lines(answer: dict[str, Any]) -> Iterator[str]:
    """The daemon's answer for people."""
    sync, success = answer["sync"], answer["sync"]["last_success_seconds"]
    ago = "" if success is None else f"succeeded {_duration(success)} ago"
    pools = {
        None: "not known yet",
        True: ", ".join(map(printable, answer["pools"]["names"])) or "none counts, so no address is opened",
        False: "unguarded: a Service may have any address",
    }
    yield f"router {answer['router']}, nftsync {answer['version']}, running for {_duration(answer['running_seconds'])}"
    yield ""
    yield from table([
        ("sync", ", ".join(filter(None, (sync["result"], ago, sync["message"])))),
        ("watches", ", ".join(f"{kind} {state}" for kind, state in sorted(answer["watches"].items())) or "none yet"),
        ("public NIC", _nic(answer["public_nic"], answer["public"])),
        ("settings", answer["settings"]["message"]),
        ("pools", pools[answer["pools"]["guarded"]]),
        *([("stateless", _STATELESS[answer["stateless"]["in_force"]])] if answer["stateless"]["wanted"] else []),
        ("open", f"{answer['pinholes']} pinholes of {answer['services']} Services"),
        ("refused", f"{answer['rejected']}"),
    ])  # fmt: skip
    for warning in answer["other_tables"][:_OTHERS]:
        yield f"other tables: {warning}"
    if answer["boot_failure"]:
        yield f"boot: {answer['boot_failure']}"
    for warning in answer["public"]["warnings"]:
        yield f"public NIC: {printable(warning)}"
    for source, why in answer["stale"].items():
        yield f"stale: {source}: {why}"
    if answer["rejections"]:
        rows = [(row["object"], row["reason"], row["message"]) for row in answer["rejections"][:_SHOWN]]
        yield from ("", *table([("REFUSED", "REASON", "WHY"), *rows]))
        if answer["rejected"] > _SHOWN:
            yield f"… and {answer['rejected'] - _SHOWN} more (--json shows them)"
    if answer["changes"]:
        changes = [(change["time"], change["about"], change["message"]) for change in answer["changes"]]
        yield from ("", *table([("LAST CHANGES", "OF", "WHAT"), *changes]))


def _nic(nic: dict[str, Any], public: dict[str, Any]) -> str:
    if nic["name"] is None:
        return "not known yet"
    names = public["interfaces"]
    counted = "" if names in (None, [nic["name"]]) else f" (these interfaces count as public: {', '.join(names)})"
    limits = f"rate limits in force at {', '.join(public['attached'])}" if nic["attached"] else "without rate limits"
    return printable(f"{public['absence'] or nic['name']}{counted}{', ' + limits if names is not None else ''}")


def _top_lines(
    owners: Mapping[str, str], before: Reading, after: Reading, seconds: float, *, drops_first: bool
) -> Iterator[str]:
    """Services by their traffic between two readings. owners: pinhole key → Service."""
    passed, packets, dropped = Counter[str](), Counter[str](), Counter[str]()
    for name, members in after.counts.items():
        for member, count in members.items():
            new = count.since(before.counts.get(name, {}).get(member))
            owner = owners.get(member[0], "nobody any more")
            if name.startswith("dropped"):
                dropped[owner] += new.packets
            else:
                packets[owner] += new.packets
                passed[owner] += new.octets
    first, second = (dropped, passed) if drops_first else (passed, dropped)
    order = sorted({*passed, *dropped}, key=lambda owner: (first[owner], second[owner], owner), reverse=True)
    rates = (
        (passed[owner] / seconds / 1024, packets[owner] / seconds, dropped[owner] / seconds, owner)
        for owner in order[:_SHOWN]
        if passed[owner] or dropped[owner]
    )
    rows = [(f"{kbytes:.1f}", f"{count:.0f}", f"{drops:.0f}", owner) for kbytes, count, drops, owner in rates]
    return table([("KBYTES/S", "PACKETS/S", "DROPPED/S", "SERVICE"), *rows])


def _duration(seconds: float) -> str:
    """A duration in a suitable unit, such as "3 h"."""
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    size, unit = next(((size, unit) for size, unit in units if seconds >= 2 * size), (1, "s"))
    return f"{seconds / size:.0f} {unit}"
