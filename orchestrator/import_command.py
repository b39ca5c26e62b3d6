"""`upshot import`: parses, calls `orchestrator.importing`, prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.output import CsvOption, JsonOption, print_found

if TYPE_CHECKING:
    from orchestrator.importing import Imported

LISTED = 10  # ids that do not join, of each table; --json has all


def import_command(
    tables: Annotated[list[Path], typer.Argument(help="CSV, TSV or parquet files; several join on the ids.")],
    ids: Annotated[list[str], typer.Option("--id", help="COL[,COL]: the columns that tell cells apart.")],
    upstream: Annotated[str, typer.Option(help="[TABLE:]COL; of the first table when none is named.")],
    downstream: Annotated[
        list[str],
        typer.Option(help="[TASK=][TABLE:]COL[,...]; without TABLE, of every further table that has the column."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The results table to write (parquet).")],
    task: Annotated[
        str | None,
        typer.Option(help="[TABLE:]COL: the column that names each row's task, in tables of a row a model and task."),
    ] = None,
    percent: Annotated[bool, typer.Option("--percent", help="The accuracies are per cents, not fractions.")] = False,
    axes: Annotated[
        list[str] | None,
        typer.Option("--axis", help="COL[,COL]: the further axes; all columns but other results when not given."),
    ] = None,
    upstream_num_test: Annotated[int | None, typer.Option(help="Number of upstream test images.")] = None,
    downstream_num_test: Annotated[
        list[str] | None, typer.Option(help="N, or TASK=N[,...]: number of downstream test images.")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Shots a class of the downstream accuracies.")] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Make a results table of any published table, for `upshot reduce` and `upshot report`."""
    from models.errors import UserError
    from orchestrator.bars import bar
    from orchestrator.importing import import_tables, to_json, write_results

    if output.resolve() in [table.resolve() for table in tables]:
        raise UserError(f"--output {output}: this is one of the tables to import")
    with bar() as tell:
        imported = import_tables(
            tables,
            ids=ids,
            upstream=upstream,
            downstream=downstream,
            task=task,
            unit="percent" if percent else "fraction",
            axes=axes,
            upstream_num_test=upstream_num_test,
            downstream_num_test=downstream_num_test or [],
            shots=shots,
            tell=tell,
        )
        tell("writing the table", 0, 1)
        write_results(imported.results, output)
    if as_json or as_csv:
        print_found("import", {"output": str(output), **to_json(imported)}, as_csv=as_csv)
    else:
        _print(imported, output)


def _print(imported: "Imported", output: Path) -> None:
    from orchestrator.terminal import print_sentence

    table, column = imported.upstream
    print_sentence(f"{imported.results.height:,} rows of {imported.results['cell_id'].n_unique():,} cells in {output}")
    print_sentence(f"upstream: {column} of {table}")
    for task in imported.tasks:
        print_sentence(f"{task.task}: {task.column} of {task.table}, {task.complete:,} cells with both accuracies")
        for reason, number in task.reasons.items():
            print_sentence(f"    {number:,} without: {reason}")
    for joined in imported.tables:
        for one, other, cells in (
            (joined.table, table, joined.only_here),
            (table, joined.table, joined.only_upstream),
        ):
            if cells:
                print_sentence(f"{len(cells):,} in {one}, not in {other}: {_listed(cells)}")
    print_sentence(f"axes: {', '.join(imported.axes) or 'none'}")
    if imported.measured:
        print_sentence(f"taken over besides: {', '.join(imported.measured)}")
    possible = dict.fromkeys(name for joined in imported.tables for name in joined.possible)
    if possible:
        print_sentence(f"left out, --axis takes them in: {', '.join(possible)}")
    others = dict.fromkeys(name for joined in imported.tables for name in joined.left_out if name not in possible)
    if others:
        print_sentence(f"left out: {', '.join(_told(name, imported.unusable.get(name)) for name in others)}")
    print_sentence(f"next: upshot reduce {output}; upshot report {output}")


def _told(name: str, why: str | None) -> str:
    return f"{name or '(a column without a name)'}{f' ({why})' if why else ''}"


def _listed(cells: list[str]) -> str:
    more = len(cells) - LISTED
    return ", ".join(cells[:LISTED]) + (f" and {more:,} more (--json lists them)" if more > 0 else "")
