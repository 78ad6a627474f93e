"""A ruleset as text that nft loads (nft(8)): whole, or the smallest transaction that leads to it.

A transaction takes effect at once as a whole, or not at all (nft(8)). nftsync changes a table in
place: to delete and create it again leaks packets during the commit. It replaces only a dormant
table, which filters nothing. It flushes and refills changed chains, and adds and deletes elements
one by one. So counters and buckets survive each change that does not concern them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nftsync.ruleset.model import NAME, Chain, Elements, Ruleset, Table


def render(ruleset: Ruleset, name: str = NAME) -> str:
    """A whole ruleset as text that every version of `nft -f` loads.

    Elements are sorted, so equal input gives equal text. The text has no flags:
    only the process that keeps the tables needs them.
    name: of the tables. Another name than NAME lets you rehearse rules beside the present ones.
    """
    blocks = []
    for family, table in ruleset.tables.items():
        lines = [f"table {family} {name} {{"]
        for set_name, declared in table.sets.items():
            lines.append(f"\tset {set_name} {{")
            lines.extend(f"\t\t{part.strip()}" for part in str(declared).rstrip(";").split(";"))
            members = ruleset.elements.get(family, {}).get(set_name, {})
            if members:
                listed = ",\n\t\t\t     ".join(
                    f"{key} {statement}".rstrip() for key, statement in sorted(members.items())
                )
                lines.append(f"\t\telements = {{ {listed} }}")
            lines.append("\t}\n")
        lines.append("\n".join(chain_block(chain_name, chain) for chain_name, chain in table.chains.items()) + "}\n")
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def chain_block(name: str, chain: Chain) -> str:
    """A chain as a block inside a table's block."""
    hook = f"\t\t{chain.hook}\n" if chain.hook else ""
    return f"\tchain {name} {{\n{hook}{chain.rules}\t}}\n"


class Complaint(NamedTuple):
    """nft's complaint about a line of a text.

    line: its number, from 0.  columns: the first and the last one at fault, from 1; (0, 0) if unknown.
    """

    line: int
    message: str
    columns: tuple[int, int] = (0, 0)


class Command(NamedTuple):
    """A command of a transaction. elements: those that it adds to a set or deletes, if it does so."""

    family: str
    head: str
    elements: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.head} {{ {', '.join(self.elements)} }}" if self.elements else self.head


def transaction(before: Ruleset, after: Ruleset) -> str:
    """The commands that turn `before` into `after`; "" if nothing differs."""
    return "".join(f"{command}\n" for command in commands(before, after))


def commands(before: Ruleset, after: Ruleset) -> Iterator[Command]:
    """The commands of transaction(), in order."""
    for family in sorted(before.tables.keys() - after.tables.keys()):
        yield Command(family, f"delete table {family} {NAME}")
    for family, table in after.tables.items():
        current = before.tables.get(family)
        # The kernel cannot wake a dormant table and change its hooks in one transaction.
        if current and "dormant" in current.flags:
            yield Command(family, f"delete table {family} {NAME}")
            current = None
        if current != table:
            yield from (Command(family, head) for head in _table(f"{family} {NAME}", current or Table(), table))
        yield from _elements(
            family, current or Table(), before.elements.get(family, {}), table, after.elements.get(family, {})
        )


def add_table(table: str, flags: frozenset[str]) -> str:
    """The command that makes a table, if it is not there. table: its family and name."""
    return f"add table {table}" + (f" {{ flags {','.join(sorted(flags))}; }}" if flags else "")


def _table(table: str, before: Table, after: Table) -> Iterator[str]:
    """The commands for a table's sets and chains."""
    replaced = [name for name, declared in before.sets.items() if after.sets.get(name) != declared]
    # The kernel deletes no set or map while a rule refers to it, so this refills every chain.
    refilled = {
        name: chain
        for name, chain in after.chains.items()
        if replaced or before.foreign_objects or before.chains.get(name) != chain
    }
    removed = [
        name
        for name, chain in before.chains.items()
        if name not in after.chains or chain.hook != after.chains[name].hook
    ]
    yield add_table(table, after.flags)
    for name in before.chains:
        if name in refilled or name in removed:
            yield f"flush chain {table} {name}"
    # Foreign objects come before chains, because a map can refer to a chain.
    ours = [*(("chain", name) for name in removed), *(("set", name) for name in replaced)]
    for kind, name in (*before.foreign_objects, *ours):
        yield f"delete {kind} {table} {name}"
    for name, declared in after.sets.items():
        if before.sets.get(name) != declared:
            yield f"add set {table} {name} {{ {declared} }}"
    if refilled:
        # Each block repeats the flags; otherwise nft asks the kernel to take them off.
        flags = f"\tflags {','.join(sorted(after.flags))}\n" if after.flags else ""
        yield f"table {table} {{\n{flags}{''.join(chain_block(*item) for item in refilled.items())}}}"


def _elements(family: str, current: Table, before: Elements, wanted: Table, after: Elements) -> Iterator[Command]:
    """All deletes, then all adds: this replaces an element with a changed statement."""
    adds = []
    for name, declared in wanted.sets.items():
        present = before.get(name, {}) if current.sets.get(name) == declared else {}
        needed = after.get(name, {})
        gone = [key for key, statement in present.items() if needed.get(key) != statement]
        come = [f"{key} {statement}".rstrip() for key, statement in needed.items() if present.get(key) != statement]
        if gone:
            yield Command(family, f"delete element {family} {NAME} {name}", sorted(gone))
        if come:
            adds.append(Command(family, f"add element {family} {NAME} {name}", sorted(come)))
    yield from adds
