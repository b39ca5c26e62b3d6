"""`upshot tasks`: parses, calls `orchestrator.task_table`, prints."""

from typing import Annotated

import typer

from orchestrator.output import CsvOption, JsonOption, print_found


def tasks_command(
    names: Annotated[list[str], typer.Argument(help="Tasks to tell everything of; default a table of all.")] = [],
    data: Annotated[
        str | None, typer.Option("--data", envvar="UPSHOT_DATA", help="The folder of public tasks.")
    ] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """List the downstream tasks, packaged and public: classes, chance, images; of named ones source, licence, split."""
    from orchestrator.task_table import print_each, print_tasks, task_rows

    rows = task_rows(names, data)
    if as_json or as_csv:
        print_found("tasks", {"tasks": rows}, as_csv=as_csv)
    elif names:
        print_each(rows)
    else:
        print_tasks(rows, data)
