"""`nftsync` on a kernel that lacks an expression: python -m tests.oldkernel FILE ARGUMENT…

FILE holds the word that the kernel does not know, or nothing. As on a real machine, nft itself
accepts it.
"""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

from nftables import Nftables


def main(file: str, *arguments: str) -> None:
    understood = Nftables.cmd

    def cmd(self: Nftables, text: str) -> tuple[int, str, str]:
        word = Path(file).read_text().strip()
        included = re.fullmatch(r'include "(.*)"', text)
        lines = (Path(included[1]).read_text() if included else text).splitlines()
        refused = next((number for number, line in enumerate(lines, start=1) if word and word in line), 0)
        if refused and not self.get_dry_run():
            where = f"{included[1]}:{refused}:1-2: " if included else ""
            return 1, "", f"{where}Error: Could not process rule: No such file or directory"
        answer: tuple[int, str, str] = understood(self, text)
        return answer

    Nftables.cmd = cmd
    sys.argv[1:] = arguments
    runpy.run_module("nftsync", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
