"""The command line. An error is one line on stderr and an exit status: 1 failure, 2 wrong usage."""

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
from nftsync.objects.names import Malformed
from nftsync.objects.ratelimit import parse_ratelimit
from nftsync.ruleset.text import render

_PATHS: dict[str, Any] = {"type": Path, "nargs": "+", "action": "extend", "metavar": "PATH"}
_STATUS = "Exit status: 0 success, 1 failure, 2 wrong usage."
_DIFF_STATUS = "Exit status: 0 no difference, 1 some difference, 2 trouble."

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    open_output()
    options = _parser().parse_args(arguments)
    logs.configure(options.log_level, LogFormat(options.log_format))
    command: Command = options.command
    failed = WRONG if command is diff else FAILED  # diff's 1 is an answer
    try:
        status = command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has closed the pipe
        discard_output()
        return failed
    except KeyboardInterrupt:
        return 130
    except InputError as fault:
        return fail(WRONG, str(fault))
    except OSError as fault:
        discard_output()
        what = fault.filename or "cannot write the output"
        return fail(failed, f"{what}: {fault.strerror}")
    else:
        return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nftsync", description="nftables firewall of the router in front of a Kubernetes cluster."
    )
    parser.add_argument("--version", action="version", version=f"nftsync {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, metavar="FILE", help=f"the configuration (default: {config.DEFAULT_PATH})")
    shared.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    formats = tuple(LogFormat)
    shared.add_argument("--log-format", choices=formats, default=LogFormat.AUTO, help="auto: the journal, or else text")
    manifests = argparse.ArgumentParser(add_help=False)
    manifests.add_argument("--manifests", **_PATHS, help="YAML files, or folders of them")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, summary: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        status = _DIFF_STATUS if command is diff else _STATUS
        added = commands.add_parser(name, help=summary, description=summary, epilog=status, parents=[shared, *parents])
        added.set_defaults(command=command)
        return added

    run = add("run", _run, "Keep the kernel's ruleset in line with the cluster, or with manifests.", manifests)
    run.add_argument("--once", action="store_true", help="stop after the first complete sync")
    loaded = add("boot", _boot, "Load the remembered rules, without a network and without a cluster.")
    loaded.add_argument("--early", action="store_true", help="load the base only while no interface but lo is up")
    shown = add("render", _render, "Print the ruleset of manifests. This changes nothing.", manifests)
    shown.add_argument("--strict", action="store_true", help="exit with 1 if anything was rejected")
    legal = add("pools", _pools, "Print the legal addresses, and the object behind each.", manifests)
    legal.add_argument("--json", action="store_true", help="for programs: ranges as first-last, and rejections")
    limit = add("ratelimit", _ratelimit, "Check the text of a ratelimit annotation.")
    limit.add_argument("text", metavar="TEXT", nargs="+", help="e.g. '2 mbytes/second burst 512 kbytes'")
    add_questions(add, manifests)
    add("check", _check, "Check configuration, kubeconfig, permissions, nft, kernel and NIC.")
    made = add("bootstrap", _bootstrap, "Set up a cluster for its routers, and print the routers' kubeconfig.")
    made.add_argument("--kubeconfig", type=Path, metavar="FILE", help="the administrator's (default: kubectl's)")
    made.add_argument("--server", metavar="URL", help="the API server's address for routers (default: as in that kubeconfig)")
    made.add_argument("--print", action="store_true", help="print the objects, and contact no server")
    made.add_argument("--output", type=Path, metavar="FILE", help="write the routers' kubeconfig to FILE, with mode 0600")
    add("flush", _flush, "Remove nftsync's tables from the kernel. This opens the firewall.")
    return parser


# Commands that use the kernel or the cluster import their modules themselves, so that the other
# commands work without them.


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
        return fail(FAILED, f"cannot load the rules: {fault}")
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
    except Malformed as fault:
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
    from nftsync.daemon.boot import flush
    from nftsync.files.lock import LockedError
    from nftsync.kernel.interfaces import LinkError
    from nftsync.kernel.nft import KernelError

    try:
        flush(config.load(options.config))
    except (KernelError, LinkError, LockedError) as fault:
        return fail(FAILED, str(fault))
    return 0
