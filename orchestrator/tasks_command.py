"""`upshot tasks`: parses, calls `orchestrator.task_table`, prints."""

import json
from typing import Annotated

import typer


def tasks_command(
    names: Annotated[list[str], typer.Argument(help="Tasks to tell everything of; default a table of all.")] = [],
    data: Annotated[
        str | None, typer.Option("--data", envvar="UPSHOT_DATA", help="The folder of public tasks.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every field.")] = False,
) -> None:
    """List the downstream tasks, packaged and public: classes, chance, images; of named ones source, licence, split."""
    from orchestrator.task_table import print_each, print_tasks, task_rows

    rows = task_rows(names, data)
    if as_json:
        print(json.dumps({"tasks": rows}, indent=1))
    elif names:
        print_each(rows)
    else:
        print_tasks(rows, data)
