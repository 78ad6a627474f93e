"""Renders a ruleset as text that nft loads (nft(8))."""

from __future__ import annotations

from nftsync.ruleset.tables import NAME, Chain, Ruleset


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
