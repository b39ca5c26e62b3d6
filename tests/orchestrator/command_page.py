"""docs/commands.md as the code has it: `python -m tests.orchestrator.command_page > docs/commands.md`."""

from typer.main import get_command

from models.recipe import Recipe
from orchestrator.cli import app
from orchestrator.csv_columns import TABLES

HEAD = """# Commands

Every command with its options, and the columns of its `--csv`. This page is made from the code.

`--json` and `--csv` print what a command found for a program: alone on standard output, while bars and warnings go to
standard error. JSON holds everything, CSV the main table; a column's name is the path of its value in the JSON's rows.
An empty field is a value that is not known or does not apply; the members of a list have semicolons between them.

In a terminal a table is as wide as the terminal: long names lose their beginnings and messages their ends, each with an
ellipsis that says so, numbers never anything. In a pipe or a file nothing is cut and a sentence is one line;
`COLUMNS=80` gives it a width. There are no colours off a terminal, nor where `NO_COLOR` is set.

What others wrote (logs, tracebacks, messages, names) cannot steer the terminal: it is shown without its colours, and
other control characters, as well as those that turn the direction of writing, as `\\x1b` or `\\u202e`. Of a bar that
drew over itself, the last state is shown, behind an ellipsis. `upshot logs` into a pipe or a file is the log byte for
byte, for `grep` or `less -R`; `--json` holds all texts as they are.

Long work shows a bar with the time left, on a terminal alone: on standard error, and gone when the work is done.

`upshot --install-completion` makes bash, zsh or fish complete commands, options, studies, statuses, causes,
`axis=value` and cells. `_UPSHOT_COMPLETE=source_zsh upshot` prints the script (`source_bash` and `source_fish` too),
for a package or a shared profile.
"""


def page():
    """The page."""
    parts = [HEAD]
    for name, command in commands(get_command(app).commands):
        parts += [f"## upshot {name}\n", " ".join(command.help.split()) + "\n", *_options(command), *_columns(name)]
    return "\n".join(parts).rstrip() + "\n"


def commands(group):
    """(name, command) of every command, those of a group with the group's name in front."""
    for name, command in group.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", one) for inner, one in command.commands.items())
        else:
            yield name, command


def _options(command):
    rows = []
    for parameter in command.params:
        if "--help" in parameter.opts:
            continue
        named = ", ".join(f"`{option}`" for option in parameter.opts if option.startswith("-"))
        rows.append(f"| {named or '`' + parameter.name.upper() + '`'} | {_cell(parameter.help or '')} |")
    return ["| argument or option | |", "|---|---|", *rows, ""] if rows else []


def _columns(name):
    if name not in TABLES:
        return []
    table = TABLES[name]
    axes = [axis for axis in Recipe.model_fields if axis in table.columns and axis != "dataset"]
    rows, is_told = [], False
    for column, words in table.columns.items():
        if len(axes) > 5 and column in axes:
            rows += [] if is_told else [f"| `{axes[0]}` to `{axes[-1]}` | the {len(axes)} axes, as in the study file |"]
            is_told = True
        else:
            rows.append(f"| `{column}` | {_cell(words)} |")
    which = f"a row for each of the JSON's `{table.rows}`" if table.rows else "one row"
    return [f"`--csv`, {which}:\n", "| column | |", "|---|---|", *rows, ""]


def _cell(text):
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
