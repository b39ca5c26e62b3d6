"""docs/study-file.md: every key of a study file and of a cluster profile, as the models have them.

    python -m orchestrator.study_reference > docs/study-file.md

What a key means stands below it in its model, and nowhere else.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

from models.recipe import Axes
from orchestrator import study
from slurm import cluster

HEAD = """\
# The study file and the cluster profile

Every key, as `python -m orchestrator.study_reference > docs/study-file.md` finds them in the code. Both files are
TOML. A key that is unknown, or a value that is not allowed, is an error that names the nearest known one.
`--set KEY=VALUE` of `upshot plan` and `upshot submit` overrides one key: `--set grid.epochs=[1,2]`. Relative paths are
seen from the study file's folder.

**A cell's id** is a hash of what its weights depend on: `upstream.dataset` and its value of every axis of `[grid]`. All
other keys may change at any time: no cell is trained again for it, and what exists is kept. Axes that are left at
their defaults do not enter the hash, and defaults never change. So an axis that a study gains later leaves the cells
that have its default as they are.
"""
PROFILE = """\
## The cluster profile

A file of its own, which any number of studies name as `cluster.profile`. [The tutorial](tutorial-cluster.md) explains
one for GPUs and one for TPUs, [On a Slurm cluster](clusters.md) what is made of it. None of it is part of a cell's id.
"""
SECTIONS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("At the top", "", study.Study),
    ("`[upstream]`", "upstream", study.Upstream),
    ("`[grid]`, or several `[[grid]]`", "grid", Axes),
    ("`[train]`", "train", study.Train),
    ("`[downstream]`", "downstream", study.Downstream),
    ("`[cluster]`", "cluster", study.ClusterChoice),
    ("`[[cluster.place]]`", "place", study.Placement),
    ("`[retry]`", "retry", study.Retry),
    ("`[wandb]`", "wandb", study.Wandb),
)
PROFILE_SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("At the top of the profile", cluster.Profile),
    ("`[partitions.NAME]`", cluster.Partition),
    ("`[driver]`", cluster.Driver),
)
NOTES = {
    "grid": "Each key takes a value or a list of values; every combination is a cell. Several `[[grid]]` tables are"
    " united. Part of a cell's id: all of them.",
    "upstream": "Part of a cell's id: `dataset`.",
}
NOT_IN_ID = "Part of a cell's id: none of them."


def reference() -> str:
    """The whole page."""
    parts = [HEAD, "## The study file\n"]
    for title, key, model in SECTIONS:
        parts += [f"### {title}\n", f"{summary(model)} {NOTES.get(key, NOT_IN_ID)}\n", table(model)]
    parts.append(PROFILE)
    for title, model in PROFILE_SECTIONS:
        parts += [f"### {title}\n", f"{summary(model)}\n", table(model)]
    return "\n".join(parts)


def summary(model: type[BaseModel]) -> str:
    """The first sentence of a model's docstring."""
    return (inspect.getdoc(model) or "").partition("\n")[0]


def table(model: type[BaseModel]) -> str:
    """A line for each key that is no table of its own: its values, default and meaning."""
    schema, means = model.model_json_schema(), meanings(model)
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        if not _is_table(field):
            cells = (f"`{name}`", values(field), default(name, schema), means[name])
            lines.append(f"| {' | '.join(text.replace('|', '&#124;') for text in cells)} |")
    return "\n".join(lines) + "\n"


def _is_table(field: Mapping[str, Any]) -> bool:
    """Whether a key opens a table, or several, which have a section of their own."""
    inner = field.get("additionalProperties") or field.get("items", {})
    return "$ref" in field or "$ref" in inner or field.get("title") == "Grid"


def default(name: str, schema: Mapping[str, Any]) -> str:
    """A key's default as TOML writes it; `needed`, or nothing where leaving it out has a meaning of its own."""
    if name in schema.get("required", ()):
        return "needed"
    value = schema["properties"][name]["default"]
    if value is None:
        return ""
    return f"`{json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)}`"


def values(field: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in field:
        return " or ".join(values(one) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field or "const" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field.get("enum", [field.get("const")]))
    kind = field.get("type")
    if kind == "array":
        return f"list of {_plural(values(field['items']))}" if field.get("items") else "list"
    if kind == "object":
        return "table"
    words = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}[str(kind)]
    return f"{words}{_bounds(field)}"


def _plural(word: str) -> str:
    first, _, rest = word.partition(" from ")
    return "texts" if first == "text" else f"{first}s from {rest}" if rest else f"{first}s"


def _bounds(field: Mapping[str, Any]) -> str:
    words = {
        "minimum": "from {}",
        "exclusiveMinimum": "above {}",
        "maximum": "up to {}",
        "exclusiveMaximum": "below {}",
    }
    said = [
        text.format(f"{field[key]:g}" if abs(field[key]) < 1e6 else field[key])
        for key, text in words.items()
        if key in field
    ]
    return f" {', '.join(said)}" if said else ""


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """What stands below each field of a model, in one line; pages of docs/ become links."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(node, ast.ClassDef), "a model's source is its class"
    found = {}
    for pair in pairwise(node.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = re.sub(r"docs/([a-z-]+)\.md", r"[\1](\1.md)", " ".join(text.split()))
    return found


if __name__ == "__main__":
    print(reference(), end="")
