"""What the page's plots of downstream against upstream accuracy hold, ready for JSON. Pure."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from orchestrator.conflicts import is_ordered
from orchestrator.report.choices import NOTHING, SCALE, Choice, Choices
from orchestrator.report.facts import MODEL, Facts, plain
from orchestrator.report.panels import Panel, axis_values, shots_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGITS = 5  # of the curves


class _Columns:
    """Packed columns by content; adding one that is there gives its number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def add(self, values_N: "NDArray[np.uint16]") -> int:
        return self.numbers.setdefault(packed(values_N), len(self.numbers))


def plot_data(facts: Facts, panels: Sequence[Panel]) -> dict[str, Any]:
    """Cells with their axes, the accuracies of every choice, and the answers of the reducer."""
    upstreams, found = _Columns(), facts.choices
    places = {cell: i for i, cell in enumerate(found.cells)}
    tasks = list(dict.fromkeys([*facts.task_names, *(task for choice in found.choices for task in choice.tasks)]))
    return {
        "scale": SCALE,
        "nothing": NOTHING,
        "cells": _cells(facts),
        "tasks": tasks,
        "protocols": _protocols(facts),
        "layers": sorted({choice.layer for choice in found.choices if choice.layer is not None}),
        "choices": [_choice(choice, tasks, upstreams) for choice in found.choices],
        "upstreams": list(upstreams.numbers),
        "answers": [_answer(panel, facts, places) for panel in panels if panel.kind == "frontier"],
    }


def packed(values: "NDArray[np.uint16]") -> str:
    """Whole numbers of two bytes, the lower one first, in base64."""
    return b64encode(values.astype("<u2").tobytes()).decode("ascii")


def protocol_options(choices: Choices, shots: Sequence[int | None]) -> list[tuple[str, str | None, int | None, bool]]:
    """(label, protocol, shots, whether it follows the page's number of shots) of what the page offers.

    A protocol with numbers of shots that the page does not choose between is offered once for each.
    """
    by_protocol: dict[str | None, list[int | None]] = {}
    for choice in choices.choices:
        by_protocol.setdefault(choice.protocol, []).append(choice.shots)
    options: list[tuple[str, str | None, int | None, bool]] = []
    for protocol, own in by_protocol.items():
        name = protocol or "unknown"
        if set(own) <= set(shots):
            options.append((name, protocol, None, True))
        else:
            options += [
                (", ".join(filter(None, [name, shots_text(number)])), protocol, number, False)
                for number in dict.fromkeys(own)
            ]
    return options


def _protocols(facts: Facts) -> list[dict[str, Any]]:
    options = protocol_options(facts.choices, facts.shots)
    return [{"label": a, "protocol": b, "shots": c, "follows": d} for a, b, c, d in options]


def _cells(facts: Facts) -> dict[str, Any]:
    """Ids in the order of all values, parameters, and the axes that tell cells apart or name their models."""
    cells = facts.cells.sort("cell_id")
    names = [axis for axis in facts.axes if axis in facts.varying or axis in MODEL]
    return {
        "ids": cells["cell_id"].to_list(),
        "params": cells["params"].to_list(),
        "axes": [_axis(facts, cells, name) for name in names],
    }


def _axis(facts: Facts, cells: pl.DataFrame, name: str) -> dict[str, Any]:
    """An axis's values in words and in order, and which one each cell has."""
    values = axis_values(facts.cells, name)
    place = {value: i for i, value in enumerate(values)}
    numbers = [NOTHING if value is None else place[plain(value)] for value in cells[name]]
    return {
        "name": name,
        "varies": name in facts.varying,
        "ordered": name == "size" or is_ordered(name, cells.schema[name]),
        "values": values,
        "of": packed(np.array(numbers, dtype=np.uint16)),
    }


def _choice(choice: Choice, tasks: Sequence[str], upstreams: _Columns) -> dict[str, Any]:
    return {
        "protocol": choice.protocol,
        "shots": choice.shots,
        "layer": choice.layer,
        "tasks": [tasks.index(task) for task in choice.tasks],
        "upstreams": [upstreams.add(row_N) for row_N in choice.upstream_TN],
        "values": packed(choice.downstream_TN),
    }


def _answer(panel: Panel, facts: Facts, places: Mapping[str, int]) -> dict[str, Any]:
    """What the reducer found on a task: the cells of the hull, the law in parts, the interval."""
    (task,) = (task for task in facts.tasks if (task["task"], task["shots"]) == (panel.name, panel.shots))
    law = panel.tables["law"]
    band = panel.tables["band"].select("value", "low", "high").rows()
    return {
        "task": panel.name,
        "shots": panel.shots,
        "note": panel.note,
        "hull": [places[vertex["cell_id"]] for vertex in task["hull"]],
        "law": {part: _curve(law.filter(part=part)) for part in law["part"].unique(maintain_order=True)},
        "band": _rounded(band[0]) if band else None,
    }


def _curve(rows: pl.DataFrame) -> list[list[float]]:
    return [_rounded(rows[name].to_list()) for name in ("upstream", "downstream")]


def _rounded(numbers: Sequence[float]) -> list[float]:
    return [round(number, DIGITS) for number in numbers]
