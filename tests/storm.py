"""A program that changes nf_tables all the time, in a table that is not ours."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nftables import Nftables

from tests.lab.namespace import Namespace


@contextmanager
def storm(namespace: Namespace, rate: float) -> Iterator[None]:
    """Change nf_tables while the block runs. rate: changes a second, 0 for as many as possible."""
    process = namespace.popen([sys.executable, "-m", "tests.storm", str(rate)], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == "it blows\n"
        yield
        assert process.poll() is None, "else nothing was proved"
    finally:
        process.kill()
        process.communicate()


def _blow(pause: float) -> None:
    """Change nf_tables for ten minutes: a program that waits for the end must fail its test."""
    nft, began, number = Nftables(), time.monotonic(), 0
    nft.cmd("add table inet storm; add set inet storm s { type ipv4_addr; }")
    while time.monotonic() < began + 600:
        nft.cmd(f"add element inet storm s {{ 10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255} }}")
        number += 1
        if number == 20:
            print("it blows", flush=True)
        time.sleep(pause)


if __name__ == "__main__":
    _blow(1 / float(sys.argv[1]) if float(sys.argv[1]) else 0)
