"""The rows of a results table that count, one value a cell, and what had to be left out. Pure.

A cell counts with its last checkpoint, last layer, and the mean over its draws, all of which need a value. Accuracies
are fractions in [0, 1].
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from models.errors import DataError, did_you_mean
from orchestrator import conflicts

if TYPE_CHECKING:
    from collections.abc import Sequence

    TaskKey = tuple[str, int | None]

REQUIRED = ("cell_id", "task", "upstream_accuracy", "downstream_accuracy")
# Columns that imported tables may lack; a missing one is read as null everywhere.
OPTIONAL: dict[str, type[pl.DataType]] = {
    "shots": pl.Int64,
    "draw": pl.Int64,
    "protocol": pl.String,
    "last_checkpoint": pl.Boolean,
    "last_layer": pl.Boolean,
    "upstream_num_test": pl.Int64,
    "downstream_num_test": pl.Int64,
    "reason": pl.String,
}
COUNTS = ("shots", "draw", "upstream_num_test", "downstream_num_test")
CELL = ("task", "shots", "cell_id")
ACCURACIES = ("upstream_accuracy", "downstream_accuracy")
LAST = ("last_checkpoint", "last_layer")
DEFAULT_PROTOCOL = "ridge"
IN_PART = "another draw of the cell has no value"
"""Why a draw with a value does not count: those that fail are no chance choice, so the others' mean would mislead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the reducer looks at.

    Args:
        cells: one row per task, shots and cell: task, shots, cell_id, upstream, downstream, upstream_num_test,
            downstream_num_test, the axes (`conflicts.axes_of`), params; best downstream accuracy first within a task.
        dropped: rows that do not count, by reason, for each task and shots: those without a value, other draws
            of their cells, those of another protocol where nobody chose one, and of cells without a last checkpoint or
            layer. Other checkpoints and layers of a cell that has its last ones are no loss. Every task and shots of
            the chosen protocol is a key, and those of tasks that it lacks.
        protocol: the one that the values come from; None where the table does not say.
    """

    cells: pl.DataFrame
    dropped: "dict[TaskKey, dict[str, int]]"
    protocol: str | None

    @property
    def most_shots(self) -> int | None:
        """The largest number of shots; None where no task has one."""
        return max((shots for _, shots in self.dropped if shots is not None), default=None)


def select_cells(results: pl.DataFrame | pl.LazyFrame, protocol: str | None = None) -> Selection:
    """One value per task, shots and cell, and what had to be left out.

    Of a lazy table only the rows of last checkpoints and last layers come into memory.

    Args:
        results: the results table.
        protocol: which rows count; when it is not given the only one's, or ridge's where there are several.

    Raises:
        DataError: as `reduce_study`.
    """
    if protocol is not None:
        results = _of_protocol(results.lazy(), protocol)
    whole = _complete(results.lazy())
    table, protocol = _choose_protocol(whole)
    _check_range(table)
    _check_test_sizes(table)
    has_values = pl.all_horizontal(pl.col(ACCURACIES).is_not_null())
    cells_without = table.filter(~has_values).select(CELL).unique()
    in_part = table.filter(has_values).join(cells_without, on=CELL, how="semi", nulls_equal=True)
    whole_cells = table.join(cells_without, on=CELL, how="anti", nulls_equal=True, maintain_order="left")
    kept = _with_known_axes(whole_cells)
    _check_unique(kept)
    lost = pl.concat([_lost(results.lazy(), protocol, whole), _counted(in_part, pl.lit(IN_PART))])
    return Selection(cells=_mean_over_draws(kept), dropped=_count_dropped(table, has_values, lost), protocol=protocol)


def _complete(results: pl.LazyFrame) -> pl.DataFrame:
    """The rows of last checkpoints and last layers, with every optional column, and NaN as null."""
    columns = results.collect_schema().names()
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise DataError(
            f"results: no column {', '.join(missing)} (needed: {', '.join(REQUIRED)}); `upshot import` makes a results "
            "table of another one"
        )
    if not results.select(pl.len()).collect().item():
        raise DataError("results: the table is empty, so there is nothing to reduce")
    absent = {name: kind for name, kind in OPTIONAL.items() if name not in columns}
    try:
        lazy = _last_rows(results).with_columns(
            pl.col("cell_id", "task").cast(pl.String), pl.col(ACCURACIES).cast(pl.Float64).fill_nan(None)
        )
        table = lazy.with_columns(pl.lit(None, kind).alias(name) for name, kind in absent.items()).collect(
            engine="streaming"
        )
        table = _with_whole_counts(table).with_columns(pl.col(name).cast(kind) for name, kind in OPTIONAL.items())
    except pl.exceptions.PolarsError as error:
        raise DataError(f"results: a column holds values of a wrong kind: {error}") from error
    if table.is_empty():
        raise DataError(
            "results: no row is of a last checkpoint and a last layer (columns last_checkpoint, last_layer)"
        )
    for name in ("cell_id", "task"):
        if table[name].has_nulls():
            raise DataError(f"results: {table[name].null_count()} rows have no {name}")
    return table


def protocols_of(results: pl.DataFrame | pl.LazyFrame) -> list[str]:
    """The protocols of the rows of last checkpoints and last layers, by name; none where the table does not say."""
    lazy = results.lazy()
    if "protocol" not in lazy.collect_schema().names():
        return []
    found = _last_rows(lazy).select(pl.col("protocol").cast(pl.String).drop_nulls().unique())
    return found.collect(engine="streaming")["protocol"].sort().to_list()


def _of_protocol(results: pl.LazyFrame, protocol: str) -> pl.LazyFrame:
    known = protocols_of(results)
    if "protocol" not in results.collect_schema().names():
        raise DataError(f"results: no column protocol, so it is not known which rows are of {protocol!r}")
    if known and protocol not in known:
        raise DataError(
            f"results: no row of a last checkpoint and a last layer is of protocol {protocol!r} (those there are: "
            f"{', '.join(known)}).{did_you_mean(protocol, known)}"
        )
    return results.filter(pl.col("protocol").cast(pl.String) == protocol)


def _last_rows(results: pl.LazyFrame) -> pl.LazyFrame:
    """The rows of last checkpoints and last layers, as far as the table says which they are."""
    columns = results.collect_schema().names()
    last = [pl.col(name).cast(pl.Boolean).fill_null(True) for name in LAST if name in columns]
    return results.filter(*last) if last else results


def _choose_protocol(table: pl.DataFrame) -> tuple[pl.DataFrame, str | None]:
    """Rows of one protocol: the only one, or ridge where there are several."""
    known = table["protocol"].unique().sort().to_list()
    if len(known) == 1:
        return table, known[0]
    if DEFAULT_PROTOCOL not in known:
        names = ", ".join(name or "none" for name in known)
        raise DataError(f"results: rows of several protocols ({names}); choose one with --protocol NAME")
    return table.filter(pl.col("protocol") == DEFAULT_PROTOCOL), DEFAULT_PROTOCOL


def _check_range(table: pl.DataFrame) -> None:
    for name in ACCURACIES:
        outside = table.filter(~pl.col(name).is_between(0.0, 1.0))
        if not outside.is_empty():
            row = outside.row(0, named=True)
            raise DataError(
                f"results: {name} {row[name]} of cell {row['cell_id']!r}, task {row['task']!r} is outside [0, 1] "
                f"({outside.height} such rows). Accuracies are fractions: import per cents with --percent."
            )


def _check_test_sizes(table: pl.DataFrame) -> None:
    for name in ("upstream_num_test", "downstream_num_test"):
        wrong = table.filter(pl.col(name) < 1)
        if not wrong.is_empty():
            row = wrong.row(0, named=True)
            raise DataError(
                f"results: {name} {row[name]} of cell {row['cell_id']!r}, task {row['task']!r}: at least 1 test image "
                "is needed; leave it empty where it is unknown"
            )


def _with_whole_counts(table: pl.DataFrame) -> pl.DataFrame:
    """NaN as null in shots, draws and numbers of test images, which are whole numbers otherwise."""
    fractional = [name for name in COUNTS if table[name].dtype.is_float() or table[name].dtype.is_decimal()]
    table = table.with_columns(pl.col(fractional).cast(pl.Float64).fill_nan(None))
    for name in fractional:
        wrong = table.filter(pl.col(name) % 1 != 0)
        if not wrong.is_empty():
            raise DataError(f"results: {name} {wrong[name][0]} of {_of(wrong)}: a whole number is needed")
    return table


def _with_known_axes(kept: pl.DataFrame) -> pl.DataFrame:
    """NaN as null in every axis and in params.

    Raises:
        DataError: an axis is infinite, or params are no numbers above 0.
    """
    if "params" in kept.columns and not kept["params"].dtype.is_numeric():
        wrong = kept.filter(pl.col("params").is_not_null())
        if not wrong.is_empty():
            raise DataError(f"results: params {wrong['params'][0]!r} of {_of(wrong)}: a number is needed")
        kept = kept.with_columns(params=pl.lit(None, pl.Int64))
    names = [*conflicts.axes_of(kept), *(["params"] if "params" in kept.columns else [])]
    floats = [name for name in names if kept.schema[name].is_float()]
    kept = kept.with_columns(pl.col(floats).fill_nan(None))
    for name in floats:
        wrong = kept.filter(pl.col(name).is_infinite())
        if not wrong.is_empty():
            raise DataError(
                f"results: {name} {wrong[name][0]} of {_of(wrong)}: a finite number is needed; leave it empty where it "
                "is unknown"
            )
    if "params" in kept.columns:
        wrong = kept.filter(pl.col("params") <= 0)
        if not wrong.is_empty():
            raise DataError(
                f"results: params {wrong['params'][0]} of {_of(wrong)}: a number above 0 is needed; leave it empty "
                "where it is unknown"
            )
    return kept


def _of(rows: pl.DataFrame) -> str:
    """Whose the first row is, and how many there are."""
    more = f" ({rows.height:,} such rows)" if rows.height > 1 else ""
    return f"cell {str(rows['cell_id'][0])!r}, task {str(rows['task'][0])!r}{more}"


def _check_unique(kept: pl.DataFrame) -> None:
    """Each draw of a cell is there once, and all agree on the cell's upstream accuracy."""
    upstream = pl.col("upstream_accuracy")
    agree = kept.group_by(CELL).agg(same=upstream.min() == upstream.max())["same"].all()
    if agree and not kept.select(*CELL, "draw").is_duplicated().any():
        return
    groups = kept.group_by("task", "shots", "cell_id", maintain_order=True).agg(
        repeats=pl.struct("draw").is_duplicated().sum(), upstreams=pl.col("upstream_accuracy").n_unique()
    )
    repeated = groups.filter((pl.col("repeats") > 0) | (pl.col("upstreams") > 1))
    row = repeated.row(0, named=True)
    what = "rows of the same draw" if row["repeats"] else "different upstream accuracies"
    shots = "" if row["shots"] is None else f", {row['shots']} shots"
    raise DataError(
        f"results: cell {row['cell_id']!r} has {row['repeats'] or row['upstreams']} {what} for task "
        f"{row['task']!r}{shots} ({repeated.height} such cells); each cell counts once"
    )


