"""`nftsync` on a disk that takes its time: python -m tests.slowdisk FILE ARGUMENT…

The disk answers a wait for it (fsync) only when FILE is gone. Until then it takes writes into its cache, as disks do.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path


def main(file: str, *arguments: str) -> None:
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        while Path(file).exists():
            time.sleep(0.02)
        fsync(descriptor)

    os.fsync = slow  # type: ignore[assignment]
    sys.argv[1:] = arguments
    runpy.run_module("nftsync", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
