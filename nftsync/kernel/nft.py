"""The kernel's nf_tables: check and apply through libnftables, read back through netlink.

libnftables runs in this process: adding an element takes 0.1 ms, starting nft takes 20 times as long.
A context is not thread-safe: one thread owns a Kernel.
"""

import errno
import os
import re
import struct
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

from nftables import Nftables

from nftsync.kernel import netlink, readback
from nftsync.kernel.netlink import PROTOCOL, DumpError, Netlink
from nftsync.objects.names import NftsyncError
from nftsync.plan.plan import Found
from nftsync.ruleset.model import NAME, OWNED
from nftsync.ruleset.text import Complaint

T = TypeVar("T")


class KernelError(NftsyncError):
    """nft or the kernel refused a transaction; no part of it took effect."""


class Kernel:
    """The tables `inet nftsync` and `netdev nftsync` of this network namespace.

    Raises KernelError without CAP_NET_ADMIN.
    """

    def __init__(self) -> None:
        self._netlink = Netlink(PROTOCOL)
        try:
            netlink.generation(self._netlink)
        except DumpError as error:
            if error.number == errno.EPERM:  # libnftables would complain on stderr at every command
                raise KernelError("nftables can't be read or changed without CAP_NET_ADMIN: run this as root") from None
        self._commands = Nftables()
        self._rehearsal = Nftables()
        self._rehearsal.set_dry_run(True)

    @cached_property
    def flags(self) -> frozenset[str]:
        """Flags of a table that only we can change and that outlives this process.

        They need nft 1.1 and Linux 6.9; otherwise this is empty.
        """
        probe = f"inet {NAME}-probe"
        code, _, _ = self._commands.cmd(
            f"add table {probe} {{ flags {','.join(sorted(OWNED))}; }}\ndelete table {probe}\n"
        )
        return OWNED if code == 0 else frozenset()

    def apply(self, text: str) -> None:
        """Run a transaction, whole or not at all. Raises KernelError."""
        _run(self._commands, text)

    def apply_lines(self, lines: Sequence[str]) -> list[Complaint]:
        """Run a transaction, whole or not at all. Returns nft's complaints.

        The kernel keeps looking for errors after the first one.
        """
        return _complaints(self._commands, lines)

    def check_lines(self, lines: Sequence[str]) -> list[Complaint]:
        """Let nft and the kernel judge a transaction without running it. Returns nft's complaints.

        The kernel judges each command but not the result as a whole, such as chains that jump in a circle.
        """
        return _complaints(self._rehearsal, lines)

    def read(self) -> Found:
        """Read our tables back. The result omits missing tables. Raises KernelError."""
        return self._read(readback.read)

    def read_tables(self) -> Found:
        """Read our tables without elements, which costs much less. Raises KernelError."""
        return self._read(readback.read_tables)

    def generation(self) -> int:
        """The number of transactions in this network namespace, by any program. Raises KernelError."""
        return self._read(netlink.generation)

    def _read(self, read: Callable[[Netlink], T]) -> T:
        try:
            return read(self._netlink)
        except DumpError as error:
            raise KernelError(str(error)) from error
        except (ValueError, LookupError, struct.error) as error:  # such as elements of another type than their set
            raise KernelError(
                f"our tables hold something that nft does not make, and can't be read: {error!r}"
            ) from error


def _run(context: Nftables, text: str) -> None:
    code, _, error = context.cmd(text)
    if code != 0:
        raise KernelError(sentence(error))


def _complaints(context: Nftables, lines: Sequence[str]) -> list[Complaint]:
    """Give a context a transaction. nft names lines only for files.

    A complaint without a line gets the number after the last line.
    """
    with os.fdopen(os.memfd_create("nftsync"), "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
        file.flush()
        path = f"/proc/self/fd/{file.fileno()}"
        code, _, error = context.cmd(f'include "{path}"')
    if code == 0:
        return []
    # For an included file nft prints "In file included from PATH:LINE:COLUMNS:", then the error.
    complaints = re.findall(rf"{path}:([0-9]+):([0-9]+)-([0-9]+):(?:[^\n]*\n)?[^\n]*?Error: ([^\n]*)", error)
    return [
        Complaint(int(line) - 1, _printable(said), (int(first), int(last))) for line, first, last, said in complaints
    ] or [Complaint(len(lines), sentence(error))]


def sentence(error: str) -> str:
    """nft's first complaint on one printable line, without its position: the reader does not see the text."""
    first = next((line for line in error.splitlines() if "Error:" in line), error)
    said = first.partition("Error:")[2].strip() or first.strip() or "nft failed without saying why"
    return _printable(said)


def _printable(said: str) -> str:
    """Escape unprintable characters: nft quotes its input, such as the local chain."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in said)