def _mean_over_draws(kept: pl.DataFrame) -> pl.DataFrame:
    """One row per task, shots and cell.

    Sorted, so that means and bootstrap draws do not depend on the order of the rows.
    """
    extra = [*conflicts.axes_of(kept), *(["params"] if "params" in kept.columns else [])]
    ordered = _in_order(kept, (*CELL, "draw"))
    _check_constant(ordered, extra)
    return (
        ordered.group_by(CELL, maintain_order=True)
        .agg(
            pl.col("upstream_num_test", "downstream_num_test", *extra).first(),
            upstream=pl.col("upstream_accuracy").first(),
            downstream=pl.col("downstream_accuracy").mean(),
        )
        .select(*CELL, "upstream", "downstream", "upstream_num_test", "downstream_num_test", *extra)
        .sort("task", "shots", "downstream", "upstream", "cell_id", descending=[False, False, True, True, False])
    )


def _check_constant(ordered: pl.DataFrame, names: "Sequence[str]") -> None:
    """The draws of a cell, which follow one another, agree on its axes and parameters."""
    before = ordered.shift(1)
    is_same = pl.all_horizontal((ordered[name].eq_missing(before[name])) for name in CELL)
    same = ordered.select(is_same).to_series()
    for name in names:
        differs = ordered[name].ne_missing(before[name]) & same
        if differs.any():
            at = int(differs.arg_max() or 0)
            values = f"{before[name][at]!r} and {ordered[name][at]!r}"
            raise DataError(
                f"results: {name} is {values} in two draws of {_of(ordered[at : at + 1])}: a cell has one value of it; "
                "give settings that differ a cell_id each"
            )


