"""The downstream tasks, for `upshot tasks`."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from evals import tasks
from orchestrator.terminal import print_sentence, print_table


def task_rows(names: Sequence[str] = (), data: str | None = None) -> list[dict[str, Any]]:
    """All that is known of each task; of every one by name where none is named.

    Args:
        names: tasks, or paths of images.
        data: the folder of public tasks; that of $UPSHOT_DATA where it is None.

    Raises:
        UserError: a name that no task has, or a path without images.
    """
    root = tasks.data_root(data)
    return [_row(tasks.task(name, root)) for name in names or (*tasks.names(), *tasks.public_names())]


def _row(t: tasks.Task) -> dict[str, Any]:
    row = {field.name: getattr(t, field.name) for field in fields(t)}
    row["root"] = str(t.root) if t.root else None
    if t.kind != "public":
        return {**row, "group": None, "url": None, "present": True, "layout": None, "folder": None, "expected": []}
    published = tasks.definition(t.name)
    found = tasks.readable(published, t.root)
    return {
        **row,
        "group": published.group,
        "url": published.url,
        "present": found is not None,
        "layout": found.layout.name if found else None,
        "folder": str(found.folder) if found else None,
        "expected": tasks.expected(published, t.root) if t.root else [],
    }


def print_tasks(rows: list[dict[str, Any]], data: str | None) -> None:
    """The packaged tasks, the public ones by group, and how to read them."""
    columns = ("task", "classes", "chance", "train", "test", "licence")
    packaged = ((*_numbers(r), r["licence"]) for r in rows if r["kind"] == "packaged")
    print_table("Packaged: these work at once", columns, packaged, prose=("licence",))
    for group in ("natural", "specialised", "structured"):
        of_group = [r for r in rows if r["group"] == group]
        shown = ((*_numbers(r), "yes" if r["vtab"] else "", "yes" if r["present"] else "") for r in of_group)
        print()
        print_table(f"Public, {group}", (*columns[:-1], "VTAB", "here"), shown)
    where = f"below {data}" if data else "below a folder that --data, $UPSHOT_DATA or a study's [downstream] data names"
    print()
    print_sentence(
        f"here: found {where}. VTAB: one of the 19 of VTAB-1k. `upshot tasks NAME` tells source, licence, split and"
        " where images are expected; --json all of it. Any class folders, CSV of paths and labels, or tables are a"
        " task too, named by their path."
    )


def print_each(rows: list[dict[str, Any]]) -> None:
    """Everything about each task, a line a field."""
    for row in rows:
        print(f"{row['name']}: {row['title']}")
        for name, value in _told(row).items():
            print_sentence(f"  {name}: {value}")


def _numbers(row: dict[str, Any]) -> tuple[object, ...]:
    return row["name"], row["num_classes"], f"{row['chance']:.3f}", f"{row['num_train']:,}", f"{row['num_test']:,}"


def _told(row: dict[str, Any]) -> dict[str, str]:
    told = {
        "classes": f"{row['num_classes']:,}, chance {row['chance']:.4g}",
        "images": f"{row['num_train']:,} to train on, {row['num_test']:,} to test on",
        "split": row["split"],
        "source": row["source"],
        "licence": row["licence"],
    }
    if row["kind"] == "public":
        told["in VTAB-1k"] = "yes" if row["vtab"] else "no"
        told["had at"] = row["url"]
        told["found"] = f"{row['folder']} ({row['layout']})" if row["present"] else "no"
    if not row["present"]:
        told["looked for"] = "; ".join(row["expected"]) or "nowhere: no folder of public tasks is named"
    return told
