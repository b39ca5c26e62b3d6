"""Tables joined one to one on their ids: accuracies of each task, axes of each cell. Pure."""

from collections.abc import Sequence

import polars as pl

from models.errors import DataError
from orchestrator.bars import Tell, tell_nobody
from orchestrator.importing.columns import Source, may_be_id
from orchestrator.importing.measured import MEASURED
from orchestrator.importing.reading import Table, known, numbers, text, typed

CELL = "cell_id"
OF_TASKS = ("task", "dataset", "benchmark")
INFINITE = r"(?i)^[+-]?inf(?:inity)?$"


def cell_ids(tables: Sequence[Table], ids: Sequence[str], results: Sequence[str]) -> list[pl.Series]:
    """For each table the ids of its rows as one text, joined by "/".

    A number is the same whether it is written 224 or 224.0. Where an id that holds a "/" itself makes two cells look
    alike, every such sign is written %2F.

    Args:
        tables: each with all id columns.
        ids: the columns that tell cells apart.
        results: the columns of accuracies, which tell none apart.

    Raises:
        UnknownNameError: a table lacks an id column.
        DataError: an id is missing, or occurs twice in a table.
    """
    keys = [_keys(table, ids) for table in tables]
    together = pl.concat(keys)
    is_plain = together.n_unique() == together.select(_joined(ids)).n_unique()
    if not is_plain:
        keys = [key.with_columns(pl.all().str.replace_all("%", "%25").str.replace_all("/", "%2F")) for key in keys]
    found = [key.select(_joined(ids)).to_series() for key in keys]
    for table, cells in zip(tables, found, strict=True):
        _check_unique(table, cells, ids, results)
    return found


def accuracies(source: Source, *, percent: bool) -> pl.Series:
    """The accuracies of a column as fractions; null where there is none.

    Raises:
        UnknownNameError: the table has no such column.
        DataError: a value is no number or is outside [0, 1], or none of the values looks like a per cent.
    """
    table, column = source.table, source.column
    values, is_text = numbers(table.column(column))
    if is_text.any():
        row, value = table.rows.filter(is_text)[0], table.frame[column].filter(is_text)[0]
        more = _more(int(is_text.sum()), "value")
        raise DataError(f"{table.label}: column {column!r}, row {row}: {value!r} is no number{more}")
    top = 100 if percent else 1
    outside = ~values.is_between(0, top).fill_null(True)
    if outside.any():
        row, value = table.rows.filter(outside)[0], values.filter(outside)[0]
        hint = "" if percent else ". Accuracies are fractions: give --percent if these are per cents"
        more = _more(int(outside.sum()), "value")
        raise DataError(f"{table.label}: column {column!r}, row {row}: {value} is outside [0, {top}]{more}{hint}")
    highest = values.max()
    if percent and isinstance(highest, float) and 0 < highest <= 1:
        raise DataError(
            f"{table.label}: with --percent, no value of column {column!r} is above 1 %: are these fractions? "
            "Leave --percent out, or bring all columns to one unit"
        )
    # By numpy: polars multiplies by 1/100, which makes 0.7000000000000001 of 70.
    return pl.Series(column, values.to_numpy() / 100).fill_nan(None) if percent else values


def join_task(
    upstream: tuple[Source, pl.Series, pl.Series], downstream: tuple[Source, pl.Series, pl.Series]
) -> pl.DataFrame:
    """A row for each cell that either table has: cell_id, both accuracies, and why one is null.

    Each side is its source, its cells and its accuracies.
    """
    sides = []
    for name, (_, cells, values) in (("upstream", upstream), ("downstream", downstream)):
        side = pl.DataFrame({CELL: cells, f"{name}_accuracy": values})
        sides.append(side.with_columns(pl.lit(True).alias(f"in_{name}")))
    joined = sides[0].join(sides[1], on=CELL, how="full", coalesce=True)
    reasons = [
        pl.when(pl.col(f"in_{name}").is_null())
        .then(pl.lit(f"no row in {source.table.label}"))
        .when(pl.col(f"{name}_accuracy").is_null())
        .then(pl.lit(f"no value in {source.table.label}"))
        for name, (source, _, _) in (("upstream", upstream), ("downstream", downstream))
    ]
    reason = pl.concat_str(reasons, separator="; ", ignore_nulls=True)
    reason = pl.when(reason != "").then(reason)
    return joined.select(CELL, "upstream_accuracy", "downstream_accuracy", reason=reason)


