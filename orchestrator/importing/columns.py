"""Which columns of which tables are ids, accuracies and axes. Pure.

A column is written `[TASK=][TABLE:]COL`; several are separated by commas. A text that as a whole is a column's name is
that column, whatever signs it holds.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.errors import UnknownNameError, UserError
from orchestrator.conflicts import NO_AXES
from orchestrator.importing.measured import MEASURED
from orchestrator.importing.reading import Table, numbers

OTHER_RESULTS = re.compile(r"(?i)(acc\d*|accuracy|top\d*|err|error|loss|diff|score|f1|auc|auroc|nll|ece)")
"""A column of numbers with such a word in its name (`top5_err`, `val acc`) is another result of the row, no axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the accuracies of one task come from."""

    task: str
    table: Table
    column: str


def split_names(texts: Iterable[str], tables: Sequence[Table]) -> list[str]:
    """The names in comma-separated texts, each once; a text that is a column's name is not split.

    Raises:
        UserError: a name is empty.
    """
    names = []
    for text in texts:
        whole = any(text in table.frame.columns for table in tables)
        names += [text] if whole else [name.strip() for name in text.split(",")]
    if not names or not all(names):
        raise UserError(f"{','.join(texts)!r}: a column's name is empty; separate names by single commas")
    return list(dict.fromkeys(names))


def upstream_source(text: str, tables: Sequence[Table]) -> Source:
    """The upstream accuracy: of the first table, unless the text names another.

    Raises:
        UnknownNameError: there is no such table or column.
    """
    table, column = table_and_column(text, tables)
    table = tables[0] if table is None else table
    table.column(column)
    return Source(task="", table=table, column=column)


def downstream_sources(texts: Iterable[str], tables: Sequence[Table], upstream: Source) -> list[Source]:
    """The tasks, in order.

    A column without a table is taken from every further table that has it (all but that of the upstream accuracy), and
    from that of the upstream accuracy where no other has it. A task without a name is called after its file if that
    gives one task, FILE:COL if it gives several, and after its column in the table of the upstream accuracy.

    Raises:
        UnknownNameError: there is no such table or column.
        UserError: two tasks have one name, or a task is the upstream accuracy itself.
    """
    found: list[tuple[str | None, Table, str]] = []
    for text in split_names(texts, tables):
        task, place = _task_and_place(text, tables)
        table, column = table_and_column(place, tables)
        places = _tables_with(column, tables, upstream) if table is None else [table]
        if task is not None and len(places) > 1:
            labels = ", ".join(at.label for at in places)
            raise UserError(f"--downstream {text}: {column!r} is in {labels}; write {task}=TABLE:{column}")
        for at in places:
            at.column(column)
            found.append((task, at, column))
    sources = [
        Source(task=_task_name(task, table, column, found, upstream), table=table, column=column)
        for task, table, column in found
    ]
    _check_sources(sources, upstream)
    return sources


def sizes_by_task(texts: Iterable[str], tasks: Sequence[str]) -> dict[str, int]:
    """The number of test images of each task, from `N` for all of them or `TASK=N,...`; empty where none is given.

    Raises:
        UnknownNameError: there is no such task.
        UserError: a number is not whole or below 1, or a task has two.
    """
    sizes: dict[str, int] = {}
    for whole, text in [(given, part) for given in texts for part in _parts(given, tasks)]:
        task, _, number = text.rpartition("=")
        if not number.strip().isdecimal() or int(number) < 1 or (not task and text != whole):
            raise UserError(
                f"--downstream-num-test {whole}: give one number for all tasks, or TASK=N,TASK=N,...; a number is "
                "written without commas, 10000 for ten thousand"
            )
        if task and task not in tasks:
            raise UnknownNameError("task", task, tasks)
        named = [task] if task else list(tasks)
        if sizes.keys() & set(named):
            raise UserError(f"--downstream-num-test: {named[0]!r} has two numbers; give one for all, or one for each")
        sizes |= dict.fromkeys(named, int(number))
    return sizes


def _parts(whole: str, tasks: Sequence[str]) -> list[str]:
    """A task's name may hold a comma."""
    return [whole] if whole.rpartition("=")[0] in tasks else whole.split(",")


