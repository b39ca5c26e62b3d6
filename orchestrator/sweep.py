"""A W&B sweep definition (YAML) as the study file of the same grid: converted once, plain TOML from then on."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomlkit

from models.errors import StudyError, UnknownNameError, did_you_mean
from orchestrator.study import AXES, parse_study
from orchestrator.template import TEMPLATE, write_study

KINDS: Final = ("constant", "categorical")
"""Distributions that are lists of values."""
TAKEN: Final = ("method", "parameters", "name", "entity", "project")


@dataclass(frozen=True, slots=True)
class Converted:
    """A study file that was made of a sweep, and the sweep's keys that have no place in one."""

    path: Path
    left_out: list[str]


def convert_sweep(sweep: Path, path: Path, renamed: Iterable[str] = ()) -> Converted:
    """Writes the template with the sweep's parameters as its grid; the sweep's name, entity and project are taken over.

    Args:
        sweep: the definition that `wandb sweep` takes.
        path: the study file to write.
        renamed: AXIS=PARAMETER, where a parameter is called otherwise.

    Raises:
        StudyError: the definition cannot be read, is no grid, has a parameter that is no list of values of an axis;
            a study file is there already.
        UnknownNameError: `renamed` names an axis or a parameter that there is not.
    """
    definition = _read(sweep)
    _check_method(definition, sweep)
    parameters = definition.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        raise StudyError(f"{sweep}: parameters: the sweep has none, so the grid is empty")
    axes = _renamed(renamed, parameters, sweep)
    _check_axes(parameters, axes, sweep)
    grid = {axes.get(str(name), str(name)): _values(name, given, sweep) for name, given in parameters.items()}
    if len(grid) < len(parameters):
        raise StudyError(f"{sweep}: parameters: two of them are the same axis: {', '.join(map(str, parameters))}")
    document = tomlkit.parse(TEMPLATE)
    _take_over(document, definition)
    document["grid"] = _table(grid, document.unwrap(), sweep)
    write_study(path, tomlkit.dumps(document))
    return Converted(path, [str(key) for key in definition if key not in TAKEN])


def _read(sweep: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]  # comes with wandb

    try:
        definition = yaml.safe_load(sweep.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyError(f"{sweep}: there is no such sweep definition") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"{sweep}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(definition, dict):
        raise StudyError(f"{sweep}: is no sweep definition (`method: grid` and `parameters:`)")
    return definition


def _check_method(definition: Mapping[str, Any], sweep: Path) -> None:
    method = definition.get("method")
    if method != "grid":
        raise StudyError(
            f"{sweep}: method: {method!r} given, only 'grid' can be a study: its cells are known before the first one "
            "starts, so that they can be planned, priced and submitted, and a random or Bayesian search chooses them "
            "as it goes. Give each parameter `values`, and `method: grid`"
        )


def _renamed(texts: Iterable[str], parameters: Mapping[str, Any], sweep: Path) -> dict[str, str]:
    """Axes by parameter."""
    axes: dict[str, str] = {}
    for text in texts:
        axis, equals, parameter = (part.strip() for part in text.partition("="))
        if not equals:
            raise StudyError(f"--axis {text}: write it as AXIS=PARAMETER, for example learning_rate=lr")
        if axis not in AXES:
            raise UnknownNameError("axis", axis, AXES)
        if parameter not in parameters:
            raise UnknownNameError("parameter", parameter, map(str, parameters), f"in {sweep}")
        axes[parameter] = axis
    return axes


def _check_axes(parameters: Iterable[object], axes: Mapping[str, str], sweep: Path) -> None:
    unknown = [str(name) for name in parameters if axes.get(str(name), str(name)) not in AXES]
    if unknown:
        told = [f"{sweep}: parameters.{name}: no axis of a study is called so.{_hint(name)}" for name in unknown]
        raise StudyError("\n".join([*told, f"The axes: {', '.join(AXES)}"]))


def _hint(name: str) -> str:
    near = nearest_axis(name)
    if near:
        return f" Did you mean {near!r}? Then: --axis {near}={name}"
    return f" If it is one: --axis AXIS={name}; if not, a study cannot vary it: take it out"


def nearest_axis(name: str) -> str | None:
    """The axis that a parameter's name most likely means: of its initials (lr, wd, bs), or one written alike."""
    for axis in AXES:
        if "_" in axis and name.lower() == "".join(word[0] for word in axis.split("_")):
            return axis
    near = re.search(r"'(.+)'", did_you_mean(name, AXES))
    return near[1] if near else None


def _values(name: object, given: Any, sweep: Path) -> list[Any]:
    where = f"{sweep}: parameters.{name}"
    if not isinstance(given, Mapping):
        raise StudyError(f"{where}: {given!r} given, `value: V` or `values: [V, ...]` needed")
    if "parameters" in given:
        raise StudyError(f"{where}: nested parameters are no axis; write them as parameters of their own")
    if given.get("distribution", KINDS[0]) not in KINDS or not {"value", "values"} & given.keys():
        raise StudyError(f"{where}: {dict(given)} is a range or a distribution; a grid needs `values: [V, ...]`")
    if other := given.keys() - {"value", "values", "distribution"}:
        raise StudyError(f"{where}: {', '.join(sorted(map(str, other)))}: has no meaning in a grid of values")
    values = given["values"] if "values" in given else [given["value"]]
    if not isinstance(values, list) or not values or any(value is None for value in values):
        raise StudyError(f"{where}: values: {values!r} given, a list of one or more values needed, none of them null")
    return values


def _table(grid: Mapping[str, list[Any]], template: Mapping[str, Any], sweep: Path) -> Any:
    """The [grid] table: values as the study reads them, so that YAML's text '1e-3' is written as the number it is."""
    study = parse_study({**template, "grid": dict(grid)}, sweep)
    table = tomlkit.table()
    for axis, values in study.grid[0].items():
        table[axis] = values[0] if len(values) == 1 else values
    return table


def _take_over(document: Any, definition: Mapping[str, Any]) -> None:
    if isinstance(definition.get("name"), str):
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", definition["name"]).strip("-._")[:64]
        document["name"] = words or document["name"]
    for key in ("project", "entity"):
        if isinstance(definition.get(key), str):
            document["wandb"][key] = definition[key]
