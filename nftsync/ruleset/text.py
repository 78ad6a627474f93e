"""A ruleset as text that nft loads (nft(8))."""

from __future__ import annotations

from nftsync.ruleset.tables import NAME, Chain, Ruleset


def render(shown: Ruleset, name: str = NAME) -> str:
    """A whole ruleset as text that `nft -f` loads, whatever nft's version; the same input gives the same text, in sorted order.

    Without flags, which are for who keeps the tables (see flagged()).
    name: of the tables; another one than NAME serves to rehearse rules beside those that stand.
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
    """A chain as it stands inside a table's block."""
    hook = f"\t\t{chain.hook}\n" if chain.hook else ""
    return f"\tchain {name} {{\n{hook}{chain.rules}\t}}\n"


def flagged(table: str, flags: frozenset[str]) -> str:
    """A table's block with flags, which have to be repeated in every block, or nft asks to take them off."""
    head, brace, rest = table.partition("{\n")
    return f"{head}{brace}\tflags {','.join(sorted(flags))}\n{rest}" if flags else table
