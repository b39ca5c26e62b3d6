"""What a shell offers after Tab: studies, statuses, causes, `axis=value` and cells of the study at hand.

It answers from two small files of the study at most, and loads nothing that takes long.
"""

import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

STATUSES = ("NEW", "PENDING", "RUNNING", "UNKNOWN", "DONE", "DIVERGED", "FAILED", "BLOCKED")
"""Of `state.Status`, which would load all that a state is made of."""
BASH = "complete_bash"


def complete_study(incomplete: str) -> list[str]:
    """Study files and study folders whose paths begin so; none lets the shell offer all paths."""
    return list(_paths(incomplete, (".toml",)))


def complete_source(incomplete: str) -> list[str]:
    """The same, and results tables."""
    return list(_paths(incomplete, (".toml", ".parquet")))


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    prefix = incomplete[: incomplete.rfind("/") + 1]
    folder = Path(prefix or ".")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        word = prefix + path.name
        if word.startswith(incomplete) and (path.suffix in suffixes or (path / "study.toml").is_file()):
            yield word


def complete_study_or_filter(context: typer.Context, incomplete: str) -> list[str]:
    """The first word of `status` and `retry`: a study, or a filter of the study file here."""
    return [*complete_study(incomplete), *complete_filter(context, incomplete)]


def complete_filter(context: typer.Context, incomplete: str) -> list[str]:
    """`axis=value` of the axes that tell the cells apart; once something is typed, the cells' ids too."""
    records = list(_records(_study(context.params), _runs(context.params)))
    pairs = [f"{axis}={value}" for axis, values in _axes(records).items() for value in values]
    ids = [record["cell_id"] for record in records] if incomplete else []
    return [word for word in (*pairs, *ids) if word.startswith(incomplete)]


def complete_cell(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of cells."""
    records = _records(_study(context.params), _runs(context.params))
    return [record["cell_id"] for record in records if record["cell_id"].startswith(incomplete)]


def complete_status(incomplete: str) -> list[str]:
    """Statuses, written as what is typed is."""
    return _as_typed(STATUSES, incomplete)


def complete_cause(incomplete: str) -> list[str]:
    """Causes of death."""
    from slurm.failures import Cause

    return _as_typed([cause.value for cause in Cause], incomplete)


def _as_typed(words: Iterable[str], incomplete: str) -> list[str]:
    same = [word.lower() if incomplete.islower() else word for word in words]
    return [word for word in same if word.startswith(incomplete)]


def values_in_bash(environment: Mapping[str, str]) -> list[str] | None:
    """What may stand after `axis=`; None where it is something else that is to be completed.

    Bash takes the equals sign for a word of its own (COMP_WORDBREAKS), and wants the value alone.
    """
    if environment.get("_UPSHOT_COMPLETE") != BASH:
        return None
    words, at = environment.get("COMP_WORDS", "").split(), int(environment.get("COMP_CWORD", "0"))
    typed = words[at] if at < len(words) else ""
    before = words[:at] if typed == "=" else words[: at - 1]
    if len(before) < 3 or before[-1].startswith("-") or "=" not in (typed, words[at - 1]):
        return None
    study = next((Path(word) for word in before[2:-1] if Path(word).exists()), Path("study.toml"))
    values = _axes(list(_records(study, _runs({})))).get(before[-1])
    wanted = "" if typed == "=" else typed
    return None if values is None else [value for value in values if value.startswith(wanted)]


def _study(given: Mapping[str, Any]) -> Path:
    """The study that is named already, in whatever place, or the file that is taken where none is."""
    words = [given.get("study"), *(given.get("cells") or ())]
    return next((Path(word) for word in words if word and Path(word).exists()), Path("study.toml"))


def _runs(given: Mapping[str, Any]) -> Path:
    return Path(given.get("runs") or os.environ.get("UPSHOT_RUNS") or "runs")


def _records(study: Path, runs: Path) -> Iterator[dict[str, Any]]:
    """What each cell of a submitted study is; nothing where anything is missing: Tab brings no errors."""
    try:
        folder = study if study.is_dir() else runs / tomllib.loads(study.read_text())["name"]
        lines = (folder / "cells.ndjson").read_text().splitlines()
    except (OSError, ValueError, KeyError, TypeError):
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # the torn last line
            continue


def _axes(records: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The values of every axis of which there are several, as one would type them."""
    values: dict[str, dict[str, None]] = {}
    for record in records:
        for axis, value in record.items():
            if axis not in ("cell_id", "dataset") and value is not None:
                values.setdefault(axis, {})[_typed(value)] = None
    return {axis: list(given) for axis, given in values.items() if len(given) > 1}


def _typed(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
