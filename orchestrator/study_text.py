"""The text of a study file: read, with overrides applied and paths made absolute."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from models.errors import StudyError


def read_document(path: Path, overrides: Iterable[str] = ()) -> tomlkit.TOMLDocument:
    """The TOML of a study file, with overrides applied and paths made absolute; raises StudyError where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StudyError(f"{path}: there is no such study file (`upshot init` writes one)") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read: {error}") from error
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{path}: not valid TOML: {error}") from error
    document = tomlkit.parse(text)
    for override in overrides:
        _override(document, override, path)
    _make_absolute(document, path)
    return document


def _override(document: tomlkit.TOMLDocument, override: str, path: Path) -> None:
    """Applies one `key.path=value`; the value is TOML, or a bare word."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise StudyError(f"--set {override}: write it as key=value, for example grid.epochs=[1,2]")
    try:
        value = tomlkit.parse(f"value = {text}")["value"]
    except TOMLKitError as error:
        if text.strip()[:1] in ("[", "{", '"', "'"):
            raise StudyError(f"--set {override}: the value is no TOML (strings need quotes): {error}") from error
        value = tomlkit.string(text)
    *parents, last = key.strip().split(".")
    table: Any = document
    for part in parents:
        table = table.setdefault(part, tomlkit.table())
        if isinstance(table, list):
            raise StudyError(f"--set {override}: {path} has several [[{part}]] tables; edit the file instead")
        if not isinstance(table, Mapping):
            raise StudyError(f"--set {override}: {part!r} is no table of {path}")
    table[last] = value


def _make_absolute(document: tomlkit.TOMLDocument, path: Path) -> None:
    upstream: Any = document.get("upstream")
    if isinstance(upstream, Mapping) and _is_path(upstream.get("dataset")):
        upstream["dataset"] = _absolute(path, upstream["dataset"])  # type: ignore[index]  # a tomlkit table
    cluster: Any = document.get("cluster")
    if isinstance(cluster, Mapping) and str(cluster.get("profile", "local")) != "local":
        cluster["profile"] = _absolute(path, str(cluster["profile"]))  # type: ignore[index]  # a tomlkit table
    downstream: Any = document.get("downstream")
    if isinstance(downstream, Mapping) and isinstance(downstream.get("data"), str):
        downstream["data"] = _absolute(path, downstream["data"])  # type: ignore[index]  # a tomlkit table
    if isinstance(downstream, Mapping) and isinstance(downstream.get("tasks"), list):
        for i, task in enumerate(downstream["tasks"]):
            downstream["tasks"][i] = absolute_task(task, path)


def absolute_task(task: Any, path: Path) -> Any:
    """The task, as an absolute path where it is a path, seen from the folder of `path`.

    Results name it so, and the draws of its shots depend on it: the same images under two names would not compare.
    """
    is_path = _is_path(task) or str(task).lower().endswith(".csv")
    return _absolute(path, task) if is_path else task


def _absolute(path: Path, name: str) -> str:
    try:
        return str(path.resolve().parent / Path(name).expanduser())
    except RuntimeError as error:
        raise StudyError(f"{path}: {name}: there is no such user: {error}") from error


def _is_path(name: object) -> bool:
    """A name with a separator is a path; packaged names have none."""
    return isinstance(name, str) and ("/" in name or name in (".", ".."))
