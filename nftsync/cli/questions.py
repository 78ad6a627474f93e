"""The commands that ask the running daemon: status, explain, confirm, top and diff.

With --manifests, explain and diff answer without a daemon.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nftsync import config
from nftsync.cli.output import FAILED, WRONG, fail
from nftsync.config import Config
from nftsync.objects.names import Name
from nftsync.ruleset.text import render

if TYPE_CHECKING:
    from nftsync.objects.service import Service
    from nftsync.plan.result import SyncResult

WATCH = 2.0  # seconds between two looks


def add_questions(add: Callable[..., argparse.ArgumentParser], manifests: argparse.ArgumentParser) -> None:
    """Add the commands that ask the running daemon."""
    shown = add("status", _status, "Show the state of the running daemon.")
    shown.add_argument("--json", action="store_true", help="for programs")
    shown.add_argument("--watch", action="store_true", help="repeat until you press Ctrl-C")
    why = add("explain", _explain, "Say why a packet passes or not, or show the result for a Service.", manifests)
    why.add_argument("words", metavar="WORD", nargs="*", help="[SOURCE] ADDRESS:PORT[/tcp|udp|sctp], or NAMESPACE/NAME")
    why.add_argument("--json", action="store_true", help="for programs")
    add("confirm", _confirm, "Keep settings of the Nft resource that nftsync would roll back (confirm_seconds).")
    top = add("top", _top, "Show the Services with the most traffic, and the packets that their limits drop.")
    top.add_argument("--drops", action="store_true", help="show the Services with the most dropped packets first")
    top.add_argument("--seconds", type=float, default=WATCH, metavar="N", help="time of a measurement (default: %(default)s)")
    top.add_argument("--once", action="store_true", help="stop after one measurement")
    add("diff", diff, "Show the difference between the kernel and the wanted ruleset, or that of manifests.", manifests)


def _status(options: argparse.Namespace) -> int:
    from nftsync.cli import show
    from nftsync.daemon.control import ControlError, call

    chosen = config.load(options.config)
    try:
        while True:
            answer = call(chosen.runtime, {"command": "status"})
            if options.watch and sys.stdout.isatty():
                sys.stdout.write("\x1b[H\x1b[2J")
            sys.stdout.write(json.dumps(answer) + "\n" if options.json else show.status(answer))
            sys.stdout.flush()
            if not options.watch:
                return 0
            time.sleep(WATCH)
    except ControlError as fault:
        return fail(FAILED, str(fault))


def _explain(options: argparse.Namespace) -> int:
    from nftsync.daemon.control import ControlError, call
    from nftsync.report.explain import View, explain
    from nftsync.report.query import parse_query

    chosen = config.load(options.config)
    paths, words = _paths_and_words(options)
    try:
        parse_query(words)
        if paths:
            shown, services = _preview_here(chosen, paths)
            found = explain(View(shown, services), words)
            described: dict[str, Any] = {"text": found.text(), **found.as_json()}
        else:
            described = call(chosen.runtime, {"command": "explain", "words": words})
    except ValueError as fault:
        return fail(WRONG, str(fault))
    except ControlError as fault:
        return fail(FAILED, str(fault))
    text = described.pop("text")
    print(json.dumps(described) if options.json else text)
    return 0


def _paths_and_words(options: argparse.Namespace) -> tuple[Sequence[Path], Sequence[str]]:
    """Split the words from the paths.

    argparse takes every argument after `--manifests` for a path. Without other words, the last one
    or two of these arguments are the words.
    """
    paths, words = options.manifests or [], options.words
    if words:
        return paths, words
    split = len(paths) - 1
    if split > 1 and not paths[split - 1].exists():
        split -= 1
    return paths[:split], list(map(str, paths[split:]))


def _preview_here(chosen: Config, paths: Sequence[Path]) -> tuple[SyncResult, dict[Name, Service]]:
    """The result of manifests on this router, with its own addresses, and all their Services."""
    from nftsync.cli.preview import local_chain, preview, read
    from nftsync.kernel.interfaces import LinkError, local_now

    inputs = read(chosen, paths)
    try:
        local = local_now()
    except LinkError:
        local = None
    shown = preview(chosen, inputs, local_chain(chosen), local)
    return shown, {service.name: service for service in inputs.services.objects()}


def _confirm(options: argparse.Namespace) -> int:
    from nftsync.daemon.control import ControlError, call

    try:
        answer = call(config.load(options.config).runtime, {"command": "confirm"})
    except ControlError as fault:
        return fail(FAILED, str(fault))
    if not answer["confirmed"]:
        return fail(FAILED, f"no settings wait for a confirmation: {answer['text']}")
    print(answer["text"])
    return 0


def _top(options: argparse.Namespace) -> int:
    from nftsync.cli import show
    from nftsync.daemon.control import ControlError, call
    from nftsync.kernel import counters
    from nftsync.kernel.netlink import DumpError

    chosen = config.load(options.config)
    if not 0.1 <= options.seconds <= 3600:
        return fail(WRONG, f"--seconds {options.seconds}: write a number from 0.1 to 3600")
    try:
        while True:
            owners = call(chosen.runtime, {"command": "owners"})["owners"]
            began, before = time.monotonic(), counters.read()
            time.sleep(options.seconds)
            after, seconds = counters.read(), time.monotonic() - began
            if not options.once and sys.stdout.isatty():
                sys.stdout.write("\x1b[H\x1b[2J")
            sys.stdout.write(show.top(owners, before, after, seconds, drops_first=options.drops))
            sys.stdout.flush()
            if options.once:
                return 0
    except (ControlError, DumpError) as fault:
        return fail(FAILED, str(fault))


def diff(options: argparse.Namespace) -> int:
    """Exit as diff(1) does: 0 no difference, 1 some difference, 2 trouble."""
    from nftsync.cli.diff import differences
    from nftsync.daemon.control import ControlError, call
    from nftsync.kernel.netns import LabError
    from nftsync.kernel.nft import KernelError

    chosen = config.load(options.config)
    try:
        if options.manifests:
            shown, _ = _preview_here(chosen, options.manifests)
            assert shown.wanted is not None
            wanted = render(shown.wanted)
            for rejection in shown.rejections:
                print(rejection, file=sys.stderr)
        else:
            wanted = call(chosen.runtime, {"command": "ruleset"})["text"]
        found = differences(wanted)
    except PermissionError:
        return fail(WRONG, "only root can read the kernel's ruleset: run this as root")
    except (ControlError, KernelError, LabError, OSError) as fault:
        return fail(WRONG, str(fault))
    sys.stdout.write(found)
    return FAILED if found else 0
