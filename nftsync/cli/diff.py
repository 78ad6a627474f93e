"""`nftsync diff`: the kernel's ruleset against another one, as nft lists both.

nftsync loads the other ruleset into a new network namespace, where it can do no harm. So both
texts come from the same nft and differ only where the rules differ.
"""

import difflib
import os
import re
from contextlib import closing

from nftables import Nftables

from nftsync.kernel.netns import Namespace
from nftsync.kernel.nft import Kernel, KernelError, sentence
from nftsync.ruleset.model import INET, NAME, NETDEV

_ELEMENTS = re.compile(r"^(\s*)elements = \{(.*?)\}", re.MULTILINE | re.DOTALL)
_KEPT = re.compile(r"^(table .* \{)(?: # progname .*)?\n(?:\tflags (?:owner|persist|owner,persist)\n\n)?", re.MULTILINE)
# The indices of the public interfaces, which differ between machines.
_INDICES = re.compile(r"(?<=\tset public-links \{\n\t\ttype iface_index\n)\t\telements = \{[^}]*\}\n")
# The elements that packets have added, as to a `meter` of nft 1.1.
_ADDED = re.compile(r"(?m)(^\t\tflags dynamic\b.*\n(?:\t\ttimeout .*\n)?)\t\telements = \{[^}]*\}\n")
_DEVICE = re.compile(r'^\s*type filter hook ingress device "([^"]+)"', re.MULTILINE)


def differences(wanted: str) -> str:
    """The unified diff from this network namespace's rules to `wanted`; "" if they are equal.

    Raises PermissionError if the user is not root, KernelError if the kernel rejects `wanted`, and
    OSError or LabError if the kernel makes no namespace.
    """
    if os.geteuid() != 0:
        raise PermissionError
    here = _listed()
    with closing(Namespace()) as namespace:
        for number, device in enumerate(sorted(set(_DEVICE.findall(wanted)))):
            namespace.add_nics(device, f"other{number}")
        there = namespace.call(_loaded, wanted)
    lines = difflib.unified_diff(here.splitlines(), there.splitlines(), "kernel", "wanted", lineterm="", n=2)
    return "".join(f"{line}\n" for line in lines)


def _loaded(text: str) -> str:
    Kernel().apply(text)
    return _listed()


def _listed() -> str:
    """Our tables without counters, sorted, with one element in a line."""
    commands = Nftables()
    commands.set_stateless_output(True)
    listed = ""
    for family in (INET, NETDEV):
        code, output, error = commands.cmd(f"list table {family} {NAME}")
        if code and "No such file" not in error:
            raise KernelError(sentence(error))
        kept = _KEPT.sub(r"\1\n", str(output))  # a table's owner is no difference
        listed += _sorted_blocks(_ELEMENTS.sub(_sorted, _INDICES.sub("", _ADDED.sub(r"\1", kept))))
    return listed


def _sorted(match: re.Match[str]) -> str:
    indent, listed = match.groups()
    elements = sorted(" ".join(element.split()) for element in listed.split(",") if element.strip())
    return f"{indent}elements = {{\n" + "".join(f"{indent}\t{element},\n" for element in elements) + f"{indent}}}"


def _sorted_blocks(table: str) -> str:
    """A table with its sets and chains sorted by name; the kernel lists them by age."""
    head, *blocks = re.split(r"^\t(?=\w+ [\w-]+ \{$)", table, flags=re.MULTILINE)
    if not blocks:
        return table
    blocks[-1] = blocks[-1].removesuffix("}\n")
    return head + "".join(sorted(f"\t{block.rstrip()}\n\n" for block in blocks)) + "}\n"