def pick_axes(
    wanted: Sequence[str] | None, tables: Sequence[Table], ids: Sequence[str], sources: Sequence[Source]
) -> list[str]:
    """The axes: the ids where there are several, then those that are wanted.

    When none are named, all columns are, except accuracies, other results of the row (`OTHER_RESULTS`), lists and the
    like, and those whose names results tables use for something else.

    Raises:
        UnknownNameError: no table has such a column.
        DataError: an axis holds lists or the like.
        UserError: an axis is an accuracy, or has a name that results tables use for something else.
    """
    present = list(dict.fromkeys(name for table in tables for name in table.frame.columns))
    accuracies = {source.column for source in sources}
    keys = list(ids) if len(ids) > 1 else []
    if wanted is None:
        free = (name for name in present if name not in (*ids, *accuracies) and may_be_axis(tables, name))
        wanted = [name for name in free if not any(_is_other_result(table, name) for table in tables)]
    for name in (*keys, *wanted):
        if name not in present:
            raise UnknownNameError("column", name, present, "in any table")
        if name in accuracies:
            raise UserError(f"{name!r} is an accuracy, so it cannot be an axis or id as well")
        if name in MEASURED and name not in keys:
            raise UserError(f"{name!r} is taken over as it is, not as an axis; leave it out of --axis")
        if name in NO_AXES:
            raise UserError(f"{name!r} means something else in results tables; rename the column to have it as an axis")
        for table in tables:
            if name in table.frame.columns:
                table.column(name)
    return list(dict.fromkeys((*keys, *wanted)))


def may_be_axis(tables: Sequence[Table], name: str) -> bool:
    """Whether `--axis` can name this column: it has a name of its own, and texts or numbers."""
    having = (table for table in tables if name in table.frame.columns)
    return bool(name) and name not in NO_AXES and all(table.is_plain(name) for table in having)


def may_be_id(table: Table, name: str) -> bool:
    """Whether a column may tell rows apart: it has whole numbers or texts for every row, and is no result."""
    if not may_be_axis([table], name) or table.frame[name].has_nulls() or _is_other_result(table, name):
        return False
    values, is_text = numbers(table.frame[name])
    return bool(is_text.any()) or not (values % 1 != 0).any()


def left_out(table: Table, ids: Sequence[str], taken: Sequence[str], sources: Sequence[Source]) -> list[str]:
    """Columns of a table that are neither ids, accuracies, nor taken over besides."""
    used = {*ids, *taken, *(source.column for source in sources if source.table is table)}
    return [name for name in table.frame.columns if name not in used]


def _is_other_result(table: Table, name: str) -> bool:
    if name not in table.frame.columns:
        return False
    words = re.split(r"[^a-zA-Z0-9]+|(?<=[a-z0-9])(?=[A-Z])", name)
    return any(OTHER_RESULTS.fullmatch(word) for word in words) and not numbers(table.frame[name])[1].any()


def _task_and_place(text: str, tables: Sequence[Table]) -> tuple[str | None, str]:
    task, sign, place = text.partition("=")
    is_column = any(text in table.frame.columns for table in tables)
    return (None, text) if not sign or is_column else (task.strip(), place.strip())


def table_and_column(text: str, tables: Sequence[Table]) -> tuple[Table | None, str]:
    """The table that `[TABLE:]COL` names, if any, and the column, which need not be there.

    Raises:
        UnknownNameError: there is no such table.
        UserError: several tables have that name.
    """
    name, sign, column = text.rpartition(":")
    if not sign or any(text in table.frame.columns for table in tables):
        return None, text
    found = [table for table in tables if name in (str(table.path), table.path.name, table.path.stem)]
    if not found:
        raise UnknownNameError("table", name, [table.label for table in tables])
    if len(found) > 1:
        raise UserError(f"{text}: {name!r} is {', '.join(str(table.path) for table in found)}; give the whole path")
    return found[0], column


def _tables_with(column: str, tables: Sequence[Table], upstream: Source) -> list[Table]:
    further = [table for table in tables if table is not upstream.table]
    found = [table for table in further if column in table.frame.columns]
    if found or column in upstream.table.frame.columns:
        return found or [upstream.table]
    known = dict.fromkeys(name for table in [*further, upstream.table] for name in table.frame.columns)
    raise UnknownNameError("column", column, known, f"in {', '.join(table.label for table in tables)}")


def _task_name(
    task: str | None, table: Table, column: str, found: Sequence[tuple[str | None, Table, str]], upstream: Source
) -> str:
    if task is not None:
        return task
    if table is upstream.table:
        return column
    alone = sum(other is table for _, other, _ in found) == 1
    return table.path.stem if alone else f"{table.path.stem}:{column}"


def _check_sources(sources: Sequence[Source], upstream: Source) -> None:
    places: dict[str, Source] = {}
    for source in sources:
        if source.table is upstream.table and source.column == upstream.column:
            raise UserError(f"{source.column!r} of {source.table.label} is both the upstream and a downstream accuracy")
        if not source.task:
            raise UserError(f"--downstream {source.column}: the task has no name before the =")
        other = places.setdefault(source.task, source)
        if other is not source:
            where = f"{other.column!r} of {other.table.label} and {source.column!r} of {source.table.label}"
            raise UserError(f"task {source.task!r} is {where}; name them: --downstream NAME=TABLE:COL,...")
