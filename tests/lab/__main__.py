"""`make demo`, or `python -m tests.lab [--manifests PATH…]`. Needs root and half a minute."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from nftsync.cli.output import open_output
from nftsync.config import InputError
from tests.lab.demo import DemoError, demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the demo; returns the exit status."""
    open_output()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a pipe shows each step at once, too
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab", description="Build a lab of three network namespaces and show which packets pass."
    )
    what = "YAML files, or folders of them, instead of the five example Services"
    parser.add_argument("--manifests", type=Path, nargs="+", metavar="PATH", help=what)
    try:
        demo(parser.parse_args(arguments).manifests)
    except (DemoError, InputError) as fault:
        print(f"demo: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
