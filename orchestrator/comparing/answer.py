"""Two studies side by side, task by task, in objects and in sentences. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from models.errors import UserError
from orchestrator.comparing.difference import Cells, Difference, difference_of_values, find_difference
from orchestrator.comparing.sides import Side, TaskKey
from orchestrator.frontier import NumTest
from orchestrator.report.panels import titled
from orchestrator.report.words import count, listed, signed


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One task and number of shots that both sides have.

    Args:
        key: task and shots.
        title: what people call it.
        cells: those of both sides.
        difference: of their frontiers, or why there is none.
        saturation: of both sides, and the first less the second: (value, low, high), None where the data identify none.
    """

    key: TaskKey
    title: str
    cells: tuple[pl.DataFrame, pl.DataFrame]
    difference: Difference | str
    saturation: tuple[tuple[float, float, float] | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two studies, what they have in common, what they have not, and what to mind."""

    sides: tuple[Side, Side]
    tasks: list[Compared]
    only: tuple[list[TaskKey], list[TaskKey]]
    warnings: list[str]


def compare(a: Side, b: Side, *, draws: int = 200, seed: int = 0) -> Comparison:
    """Everything that the two have in common.

    Args:
        a: the first study, whose frontier is the one that lies higher where a difference is positive.
        b: the second.
        draws: samples of each study's cells.
        seed: of the samples.

    Raises:
        UserError: there is nothing in common.
    """
    common = [key for key in a.tasks if key in b.tasks]
    if not common:
        has = "; ".join(f"{side.name} has {named(list(side.tasks))}" for side in (a, b))
        raise UserError(f"{a.name} and {b.name} have no task with the same number of shots in common: {has}")
    return Comparison(
        sides=(a, b),
        tasks=[_compared(key, a, b, draws, seed) for key in common],
        only=tuple([key for key in one.tasks if key not in other.tasks] for one, other in ((a, b), (b, a))),  # type: ignore[arg-type]  # of two
        warnings=_warnings(a, b, common),
    )


def sentence(compared: Compared, names: Sequence[str]) -> str:
    """Which frontier lies higher where."""
    found = compared.difference
    if isinstance(found, str):
        return f"cannot be compared: {found}"
    judged_S = found.us_S[found.judged]
    if not found.regions:
        mean = f"{signed(found.mean)} {_interval(found.mean_low, found.mean_high)} on average"
        return f"no difference can be told between {judged_S[0]:.3f} and {judged_S[-1]:.3f} upstream ({mean})"
    parts = []
    for region in found.regions:
        higher = region.mean > 0
        low, high = sorted(abs(value) for value in (region.mean_low, region.mean_high))
        everywhere = (region.low, region.high) == (judged_S[0], judged_S[-1])
        where = f"{'everywhere ' if everywhere else ''}between {region.low:.3f} and {region.high:.3f} upstream"
        parts.append(
            f"the frontier of {names[0 if higher else 1]} lies {abs(region.mean):.3f} "
            f"{_interval(low, high)} higher {where}"
        )
    return "; ".join(parts)


def named(keys: Sequence[TaskKey]) -> str:
    """Tasks, each with its numbers of shots: `mnist (1 and 5 shots), pets`."""
    shots: dict[str, list[str]] = {}
    for task, number in keys:
        shots.setdefault(task, []).extend([] if number is None else [str(number)])
    return ", ".join(
        task + (f" ({listed(numbers)} shot{'' if numbers == ['1'] else 's'})" if numbers else "")
        for task, numbers in shots.items()
    )


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as an object for JSON."""
    a, b = comparison.sides
    return {
        **{letter: _side_object(side) for letter, side in (("a", a), ("b", b))},
        "warnings": comparison.warnings,
        "tasks": [_task_object(compared, (a.name, b.name)) for compared in comparison.tasks],
        **{
            f"only_{letter}": [{"task": task, "shots": shots} for task, shots in keys]
            for letter, keys in zip("ab", comparison.only, strict=True)
        },
    }


def best_of(cells: pl.DataFrame) -> dict[str, Any]:
    """The cell with the highest downstream accuracy; of equally good ones, that which is best upstream."""
    best = cells.sort("downstream", "upstream", "cell_id", descending=[True, True, False])
    return best.row(0, named=True) if best.height else {"cell_id": None, "upstream": None, "downstream": None}


def _interval(low: float, high: float) -> str:
    return f"[{low:.3f}, {high:.3f}]".replace("-", "−")


def _compared(key: TaskKey, a: Side, b: Side, draws: int, seed: int) -> Compared:
    cells = a.at(key), b.at(key)
    values = [_saturation(side.tasks[key]) for side in (a, b)]
    known = [value for value in values if value is not None]
    return Compared(
        key=key,
        title=titled(*key),
        cells=cells,
        difference=find_difference(*map(_accuracies, cells), draws=draws, seed=seed),
        saturation=(*values, difference_of_values(*known) if len(known) == len(values) else None),
    )


def _accuracies(cells: pl.DataFrame) -> Cells:
    # In an order of their own, so that draws do not depend on that of rows or ids.
    cells = cells.sort("upstream", "downstream", "upstream_num_test", "downstream_num_test")
    us, ds = cells["upstream_num_test"], cells["downstream_num_test"]
    sizes = None if us.has_nulls() or ds.has_nulls() else NumTest(us_N=us.to_numpy(), ds_N=ds.to_numpy())
    return Cells(us_N=cells["upstream"].to_numpy(), ds_N=cells["downstream"].to_numpy(), sizes=sizes)


def _saturation(task: dict[str, Any]) -> tuple[float, float, float] | None:
    fit = task["fits"]["hull"]
    return (1 - fit["e_ir"], 1 - fit["e_ir_high"], 1 - fit["e_ir_low"]) if fit and task["identifiable"] else None


def _warnings(a: Side, b: Side, common: Sequence[TaskKey]) -> list[str]:
    """What the comparison takes for granted, as far as that is in doubt."""
    found = [_upstream_warning(a, b)]
    if a.protocol != b.protocol:
        named = [side.protocol or "unknown" for side in (a, b)]
        found.append(f"The protocols differ: {named[0]} in {a.name}, {named[1]} in {b.name}.")
    unlike = [titled(*key) for key in common if not _alike(a.at(key), b.at(key), "downstream_num_test")]
    if unlike:
        found.append(f"The test sets differ in size, so they may not be the same images: {listed(unlike)}.")
    shared = len(set(a.cells["cell_id"]) & set(b.cells["cell_id"]))
    if shared:
        are = "is" if shared == 1 else "are"
        found.append(f"{count(shared, 'cell')} {are} in both; the intervals take the two studies for independent.")
    return list(filter(None, found))


def _upstream_warning(a: Side, b: Side) -> str:
    assumption = "The comparison takes equal upstream accuracies for equally good upstream."
    if a.upstream is not None and b.upstream is not None:
        if a.upstream == b.upstream:
            return ""
        differ = f"upstream accuracy is that on {a.upstream} in {a.name} and on {b.upstream} in {b.name}"
        return f"The two x axes are not the same quantity: {differ}. {assumption}"
    if not _alike(a.cells, b.cells, "upstream_num_test"):
        return f"The upstream test sets differ in size, so the two x axes are not the same quantity. {assumption}"
    unknown = listed([side.name for side in (a, b) if side.upstream is None])
    return f"No results table says which upstream set its accuracies are on ({unknown}): make sure that it is one set."


def _alike(a: pl.DataFrame, b: pl.DataFrame, name: str) -> bool:
    """Whether two tables may tell of the same test set."""
    sizes = [set(cells[name].drop_nulls()) for cells in (a, b)]
    return not sizes[0] or not sizes[1] or sizes[0] == sizes[1]


def _side_object(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "source": str(side.source),
        "upstream": side.upstream,
        "protocol": side.protocol,
        "cells": side.cells["cell_id"].n_unique(),
    }


def _task_object(compared: Compared, names: Sequence[str]) -> dict[str, Any]:
    found, (task, shots) = compared.difference, compared.key
    about: dict[str, Any] = {"task": task, "shots": shots, "verdict": sentence(compared, names)}
    for letter, cells, value in zip("ab", compared.cells, compared.saturation[:2], strict=True):
        best = best_of(cells)
        about |= {f"n_{letter}": cells.height, f"saturation_{letter}": _value(value)}
        about[f"best_{letter}"] = {name: best[name] for name in ("cell_id", "upstream", "downstream")}
    about["saturation_difference"] = _value(compared.saturation[2])
    if isinstance(found, str):
        return {**about, "range": None, "difference": None, "regions": [], "interval_over": None, "reason": found}
    judged_S = found.us_S[found.judged]
    regions = [
        {
            "higher": names[0 if region.mean > 0 else 1],
            "upstream_low": region.low,
            "upstream_high": region.high,
            "difference": _value((region.mean, region.mean_low, region.mean_high)),
        }
        for region in found.regions
    ]
    return {
        **about,
        "range": {"low": float(judged_S[0]), "high": float(judged_S[-1])},
        "difference": _value((found.mean, found.mean_low, found.mean_high)),
        "regions": regions,
        "interval_over": "cells and evaluation noise" if found.over_noise else "cells",
        "reason": None,
    }


def _value(found: tuple[float, float, float] | None) -> dict[str, float] | None:
    return None if found is None else dict(zip(("value", "low", "high"), found, strict=True))
