"""The command line. An error is one line on stderr and an exit status: 1 failure, 2 wrong usage."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nftsync import __version__
from nftsync.cli import questions
from nftsync.cli.output import FAILED, WRONG, discard_output, fail, open_output
from nftsync.config import DEFAULT_PATH, InputError, load
from nftsync.daemon import logs
from nftsync.daemon.logs import LogFormat
from nftsync.objects.names import Malformed, NftsyncError
from nftsync.objects.ratelimit import parse_ratelimit
from nftsync.ruleset.text import render

Command = Callable[[argparse.Namespace], int]
Option = tuple[str, dict[str, Any]]  # an argument's name, and argparse's settings for it


_JOINED = (
    "note: the kernel can join many packets of a connection into one (GRO), and then the limit counts one. "
    "Use a limit in bytes, e.g. '1 mbytes/second', if this matters"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    open_output()
    options = _parser().parse_args(arguments)
    logs.configure(options.log_level, LogFormat(options.log_format))
    failed = WRONG if options.command is questions.diff else FAILED  # diff's 1 is an answer
    try:
        status: int = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has closed the pipe
        discard_output()
        return failed
    except KeyboardInterrupt:
        return 130
    except NftsyncError as error:
        return fail(WRONG if isinstance(error, InputError) else failed, str(error))
    except OSError as error:
        discard_output()
        return fail(failed, f"{error.filename or 'cannot write the output'}: {error.strerror}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nftsync", description="nftables firewall of the router in front of a Kubernetes cluster."
    )
    parser.add_argument("--version", action="version", version=f"nftsync {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, summary, *own in _COMMANDS:
        epilog = _DIFF_STATUS if command is questions.diff else _STATUS
        added = commands.add_parser(name, help=summary, description=summary, epilog=epilog)
        added.set_defaults(command=command)
        for option, settings in (*_SHARED, *own):
            added.add_argument(option, **settings)
    return parser


# Commands that use the kernel or the cluster import their modules themselves, so that the other
# commands work without them.


def _run(options: argparse.Namespace) -> int:
    from nftsync.daemon.loop import Daemon, Options

    return Daemon(Options(options.config, tuple(options.manifests), options.once)).run()


def _boot(options: argparse.Namespace) -> int:
    from nftsync.daemon.boot import boot
    from nftsync.kernel.nft import KernelError

    try:
        boot(options.config, early=options.early)
    except KernelError as error:
        return fail(FAILED, f"cannot load the rules: {error}")
    return 0


def _render(options: argparse.Namespace) -> int:
    from nftsync.cli.preview import local_chain, preview, read

    if not options.manifests:
        return fail(WRONG, "render needs --manifests PATH…: YAML files, or folders of them")
    config = load(options.config)
    result = preview(config, read(config, options.manifests), local_chain(config))
    assert result.wanted is not None
    sys.stdout.write(render(result.wanted))
    sys.stdout.flush()
    for rejection in result.rejections:
        print(rejection, file=sys.stderr)
    return FAILED if result.rejections and options.strict else 0


def _ratelimit(options: argparse.Namespace) -> int:
    try:
        limit = parse_ratelimit(" ".join(options.text))
    except Malformed as error:
        return fail(WRONG, str(error))
    print(limit)
    if limit.packets:
        print(_JOINED, file=sys.stderr)
    return 0


def _pools(options: argparse.Namespace) -> int:
    from nftsync.cli.preview import allowed_in_cluster, allowed_in_manifests

    config = load(options.config)
    allowed = allowed_in_manifests(config, options.manifests) if options.manifests else allowed_in_cluster(config)
    if options.json:
        print(allowed.json())
        return 0
    print(allowed.text(), flush=True)
    for rejection in allowed.rejections:
        print(rejection, file=sys.stderr)
    return 0


def _check(options: argparse.Namespace) -> int:
    from nftsync.cli.check import Level, findings

    status = 0
    for finding in findings(options.config, options.manifests):
        print(finding)
        status = FAILED if finding.level is Level.FAIL else status
    return status


def _bootstrap(options: argparse.Namespace) -> int:
    from nftsync.cli.bootstrap import administrators, bootstrap, text

    if options.print:
        sys.stdout.write(text())
        return 0
    kubeconfig = options.kubeconfig or administrators()
    made = bootstrap(kubeconfig, lambda line: print(line, file=sys.stderr), options.server)
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

    flush(load(options.config))
    return 0


def _option(name: str, meaning: str, **settings: Any) -> Option:
    return name, {"help": meaning, **settings}


def _switch(name: str, meaning: str) -> Option:
    return _option(name, meaning, action="store_true")


def _file(name: str, meaning: str) -> Option:
    return _option(name, meaning, type=Path, metavar="FILE")


_STATUS = "Exit status: 0 success, 1 failure, 2 wrong usage."
_DIFF_STATUS = "Exit status: 0 no difference, 1 some difference, 2 trouble."

# fmt: off
_SHARED = (
    _file("--config", f"the configuration (default: {DEFAULT_PATH})"),
    ("--log-level", {"choices": ("debug", "info", "warning", "error"), "default": "info"}),
    _option("--log-format", "auto: the journal, or else text", choices=tuple(LogFormat), default=LogFormat.AUTO),
)
_MANIFESTS = _option("--manifests", "YAML files, or folders of them",
                     type=Path, nargs="+", action="extend", default=[], metavar="PATH")
_WORDS = "[SOURCE] ADDRESS:PORT[/tcp|udp|sctp], or NAMESPACE/NAME"

# Each command's name, function, summary, and the options besides the shared ones.
_COMMANDS: tuple[tuple[str, Command, str, *tuple[Option, ...]], ...] = (
    ("run", _run, "Keep the kernel's ruleset in line with the cluster, or with manifests.",
     _MANIFESTS, _switch("--once", "stop after the first complete sync")),
    ("boot", _boot, "Load the remembered rules, without a network and without a cluster.",
     _switch("--early", "load the base only while no interface but lo is up")),
    ("render", _render, "Print the ruleset of manifests. This changes nothing.",
     _MANIFESTS, _switch("--strict", "exit with 1 if anything was rejected")),
    ("pools", _pools, "Print the legal addresses, and the object behind each.",
     _MANIFESTS, _switch("--json", "for programs: ranges as first-last, and rejections")),
    ("ratelimit", _ratelimit, "Check the text of a ratelimit annotation.",
     _option("text", "e.g. '2 mbytes/second burst 512 kbytes'", metavar="TEXT", nargs="+")),
    ("status", questions.status, "Show the state of the running daemon.",
     _switch("--json", "for programs"), _switch("--watch", "repeat until you press Ctrl-C")),
    ("explain", questions.explain, "Say why a packet passes or not, or show the result for a Service.",
     _MANIFESTS, _option("words", _WORDS, metavar="WORD", nargs="*"), _switch("--json", "for programs")),
    ("confirm", questions.confirm, "Keep settings of the Nft resource that nftsync would roll back (confirm_seconds)."),
    ("top", questions.top, "Show the Services with the most traffic, and the packets that their limits drop.",
     _switch("--drops", "show the Services with the most dropped packets first"),
     _option("--seconds", "time of a measurement (default: %(default)s)",
             type=float, default=questions.WATCH, metavar="N"),
     _switch("--once", "stop after one measurement")),
    ("diff", questions.diff, "Show the difference between the kernel and the wanted ruleset, or that of manifests.",
     _MANIFESTS),
    ("check", _check, "Check configuration, local chain, kubeconfig, permissions, nft, kernel, NIC and other tables.",
     _MANIFESTS),
    ("bootstrap", _bootstrap, "Set up a cluster for its routers, and print the routers' kubeconfig.",
     _file("--kubeconfig", "the administrator's (default: kubectl's)"),
     _option("--server", "the API server's address for routers (default: as in that kubeconfig)", metavar="URL"),
     _switch("--print", "print the objects, and contact no server"),
     _file("--output", "write the routers' kubeconfig to FILE, with mode 0600")),
    ("flush", _flush, "Remove nftsync's tables from the kernel. This opens the firewall."),
)
# fmt: on
