"""`nftsync` on a kernel that lacks an expression: python -m tests.oldkernel FILE ARGUMENT…

FILE holds the word that the kernel does not know, or nothing. As on a real machine, nft itself has nothing against it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from nftables import Nftables


def main(file: str, *arguments: str) -> None:
    understood = Nftables.cmd

    def cmd(self: Nftables, text: str) -> tuple[int, str, str]:
        word = Path(file).read_text().strip()
        if word and word in text and not self.get_dry_run():
            return 1, "", "Error: Could not process rule: No such file or directory"
        answer: tuple[int, str, str] = understood(self, text)
        return answer

    Nftables.cmd = cmd
    sys.argv[1:] = arguments
    runpy.run_module("nftsync", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
