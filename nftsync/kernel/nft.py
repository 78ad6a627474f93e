"""The kernel's nf_tables: check and apply through libnftables, read back through netlink.

libnftables runs in this process: adding an element takes a tenth of a millisecond, starting nft takes twenty times
that. A context is not thread-safe: one thread owns a Kernel.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from nftables import Nftables

from nftsync.kernel import nf_tables, readback
from nftsync.kernel.netlink import DumpError, Netlink
from nftsync.kernel.nf_tables import PROTOCOL
from nftsync.plan.plan import Found
from nftsync.ruleset.tables import NAME, OWNED

T = TypeVar("T")
_CAP_NET_ADMIN = 12  # linux/capability.h


class KernelError(Exception):
    """nft or the kernel refused; nothing of the transaction took effect."""


class Kernel:
    """The tables `inet nftsync` and `netdev nftsync` of this network namespace. Raises KernelError without CAP_NET_ADMIN."""

    def __init__(self) -> None:
        if not _capable():  # libnftables would complain on stderr, at every single command
            raise KernelError("nftables can't be read or changed without CAP_NET_ADMIN: run this as root")
        self._commands = Nftables()
        self._rehearsal = Nftables()
        self._rehearsal.set_dry_run(True)
        self._netlink = Netlink(PROTOCOL)

    @cached_property
    def flags(self) -> frozenset[str]:
        """Of a table that nobody else can change and that is there when this process has ended: nft 1.1 and Linux 6.9 have them."""
        probe = f"inet {NAME}-probe"
        code, _, _ = self._commands.cmd(f"add table {probe} {{ flags {','.join(sorted(OWNED))}; }}\ndelete table {probe}\n")
        return OWNED if code == 0 else frozenset()

    def apply(self, text: str) -> None:
        """Run a transaction, whole or not at all. Raises KernelError."""
        _run(self._commands, text)

    def apply_lines(self, lines: Sequence[str]) -> list[tuple[int, str]]:
        """Run a transaction, whole or not at all; returns nft's complaints: the number of the line, from 0, and a sentence.

        nft names the lines of a file alone, and the kernel goes on to look for errors after the first one. A complaint that names
        no line is given for the one after the last.
        """
        with os.fdopen(os.memfd_create("nftsync"), "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            path = f"/proc/self/fd/{file.fileno()}"
            code, _, error = self._commands.cmd(f'include "{path}"')
        if code == 0:
            return []
        # An error in a file that a line includes is told as "In file included from PATH:LINE:COLUMNS:", and on the next line.
        complaints = re.findall(rf"{path}:([0-9]+):[0-9-]+:(?:[^\n]*\n)?[^\n]*?Error: ([^\n]*)", error)
        return [(int(line) - 1, _printable(said)) for line, said in complaints] or [(len(lines), sentence(error))]

    def check(self, text: str) -> None:
        """Let nft parse and evaluate a transaction without running it. Raises KernelError."""
        _run(self._rehearsal, text)

    def read(self) -> Found:
        """Read our tables back. A table that is not there is simply not in the result. Raises KernelError."""
        return self._read(readback.read)

    def read_tables(self) -> Found:
        """The same without elements, which costs much less. Raises KernelError."""
        return self._read(readback.read_tables)

    def generation(self) -> int:
        """How many transactions there were in this network namespace, of whomever. Raises KernelError."""
        return self._read(nf_tables.generation)

    def _read(self, read: Callable[[Netlink], T]) -> T:
        try:
            return read(self._netlink)
        except DumpError as fault:
            raise KernelError(str(fault)) from fault
        except (ValueError, LookupError, struct.error) as fault:  # a set whose type is not that of its elements, …
            raise KernelError(f"our tables hold something that nft does not make, and can't be read: {fault!r}") from fault


def _capable() -> bool:
    """Whether this process has CAP_NET_ADMIN: capabilities(7), proc(5)."""
    status = Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace")
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> _CAP_NET_ADMIN & 1)


def _run(context: Nftables, text: str) -> None:
    code, _, error = context.cmd(text)
    if code != 0:
        raise KernelError(sentence(error))


def sentence(error: str) -> str:
    """The first complaint of nft, on one printable line, without its position in a text that nobody sees."""
    first = next((line for line in error.splitlines() if "Error:" in line), error)
    said = first.partition("Error:")[2].strip() or first.strip() or "nft failed without saying why"
    return _printable(said)


def _printable(said: str) -> str:
    """nft quotes what it was given, the local chain for one."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in said)
