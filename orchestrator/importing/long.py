"""Tables in long layout, with a row for each cell and task: each task's rows become a table of their own. Pure."""

from collections.abc import Sequence

import polars as pl

from models.errors import DataError, UnknownNameError, UserError
from orchestrator.importing.columns import Source, split_names, table_and_column, upstream_source
from orchestrator.importing.joining import id_text
from orchestrator.importing.reading import Table, numbers, text


def split_by_task(
    task: str, tables: Sequence[Table], ids: Sequence[str], upstream: str, downstream: Sequence[str]
) -> tuple[list[Table], Source, list[Source]]:
    """The tables with that of the tasks split up, the upstream accuracy, and the tasks.

    Args:
        task: the column that names each row's task, `[TABLE:]COL`.
        tables: as they were read.
        ids: the columns that tell cells apart.
        upstream: as for `columns.upstream_source`; where the table of the tasks has it, it is the same in all rows of
            a cell.
        downstream: the one column of downstream accuracies, of the same table.

    Raises:
        DataError: a row has no task, or a cell two upstream accuracies.
        UnknownNameError: there is no such table or column.
        UserError: several tables have the column, it is used otherwise, or there are several downstream columns.
    """
    long, column = _table_of_tasks(task, tables)
    above = upstream_source(upstream, tables)
    accuracy = _accuracy(downstream, tables, long)
    if column in (*ids, above.column, accuracy):
        raise UserError(f"--task {task}: {column!r} is an id or an accuracy as well")
    tasks = text(long.column(column))
    if tasks.has_nulls():
        raise DataError(f"{long.label}: row {long.rows.filter(tasks.is_null())[0]} has no {column!r}")
    shared = [column, above.column] if above.table is long else [column]
    rest = Table(long.path, long.label, long.frame.drop(shared), long.rows)
    parts = {name: _part(rest, name, tasks == name) for name in tasks.unique().sort()}
    others = [table for table in tables if table is not long]
    if above.table is long:
        above = Source(task="", table=_one_row_a_cell(long, ids, above.column), column=above.column)
        others.insert(0, above.table)
    sources = [Source(task=name, table=part, column=accuracy) for name, part in parts.items()]
    return [*others, *parts.values()], above, sources


def _table_of_tasks(task: str, tables: Sequence[Table]) -> tuple[Table, str]:
    table, column = table_and_column(task, tables)
    having = [table] if table else [table for table in tables if column in table.frame.columns]
    if not having:
        known = dict.fromkeys(name for table in tables for name in table.frame.columns)
        raise UnknownNameError("column", column, known, "in any table")
    if len(having) > 1:
        labels = ", ".join(table.label for table in having)
        raise UserError(f"--task {task}: {column!r} is in {labels}; write TABLE:{column}, and join one such table")
    return having[0], column


def _accuracy(downstream: Sequence[str], tables: Sequence[Table], long: Table) -> str:
    names = split_names(downstream, tables)
    table, column = table_and_column(names[0], tables)
    if len(names) > 1 or table not in (None, long):
        raise UserError(
            f"--downstream {','.join(names)}: with --task it is one column of {long.label}, and tasks are called by "
            "the values of the other"
        )
    long.column(column)
    return column


def _part(table: Table, name: str, is_in: pl.Series) -> Table:
    return Table(table.path, f"{table.label} ({name})", table.frame.filter(is_in), table.rows.filter(is_in))


def _one_row_a_cell(long: Table, ids: Sequence[str], upstream: str) -> Table:
    """Ids and upstream accuracy of each cell: the first row that has one."""
    keys = pl.DataFrame([id_text(long.column(name)).alias(str(i)) for i, name in enumerate(ids)])
    column = long.column(upstream)
    values = numbers(column)[0].cast(pl.String).fill_null(text(column))
    rows = keys.select(cell=pl.struct(pl.all()), value=values, place=pl.int_range(pl.len()))
    differ = rows.drop_nulls("value").filter(pl.col("value").n_unique().over("cell") > 1)
    if not differ.is_empty():
        first = differ.filter(pl.col("cell") == differ["cell"][0])
        other = first.filter(pl.col("value") != first["value"][0])
        one, two = first["place"][0], other["place"][0]
        raise DataError(
            f"{long.label}: {upstream!r} of {'/'.join(first['cell'][0].values())!r} is {column[one]!r} in row "
            f"{long.rows[one]} and {column[two]!r} in row {long.rows[two]}; a cell has one upstream accuracy"
        )
    kept = rows.sort(pl.col("value").is_null(), "place").unique("cell", keep="first", maintain_order=True)["place"]
    frame = long.frame.select(*ids, upstream)[kept.to_list()]
    return Table(long.path, long.label, frame, long.rows.gather(kept))
