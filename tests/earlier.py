"""An earlier `nftsync`, which takes local chains that include files or name hosts: python -m tests.earlier ARGUMENT…"""

from __future__ import annotations

import runpy
import sys

from nftsync.ruleset import localchain


def main(*arguments: str) -> None:
    localchain._judge = lambda *_: None
    sys.argv[1:] = arguments
    runpy.run_module("nftsync", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
