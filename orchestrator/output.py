"""Output for programs: `--json` and `--csv`, one or the other, and nothing else on standard output."""

import csv
import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer


def _one_alone(context: typer.Context, value: bool) -> bool:
    if value and (context.params.get("as_json") or context.params.get("as_csv")):
        raise typer.BadParameter("--json and --csv exclude one another: standard output holds one of them")
    return value


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.", callback=_one_alone)]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print the main table as CSV.", callback=_one_alone)]


def print_found(command: str, found: Mapping[str, Any], *, as_csv: bool) -> None:
    """Prints what a command found: all of it as JSON, or the rows of its main table as CSV.

    Args:
        command: whose columns they are (`csv_columns.TABLES`).
        found: ready for JSON.
        as_csv: whether as CSV.
    """
    if as_csv:
        _print_csv(command, found)
    else:
        print(json.dumps(found, indent=1, default=str))


def _print_csv(command: str, found: Mapping[str, Any]) -> None:
    from orchestrator.csv_columns import TABLES

    table = TABLES[command]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(table.columns)
    for row in found[table.rows] if table.rows else [found]:
        writer.writerow(_cell(_at(row, path)) for path in table.columns)


def _at(row: Mapping[str, Any], path: str) -> Any:
    """The value at a path such as `fits.hull.k`; None where something on the way is missing."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _cell(value: Any) -> str:
    """A value as text: nothing for None, true and false, members of a list with semicolons between."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ";".join(map(_cell, value)) if isinstance(value, list | tuple) else str(value)
