"""A ruleset as text that nft loads (nft(8)): whole, or the smallest transaction that leads to it.

A transaction takes effect at once as a whole, or not at all (nft(8)). nftsync changes a table in
place: to delete and create it again leaks packets during the commit. It replaces only a dormant
table, which filters nothing. It flushes and refills changed chains, and adds and deletes elements
one by one. So counters and buckets survive each change that does not concern them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nftsync.ruleset.tables import NAME, Chain, Elements, Ruleset, Set, Table


def render(shown: Ruleset, name: str = NAME) -> str:
    """A whole ruleset as text that every version of `nft -f` loads.

    Elements are sorted, so equal input gives equal text. The text has no flags (see flagged()):
    only the process that keeps the tables needs them.
    name: of the tables. Another name than NAME lets you rehearse rules beside the present ones.
    """
    blocks = []
    for family, table in shown.tables.items():
        lines = [f"table {family} {name} {{"]
        for set_name, declared in table.sets.items():
            lines.append(f"\tset {set_name} {{")
            lines.extend(f"\t\t{part.strip()}" for part in str(declared).rstrip(";").split(";"))
            members = shown.elements.get(family, {}).get(set_name, {})
            if members:
                listed = ",\n\t\t\t     ".join(f"{key} {statement}".rstrip() for key, statement in sorted(members.items()))
                lines.append(f"\t\telements = {{ {listed} }}")
            lines.append("\t}\n")
        lines.append("\n".join(chain_block(chain_name, chain) for chain_name, chain in table.chains.items()) + "}\n")
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def chain_block(name: str, chain: Chain) -> str:
    """A chain as a block inside a table's block."""
    hook = f"\t\t{chain.hook}\n" if chain.hook else ""
    return f"\tchain {name} {{\n{hook}{chain.rules}\t}}\n"


def flagged(table: str, flags: frozenset[str]) -> str:
    """A table's block with flags.

    Each block repeats them; otherwise nft asks the kernel to take them off.
    """
    head, brace, rest = table.partition("{\n")
    return f"{head}{brace}\tflags {','.join(sorted(flags))}\n{rest}" if flags else table


def transaction(before: Ruleset, after: Ruleset) -> str:
    """The commands that turn `before` into `after`; "" if nothing differs."""
    lines = [f"delete table {family} {NAME}" for family in sorted(before.tables.keys() - after.tables.keys())]
    for family, table in after.tables.items():
        standing = before.tables.get(family)
        # The kernel cannot wake a dormant table and change its hooks in one transaction.
        if standing and "dormant" in standing.flags:
            lines.append(f"delete table {family} {NAME}")
            standing = None
        lines.extend(_table(f"{family} {NAME}", standing or Table(), table, new=standing is None))
        held = before.elements.get(family, {}) if standing else {}
        lines.extend(_elements(f"{family} {NAME}", held, after.elements.get(family, {}), standing or Table(), table))
    return "".join(line + "\n" for line in lines)


def _table(table: str, before: Table, after: Table, *, new: bool) -> Iterator[str]:
    if before == after and not new:
        return
    replaced = _differing(before.sets, after.sets)
    # The kernel deletes no set or map while a rule refers to it, so this refills every chain.
    everything = bool(replaced or before.foreign_objects)
    refilled = {name: chain for name, chain in after.chains.items() if everything or before.chains.get(name) != chain}
    removed = [
        name for name, chain in before.chains.items()
        if name not in after.chains or chain.hook != after.chains[name].hook
    ]
    yield f"add table {table}" + (f" {{ flags {','.join(sorted(after.flags))}; }}" if after.flags else "")
    for name in before.chains:
        if name in refilled or name in removed:
            yield f"flush chain {table} {name}"
    for kind, name in before.foreign_objects:  # before chains: a map can refer to a chain
        yield f"delete {kind} {table} {name}"
    for name in removed:
        yield f"delete chain {table} {name}"
    for name in replaced:
        yield f"delete set {table} {name}"
    for name, declared in after.sets.items():
        if before.sets.get(name) != declared:
            yield f"add set {table} {name} {{ {declared} }}"
    if refilled:
        blocks = "".join(chain_block(name, chain) for name, chain in refilled.items())
        yield flagged(f"table {table} {{\n{blocks}}}", after.flags)


def _differing(before: Mapping[str, Set], after: Mapping[str, Set]) -> list[str]:
    """The present sets that are not wanted, or wanted with another declaration."""
    return [name for name, declared in before.items() if after.get(name) != declared]


def _elements(table: str, before: Elements, after: Elements, standing: Table, wanted: Table) -> Iterator[str]:
    """All deletes, then all adds: this replaces an element with a changed statement."""
    adds = []
    for name, declared in wanted.sets.items():
        held = before.get(name, {}) if standing.sets.get(name) == declared else {}
        needed = after.get(name, {})
        gone = [key for key, statement in held.items() if needed.get(key) != statement]
        come = [f"{key} {statement}".rstrip() for key, statement in needed.items() if held.get(key) != statement]
        if gone:
            yield f"delete element {table} {name} {{ {', '.join(sorted(gone))} }}"
        if come:
            adds.append(f"add element {table} {name} {{ {', '.join(sorted(come))} }}")
    yield from adds
