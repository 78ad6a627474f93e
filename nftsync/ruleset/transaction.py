"""From the ruleset that is to the one that should be: the smallest nft transaction, as text.

Everything in one transaction takes effect at once or not at all (nft(8)). A running table is changed in place: it is never
deleted and created again, since that leaks packets while it commits; only one that somebody has switched off is, which filters
nothing. Chains that differ are flushed and refilled, elements are added and deleted one by one, so counters and buckets survive
every change that does not concern them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nftsync.ruleset.tables import NAME, Elements, Ruleset, Set, Table
from nftsync.ruleset.text import chain_block, flagged


def transaction(before: Ruleset, after: Ruleset) -> str:
    """The commands that turn `before` into `after`; "" if nothing differs."""
    lines = [f"delete table {family} {NAME}" for family in sorted(before.tables.keys() - after.tables.keys())]
    for family, table in after.tables.items():
        standing = before.tables.get(family)
        if standing and "dormant" in standing.flags:  # the kernel does not wake a table and change its hooks in one transaction
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
    # Nothing can be deleted while a rule refers to it: then every chain is refilled.
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
    for kind, name in before.foreign_objects:  # first: a map can refer to a chain
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
    """Sets that stand but should not, or not like this."""
    return [name for name, declared in before.items() if after.get(name) != declared]


def _elements(table: str, before: Elements, after: Elements, standing: Table, wanted: Table) -> Iterator[str]:
    """First every delete, then every add, so that an element whose statement changed is replaced."""
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
