"""The command line. Errors are one line on stderr and an exit status: 1 what was asked for failed, 2 it was asked for wrongly."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nftsync import __version__, config, logs
from nftsync.config import Config, InputError
from nftsync.localchain import LocalChainError, parse_local_chain
from nftsync.logs import LogFormat
from nftsync.objects import ObjectRef, Reason, Rejection
from nftsync.output import FAILED, WRONG, discard_output, fail, open_output
from nftsync.ratelimit import RateLimitError, parse_ratelimit
from nftsync.ruleset import render

if TYPE_CHECKING:
    from nftsync.preview import Preview

WATCH = 2.0  # seconds between two looks
_PATHS: dict[str, Any] = {"type": Path, "nargs": "+", "action": "extend", "metavar": "PATH"}
_STATUS = "Exits with 0 if it did what it was asked for, with 1 if that failed, with 2 if it was asked for wrongly."
_DIFF_STATUS = "Exits with 0 if nothing would change, with 1 if something would, with 2 if that can't be told."

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    open_output()
    options = _parser().parse_args(arguments)
    logs.configure(options.log_level, LogFormat(options.log_format))
    command: Command = options.command
    failed = WRONG if command is _diff else FAILED  # whose 1 is an answer
    try:
        status = command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has seen enough
        discard_output()
        return failed
    except KeyboardInterrupt:
        return 130
    except InputError as fault:
        return fail(WRONG, str(fault))
    except OSError as fault:
        discard_output()
        what = fault.filename or "the output can't be written"
        return fail(failed, f"{what}: {fault.strerror}")
    else:
        return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nftsync", description="Kubernetes Services and one Nft resource become this router's nftables firewall."
    )
    parser.add_argument("--version", action="version", version=f"nftsync {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, metavar="FILE", help=f"the configuration (default: {config.DEFAULT_PATH})")
    shared.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    formats = tuple(LogFormat)
    shared.add_argument("--log-format", choices=formats, default=LogFormat.AUTO, help="auto: the journal if there is one, or text")
    manifests = argparse.ArgumentParser(add_help=False)
    manifests.add_argument("--manifests", **_PATHS, help="YAML files, or folders of them")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, summary: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        status = _DIFF_STATUS if command is _diff else _STATUS
        added = commands.add_parser(name, help=summary, description=summary, epilog=status, parents=[shared, *parents])
        added.set_defaults(command=command)
        return added

    run = add("run", _run, "Keep the kernel's ruleset what the cluster asks for.", manifests)
    run.add_argument("--once", action="store_true", help="stop after the first complete sync")
    add("boot", _boot, "Load the last good ruleset, as after a reboot; one that stands already stays.")
    shown = add("render", _render, "Print the ruleset that manifests would give; nothing is changed.", manifests)
    shown.add_argument("--strict", action="store_true", help="exit 1 if anything was rejected")
    legal = add("pools", _pools, "Print which addresses are legal: what MetalLB, or manifests, say.", manifests)
    legal.add_argument("--json", action="store_true", help="for programs: ranges as first-last, and what was rejected")
    limit = add("ratelimit", _ratelimit, "Check the text of a ratelimit annotation.")
    limit.add_argument("text", metavar="TEXT", nargs="+", help="e.g. '2 mbytes/second burst 512 kbytes'")
    _add_questions(add, manifests)
    add("check", _check, "Check configuration, kubeconfig, permissions, nft, kernel and NIC.")
    add("flush", _flush, "Remove nftsync's tables from the kernel: this opens the firewall.")
    demo = add("demo", _demo, "Build a lab of three network namespaces and show what passes.")
    demo.add_argument("--manifests", **_PATHS, help="instead of the five example Services")
    return parser


def _add_questions(add: Callable[..., argparse.ArgumentParser], manifests: argparse.ArgumentParser) -> None:
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
    add("diff", _diff, "Show what would change in the kernel: to what the daemon wants, or to what manifests ask for.", manifests)


# Commands that touch the kernel or the cluster import what they need themselves: the others work without it.


def _run(options: argparse.Namespace) -> int:
    from nftsync.api import ApiError
    from nftsync.daemon import Daemon, DaemonError, Options
    from nftsync.kernel import KernelError
    from nftsync.lock import LockedError
    from nftsync.metrics import EndpointError

    try:
        return Daemon(Options(options.config, tuple(options.manifests or ()), options.once)).run()
    except (ApiError, DaemonError, EndpointError, KernelError, LockedError) as fault:
        return fail(FAILED, str(fault))


def _boot(options: argparse.Namespace) -> int:
    from nftsync.boot import boot
    from nftsync.kernel import KernelError

    try:
        boot(options.config)
    except KernelError as fault:
        return fail(FAILED, f"no ruleset stands: {fault}")
    return 0


def _render(options: argparse.Namespace) -> int:
    from nftsync.preview import preview

    if not options.manifests:
        return fail(WRONG, "render needs --manifests PATH…: YAML files, or folders of them")
    chosen = config.load(options.config)
    local_chain, rejections = _local_chain(chosen)
    shown = preview(chosen, options.manifests, local_chain)
    rejections.extend(shown.rejections)
    sys.stdout.write(render(shown.ruleset))
    sys.stdout.flush()
    for rejection in rejections:
        print(rejection, file=sys.stderr)
    return FAILED if rejections and options.strict else 0


def _local_chain(chosen: Config) -> tuple[str, list[Rejection]]:
    try:
        return parse_local_chain(chosen.local_chain.read_text(encoding="utf-8")), []
    except FileNotFoundError:
        return "", []
    except (OSError, UnicodeDecodeError, LocalChainError) as fault:
        message = f"{fault.strerror if isinstance(fault, OSError) else fault}; the chain is empty"
        return "", [Rejection(ObjectRef("File", str(chosen.local_chain)), Reason.INVALID_LOCAL_CHAIN, message)]


def _ratelimit(options: argparse.Namespace) -> int:
    try:
        print(parse_ratelimit(" ".join(options.text)))
    except RateLimitError as fault:
        return fail(WRONG, str(fault))
    return 0


def _pools(options: argparse.Namespace) -> int:
    from nftsync.api import ApiError
    from nftsync.legal import legal_in_cluster, legal_in_manifests

    chosen = config.load(options.config)
    try:
        legal = legal_in_manifests(chosen, options.manifests) if options.manifests else legal_in_cluster(chosen)
    except ApiError as fault:
        return fail(FAILED, str(fault))
    if options.json:
        print(legal.json())
        return 0
    print(legal.text(), flush=True)
    for rejection in legal.rejections:
        print(rejection, file=sys.stderr)
    return 0


def _status(options: argparse.Namespace) -> int:
    from nftsync import show
    from nftsync.control import ControlError, ask

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
    from nftsync.control import ControlError, ask
    from nftsync.explain import explain, parse_query

    chosen = config.load(options.config)
    paths, words = _paths_and_words(options)
    try:
        parse_query(words)
        if paths:
            shown, _ = _preview_here(chosen, paths)
            found = explain(shown.view(chosen), words)
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


def _preview_here(chosen: Config, paths: Sequence[Path]) -> tuple[Preview, list[Rejection]]:
    """What manifests would give on this router, which has addresses; and what would be refused."""
    from nftsync.links import LinkError, Local, local_now
    from nftsync.preview import preview

    local_chain, rejections = _local_chain(chosen)
    try:
        local = local_now()
    except LinkError:
        local = Local()
    shown = preview(chosen, paths, local_chain, local.addresses, local.networks)
    return shown, [*rejections, *shown.rejections]


def _confirm(options: argparse.Namespace) -> int:
    from nftsync.control import ControlError, ask

    try:
        answer = ask(config.load(options.config).runtime, {"command": "confirm"})
    except ControlError as fault:
        return fail(FAILED, str(fault))
    if not answer["confirmed"]:
        return fail(FAILED, f"nothing waits for a confirmation: {answer['text']}")
    print(answer["text"])
    return 0


def _top(options: argparse.Namespace) -> int:
    from nftsync import counters, show
    from nftsync.control import ControlError, ask
    from nftsync.netlink import DumpError

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


def _diff(options: argparse.Namespace) -> int:
    """Exits as diff(1) does: with 0 if nothing would change, with 1 if something would, with 2 if that can't be told."""
    from nftsync.control import ControlError, ask
    from nftsync.differ import differences
    from nftsync.kernel import KernelError
    from nftsync.namespace import LabError

    chosen = config.load(options.config)
    try:
        if options.manifests:
            shown, rejections = _preview_here(chosen, options.manifests)
            wanted = render(shown.ruleset)
            for rejection in rejections:
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


def _check(options: argparse.Namespace) -> int:
    from nftsync.check import Level, findings

    good = True
    for finding in findings(options.config):
        print(finding)
        good = good and finding.level is not Level.FAIL
    return 0 if good else FAILED


def _flush(options: argparse.Namespace) -> int:
    from nftsync.daemon import flush
    from nftsync.kernel import KernelError
    from nftsync.links import LinkError
    from nftsync.lock import LockedError

    try:
        flush(config.load(options.config))
    except (KernelError, LinkError, LockedError) as fault:
        return fail(FAILED, str(fault))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from nftsync.demo import DemoError, demo

    try:
        demo(options.manifests)
    except DemoError as fault:
        return fail(FAILED, str(fault))
    return 0
