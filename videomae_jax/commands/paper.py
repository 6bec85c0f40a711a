"""Print the commands that compute a number of the VideoMAE paper, and what they cost.

Without arguments, lists the tables; with TABLE, its rows: the published numbers, where the recipe
was read, the FLOPs in closed form, the hours of one H100 and the videos decoded. With ROW, also the
commands in order. $DATA is a folder with a folder for each data set, $WEIGHTS one with image
models, $WORK one for lists and work directories. docs/paper.md has all of it.

examples:
  videomae paper
  videomae paper masks
  videomae paper ssv2 b --json ssv2_b.json
"""

import argparse
from typing import TYPE_CHECKING, Any

from videomae_jax.commands import options
from videomae_jax.errors import UserError

if TYPE_CHECKING:
    from videomae_jax.diagnostics.paper import Row, Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("table", metavar="TABLE", nargs="?", help="a table, such as masks")
    parser.add_argument("row", metavar="ROW", nargs="?", help="a row of the table, such as tube-90")
    options.add_json(parser, of="the rows, with their commands and costs,")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from videomae_jax.diagnostics.paper_tables import TABLES

    if args.table is None:
        for name, table in TABLES.items():
            ready = sum(bool(row.runs) for row in table.rows)
            counts = f"{len(table.rows):3} rows, {ready:2} with commands"
            print(f"{name:<16}{counts}   {table.title} ({table.where})")
        names = list(TABLES)
    else:
        if args.table not in TABLES:
            raise UserError(f"table {args.table!r} is unknown: use one of {', '.join(TABLES)}")
        names = [args.table]
        print_table(TABLES[args.table], row_name=args.row)
    if args.json:
        found = {name: [as_json(row) for row in TABLES[name].rows] for name in names}
        if args.row:
            found = {
                name: [r for r in rows if r["row"] == args.row] for name, rows in found.items()
            }
        options.write_json(args.json, found)


def print_table(table: "Table", *, row_name: str | None) -> None:
    """Print the rows of a table, or one of them with its commands."""
    from videomae_jax.diagnostics.paper import row_commands

    rows = [row for row in table.rows if row_name in (None, row.name)]
    if not rows:
        known = ", ".join(row.name for row in table.rows if row.runs)
        raise UserError(f"row {row_name!r} is unknown: use one of {known}")
    print(f"{table.title} ({table.where}); run here: {table.ran}")
    for row in rows:
        print(f"{row.name}: {describe(row)}")
    if row_name:
        print("\n".join(row_commands(rows[0])))


def describe(row: "Row") -> str:
    """Return the numbers of a row in one line."""
    from videomae_jax.diagnostics.paper import row_cost, source_of

    words = [f"{name} {number:g}" for name, number in row.published.items()]
    if row.runs:
        cost = row_cost(row)
        words += [
            f"{cost.flops / 1e18:.3g} EFLOP",
            f"{cost.hours:.3g} H100-hours",
            f"{cost.decoded / 1e6:.3g} M videos decoded",
            f"recipe: {source_of(row)}",
        ]
    return "; ".join(filter(None, [*words, row.note]))


def as_json(row: "Row") -> dict[str, Any]:
    """Return a row as JSON types."""
    from videomae_jax.diagnostics.paper import row_commands, row_cost, source_of

    found: dict[str, Any] = {"row": row.name, "published": row.published, "note": row.note}
    if not row.runs:
        return found
    return {
        **found,
        "recipe": source_of(row),
        "commands": row_commands(row),
        **row_cost(row)._asdict(),
    }
