"""The command line. Errors are one line on stderr and an exit status: 1 what was asked for failed, 2 it was asked for wrongly."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nftsync import __version__, config
from nftsync.cli.output import FAILED, WRONG, discard_output, fail, open_output
from nftsync.cli.questions import add_questions, diff
from nftsync.config import InputError
from nftsync.daemon import logs
from nftsync.daemon.logs import LogFormat
from nftsync.objects.ratelimit import RateLimitError, parse_ratelimit
from nftsync.ruleset.text import render

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
    failed = WRONG if command is diff else FAILED  # whose 1 is an answer
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
        status = _DIFF_STATUS if command is diff else _STATUS
        added = commands.add_parser(name, help=summary, description=summary, epilog=status, parents=[shared, *parents])
        added.set_defaults(command=command)
        return added

    run = add("run", _run, "Keep the kernel's ruleset what the cluster asks for.", manifests)
    run.add_argument("--once", action="store_true", help="stop after the first complete sync")
    loaded = add("boot", _boot, "Load the rules that are remembered, as after a reboot.")
    loaded.add_argument("--early", action="store_true", help="load the base only while no interface but lo is up")
    shown = add("render", _render, "Print the ruleset that manifests would give; nothing is changed.", manifests)
    shown.add_argument("--strict", action="store_true", help="exit 1 if anything was rejected")
    legal = add("pools", _pools, "Print which addresses are legal: what MetalLB, or manifests, say.", manifests)
    legal.add_argument("--json", action="store_true", help="for programs: ranges as first-last, and what was rejected")
    limit = add("ratelimit", _ratelimit, "Check the text of a ratelimit annotation.")
    limit.add_argument("text", metavar="TEXT", nargs="+", help="e.g. '2 mbytes/second burst 512 kbytes'")
    add_questions(add, manifests)
    add("check", _check, "Check configuration, kubeconfig, permissions, nft, kernel and NIC.")
    made = add("bootstrap", _bootstrap, "Give a cluster what its routers need, and print the routers' kubeconfig.")
    made.add_argument("--kubeconfig", type=Path, metavar="FILE", help="the administrator's (default: the one that kubectl takes)")
    made.add_argument("--server", metavar="URL", help="where routers find the API server (default: as in that kubeconfig)")
    made.add_argument("--print", action="store_true", help="print what would be applied, and ask nobody")
    made.add_argument("--output", type=Path, metavar="FILE", help="write the routers' kubeconfig there, for its owner's eyes alone")
    add("flush", _flush, "Remove nftsync's tables from the kernel: this opens the firewall.")
    return parser


# Commands that touch the kernel or the cluster import what they need themselves: the others work without it.


def _run(options: argparse.Namespace) -> int:
    from nftsync.cluster.backoff import ApiError
    from nftsync.daemon.loop import Daemon, DaemonError, Options
    from nftsync.exporter.endpoint import EndpointError
    from nftsync.files.lock import LockedError
    from nftsync.kernel.nft import KernelError

    try:
        return Daemon(Options(options.config, tuple(options.manifests or ()), options.once)).run()
    except (ApiError, DaemonError, EndpointError, KernelError, LockedError) as fault:
        return fail(FAILED, str(fault))


def _boot(options: argparse.Namespace) -> int:
    from nftsync.daemon.boot import boot
    from nftsync.kernel.nft import KernelError

    try:
        boot(options.config, early=options.early)
    except KernelError as fault:
        return fail(FAILED, f"no ruleset stands: {fault}")
    return 0


def _render(options: argparse.Namespace) -> int:
    from nftsync.cli.preview import local_chain, preview, read

    if not options.manifests:
        return fail(WRONG, "render needs --manifests PATH…: YAML files, or folders of them")
    chosen = config.load(options.config)
    shown = preview(chosen, read(chosen, options.manifests), local_chain(chosen))
    assert shown.wanted is not None
    sys.stdout.write(render(shown.wanted))
    sys.stdout.flush()
    for rejection in shown.rejections:
        print(rejection, file=sys.stderr)
    return FAILED if shown.rejections and options.strict else 0


def _ratelimit(options: argparse.Namespace) -> int:
    try:
        print(parse_ratelimit(" ".join(options.text)))
    except RateLimitError as fault:
        return fail(WRONG, str(fault))
    return 0


def _pools(options: argparse.Namespace) -> int:
    from nftsync.cli.pools import legal_in_cluster, legal_in_manifests
    from nftsync.cluster.backoff import ApiError

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


def _check(options: argparse.Namespace) -> int:
    from nftsync.cli.check import Level, findings

    good = True
    for finding in findings(options.config):
        print(finding)
        good = good and finding.level is not Level.FAIL
    return 0 if good else FAILED


def _bootstrap(options: argparse.Namespace) -> int:
    from nftsync.cli.bootstrap import BootstrapError, administrators, bootstrap, text
    from nftsync.cluster.backoff import ApiError

    try:
        if options.print:
            sys.stdout.write(text())
            return 0
        chosen = options.kubeconfig or administrators()
        made = bootstrap(chosen, lambda line: print(line, file=sys.stderr), options.server)
    except (ApiError, BootstrapError) as fault:
        return fail(FAILED, str(fault))
    if options.output is None:
        sys.stdout.write(made)
        return 0
    descriptor = os.open(options.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o600)
        file.write(made)
    return 0


def _flush(options: argparse.Namespace) -> int:
    from nftsync.daemon.loop import flush
    from nftsync.files.lock import LockedError
    from nftsync.kernel.interfaces import LinkError
    from nftsync.kernel.nft import KernelError

    try:
        flush(config.load(options.config))
    except (KernelError, LinkError, LockedError) as fault:
        return fail(FAILED, str(fault))
    return 0