def join_axes(
    tables: Sequence[Table],
    cells: Sequence[pl.Series],
    ids: Sequence[str],
    axes: Sequence[str],
    tell: Tell = tell_nobody,
) -> pl.DataFrame:
    """One row a cell: cell_id and its axes, each from whatever tables have it. `tell` hears how many are joined.

    Raises:
        DataError: two tables differ in an axis of a cell, or an axis of numbers has an infinite one.
    """
    joined = pl.DataFrame({CELL: pl.concat(cells).unique()})
    for i, axis in enumerate(axes):
        tell("joining axes", i, len(axes))
        having = [(table, at) for table, at in zip(tables, cells, strict=True) if axis in table.frame.columns]
        clean = id_text if axis in ids else known
        words = pl.concat([clean(table.column(axis)) for table, _ in having])
        labels = [label for table, _ in having for label in [table.label] * table.frame.height]
        _check_finite(words, axis, labels, [row for table, _ in having for row in table.rows])
        found = pl.DataFrame({CELL: pl.concat([at for _, at in having]), axis: typed(words), "\0table": labels})
        found = found.drop_nulls(axis)
        _check_agreement(found, axis)
        first = found.unique(CELL, keep="first", maintain_order=True).select(CELL, axis)
        joined = joined.join(first, on=CELL, how="left")
    return joined


def id_text(series: pl.Series) -> pl.Series:
    """Ids as text, whole numbers without their zeros: 224 for 224.0."""
    words = text(series)
    is_whole = words.str.contains(r"^-?\d+\.0+$").fill_null(False)
    return words.set(is_whole, None).fill_null(words.str.replace(r"\.0+$", ""))


def _keys(table: Table, ids: Sequence[str]) -> pl.DataFrame:
    keys = pl.DataFrame([id_text(table.column(name)).alias(name) for name in ids])
    for name in ids:
        if keys[name].has_nulls():
            row = table.rows.filter(keys[name].is_null())[0]
            more = _more(keys[name].null_count(), "row")
            raise DataError(f"{table.label}: row {row} has no {name!r}, so it cannot be told from others{more}")
    return keys


def _joined(ids: Sequence[str]) -> pl.Expr:
    return pl.concat_str(ids, separator="/").alias(CELL)


def _check_unique(table: Table, cells: pl.Series, ids: Sequence[str], results: Sequence[str]) -> None:
    is_double = cells.is_duplicated()
    if not is_double.any():
        return
    first = cells.filter(is_double)[0]
    rows = table.rows.filter(cells == first).to_list()
    num = cells.filter(is_double).n_unique()
    raise DataError(
        f"{table.label}: id {first!r} is in {len(rows)} rows ({', '.join(map(str, rows[:5]))}"
        f"{', ...' if len(rows) > 5 else ''}){_more(num, 'id')}. Each id stands once in a table"
        f"{_missing_key(table, cells, ids, results)}"
    )


def _missing_key(table: Table, cells: pl.Series, ids: Sequence[str], results: Sequence[str]) -> str:
    """A hint: a column that tells rows with the same id apart."""
    for name in table.frame.columns:
        is_task = name.lower() in OF_TASKS and table.is_plain(name)
        if name in (*ids, *results) or not (is_task or may_be_id(table, name)):
            continue
        if not pl.DataFrame({"id": cells, "also": text(table.frame[name])}).is_duplicated().any():
            together = ",".join((*ids, name))
            how = f"--task {name} makes a task of each value" if is_task else f"--id {together} tells them apart"
            return f": {how}"
    return ""


def _check_finite(words: pl.Series, axis: str, labels: Sequence[str], rows: Sequence[int]) -> None:
    """Numbers among which one is infinite would otherwise become texts."""
    is_infinite = words.str.contains(INFINITE).fill_null(False)
    if is_infinite.any() and not numbers(words.filter(~is_infinite))[1].any():
        at = int(is_infinite.arg_max() or 0)
        raise DataError(
            f"{labels[at]}: column {axis!r}, row {rows[at]}: {words[at]!r} is no finite number; leave it empty where "
            "it is unknown"
        )


def _check_agreement(found: pl.DataFrame, axis: str) -> None:
    differ = found.group_by(CELL).agg(pl.col(axis), pl.col("\0table")).filter(pl.col(axis).list.n_unique() > 1)
    if differ.is_empty():
        return
    cell, values, tables = differ.sort(CELL).row(0)
    other = next(i for i, value in enumerate(values) if value != values[0])
    raise DataError(
        f"column {axis!r} of {cell!r} is {values[0]!r} in {tables[0]} and {values[other]!r} in {tables[other]}"
        f"{_more(differ.height, 'id')}; "
        + (
            "it has one value a cell: rename one of these columns"
            if axis in MEASURED
            else "an axis has one value a cell: leave it out by naming the others in --axis"
        )
    )


def _more(number: int, noun: str) -> str:
    return f" ({number:,} such {noun}s)" if number > 1 else ""