def _in_order(table: pl.DataFrame, names: "Sequence[str]") -> pl.DataFrame:
    """The rows sorted by some columns, nulls first: by one number, since millions of rows by several columns take long.

    The names in a column, and its numbers, are few.
    """
    place = np.zeros(table.height, dtype=np.int64)
    for name in names:
        values = table[name].drop_nulls().unique().sort()
        if values.dtype == pl.String:
            codes = table[name].cast(pl.Enum(values)).to_physical()
        else:
            codes = values.search_sorted(table[name])
        place = place * (values.len() + 1) + np.where(table[name].is_null(), 0, codes.fill_null(0).to_numpy() + 1)
    return table[np.argsort(place, kind="stable")]


def _lost(results: pl.LazyFrame, protocol: str | None, last: pl.DataFrame) -> pl.DataFrame:
    """Rows of other protocols, and of cells without a last checkpoint or layer: task, shots, why, rows.

    Nothing but one count for each such cell comes into memory.

    Args:
        results: the whole table.
        protocol: the one that counts.
        last: the rows of last checkpoints and last layers.
    """
    columns = results.collect_schema().names()
    if last["protocol"].n_unique() == 1 and not set(LAST) & set(columns):
        return pl.DataFrame(schema={"task": pl.String, "shots": pl.Int64, "why": pl.String, "rows": pl.UInt32})
    keys = [
        (pl.col(name) if name in columns else pl.lit(None)).cast(kind, strict=False).alias(name)
        for name, kind in (("cell_id", pl.String), ("task", pl.String), ("shots", pl.Int64), ("protocol", pl.String))
    ]
    checkpoint, layer = (
        pl.col(name).cast(pl.Boolean).fill_null(True) if name in columns else pl.lit(True) for name in LAST
    )
    is_other = pl.col("protocol").ne_missing(pl.lit(protocol, pl.String))
    cells = (
        results.select(*keys, checkpoint=checkpoint, layer=layer)
        .group_by("cell_id", "task", "shots", "protocol")
        .agg(pl.col("checkpoint", "layer").sum(), last=(pl.col("checkpoint") & pl.col("layer")).sum(), every=pl.len())
        .filter((pl.col("last") == 0) | is_other)
        .collect(engine="streaming")
    )
    if cells["task"].has_nulls():
        raise DataError(f"results: {cells.filter(pl.col('task').is_null())['every'].sum()} rows have no task")
    counting = last.filter(pl.col("protocol").eq_missing(pl.lit(protocol, pl.String))).select("task", "shots").unique()
    # Another protocol with shots of its own, or none, on a task that the chosen one has: an answer, and no loss.
    beside = is_other & pl.col("task").is_in(counting["task"].unique().implode())
    cells = pl.concat(
        [cells.filter(~beside), cells.filter(beside).join(counting, on=["task", "shots"], how="semi", nulls_equal=True)]
    )
    why = (
        pl.when(is_other)
        .then(pl.format("another protocol ({})", pl.col("protocol").fill_null("unknown")))
        .when(pl.col("checkpoint") == 0)
        .then(pl.lit("no last checkpoint"))
        .otherwise(pl.lit("no last layer"))
    )
    # Of a cell that lacks its last checkpoint, only rows of last layers might have counted.
    rows = pl.coalesce(
        pl.when(pl.col(name) > 0).then(pl.col(name)) for name in ("last", "checkpoint", "layer", "every")
    )
    return cells.group_by("task", "shots", why=why).agg(rows=rows.sum())


def _counted(rows: pl.DataFrame, why: pl.Expr) -> pl.DataFrame:
    return rows.group_by("task", "shots", why=why).agg(rows=pl.len())


def _count_dropped(table: pl.DataFrame, has_values: pl.Expr, lost: pl.DataFrame) -> "dict[TaskKey, dict[str, int]]":
    upstream, downstream = (pl.col(name) for name in ACCURACIES)
    why = (
        pl.when(pl.col("reason").is_not_null())
        .then("reason")
        .when(upstream.is_null() & downstream.is_null())
        .then(pl.lit("no upstream and no downstream accuracy"))
        .when(upstream.is_null())
        .then(pl.lit("no upstream accuracy"))
        .otherwise(pl.lit("no downstream accuracy"))
    )
    empty = _counted(table.filter(~has_values), why)
    keys = pl.concat([table.select("task", "shots"), lost.select("task", "shots")]).unique().sort("task", "shots")
    counts: dict[TaskKey, dict[str, int]] = {key: {} for key in keys.iter_rows()}
    for task, shots, reason, rows in pl.concat([empty, lost.match_to_schema(empty.schema)]).sort("why").iter_rows():
        counts[task, shots][reason] = counts[task, shots].get(reason, 0) + rows
    return counts
