"""The commands that ask the running daemon: status, explain, confirm, top, diff. Two of them answer for manifests, too."""

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
    """The commands that ask the running daemon."""
    shown = add("status", _status, "Show how the running daemon is doing.")
    shown.add_argument("--json", action="store_true", help="for programs")
    shown.add_argument("--watch", action="store_true", help="again and again, until interrupted")
    why = add("explain", _explain, "Say why a packet passes or does not, or what came of a Service.", manifests)
    why.add_argument("words", metavar="WORD", nargs="*", help="[SOURCE] ADDRESS:PORT[/tcp|udp|sctp], or NAMESPACE/NAME")
    why.add_argument("--json", action="store_true", help="for programs")
    add("confirm", _confirm, "Keep settings of the Nft resource that would be taken back (confirm_seconds).")
    top = add("top", _top, "Show the Services with the most traffic, and the most that their limits drop.")
    top.add_argument("--drops", action="store_true", help="those first whose limits drop the most")
    top.add_argument("--seconds", type=float, default=WATCH, metavar="N", help="measure for so long (default: %(default)s)")
    top.add_argument("--once", action="store_true", help="one measurement instead of one after the other")
    add("diff", diff, "Show what would change in the kernel: to what the daemon wants, or to what manifests ask for.", manifests)


def _status(options: argparse.Namespace) -> int:
    from nftsync.cli import show
    from nftsync.daemon.control import ControlError, ask

    chosen = config.load(options.config)
    try:
        while True:
            answer = ask(chosen.runtime, {"command": "status"})
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
    from nftsync.daemon.control import ControlError, ask
    from nftsync.report.explain import View, explain, parse_query

    chosen = config.load(options.config)
    paths, words = _paths_and_words(options)
    try:
        parse_query(words)
        if paths:
            shown, services = _preview_here(chosen, paths)
            found = explain(View(shown, services), words)
            described: dict[str, Any] = {"text": found.text(), **found.as_json()}
        else:
            described = ask(chosen.runtime, {"command": "explain", "words": words})
    except ValueError as fault:
        return fail(WRONG, str(fault))
    except ControlError as fault:
        return fail(FAILED, str(fault))
    text = described.pop("text")
    print(json.dumps(described) if options.json else text)
    return 0


def _paths_and_words(options: argparse.Namespace) -> tuple[Sequence[Path], Sequence[str]]:
    """What follows `--manifests` is all taken for paths; the last one or two of them are the words, if there are no others."""
    paths, words = options.manifests or [], options.words
    if words:
        return paths, words
    split = len(paths) - 1
    if split > 1 and not paths[split - 1].exists():
        split -= 1
    return paths[:split], list(map(str, paths[split:]))


def _preview_here(chosen: Config, paths: Sequence[Path]) -> tuple[SyncResult, dict[Name, Service]]:
    """What manifests would give on this router, which has addresses; and all Services in them."""
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
    from nftsync.daemon.control import ControlError, ask

    try:
        answer = ask(config.load(options.config).runtime, {"command": "confirm"})
    except ControlError as fault:
        return fail(FAILED, str(fault))
    if not answer["confirmed"]:
        return fail(FAILED, f"nothing waits for a confirmation: {answer['text']}")
    print(answer["text"])
    return 0


def _top(options: argparse.Namespace) -> int:
    from nftsync.cli import show
    from nftsync.daemon.control import ControlError, ask
    from nftsync.kernel import counters
    from nftsync.kernel.netlink import DumpError

    chosen = config.load(options.config)
    if not 0.1 <= options.seconds <= 3600:
        return fail(WRONG, f"--seconds {options.seconds}: this is not a number from 0.1 to 3600")
    try:
        while True:
            owners = ask(chosen.runtime, {"command": "owners"})["owners"]
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
    """Exits as diff(1) does: with 0 if nothing would change, with 1 if something would, with 2 if that can't be told."""
    from nftsync.cli.diff import differences
    from nftsync.daemon.control import ControlError, ask
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
            wanted = ask(chosen.runtime, {"command": "ruleset"})["text"]
        found = differences(wanted)
    except PermissionError:
        return fail(WRONG, "only root may look at the kernel's ruleset")
    except (ControlError, KernelError, LabError, OSError) as fault:
        return fail(WRONG, str(fault))
    sys.stdout.write(found)
    return FAILED if found else 0
