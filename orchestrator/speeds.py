"""What stages really take, from those that have ended: corrects the plan's hours and the time that is left."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from models.recipe import Axes
from orchestrator.store import Stage

MOST_POINTS = 200  # that a line is laid through: their pairs are 20,000


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds = base + slope x planned seconds."""

    base: float
    slope: float

    def seconds(self, planned: float) -> float:
        """What a stage that was planned to take so long is expected to take."""
        return self.base + self.slope * planned


@dataclass(frozen=True, slots=True)
class Speeds:
    """What stages that have ended took, beside what was planned: by stage and family, a line through the points.

    A family's own line is used where it has ended cells, that of all families where it has none.
    """

    points: Mapping[tuple[Stage, str], list[tuple[float, float]]] = field(default_factory=dict)
    lines: Mapping[tuple[Stage, str], Line] = field(default_factory=dict)

    def seconds(self, stage: Stage, family: str, planned: float) -> float | None:
        """The expected seconds; None before anything of the stage has ended."""
        line = self.lines.get((stage, family)) or self.lines.get((stage, ""))
        return None if line is None else line.seconds(planned)

    def summary(self) -> list[dict[str, Any]]:
        """Planned against measured, a row a stage and family, as `plan --json` prints it."""
        return [
            {
                "stage": stage,
                "family": family,
                "cells": len(points),
                "planned_hours": sum(planned for planned, _ in points) / 3600,
                "measured_hours": sum(measured for _, measured in points) / 3600,
            }
            for (stage, family), points in sorted(self.points.items())
            if family
        ]


def measured_as(recipe: Axes) -> str:
    """Whose line a cell's stages are on: its family's, or that of its own model, for timm's have little in common."""
    return f"timm {recipe.size}" if recipe.family == "timm" else recipe.family


def measure_speeds(ended: Iterable[tuple[Stage, str, float, float]]) -> Speeds:
    """The speeds from (stage, family, planned seconds, measured seconds) of what has ended."""
    points: dict[tuple[Stage, str], list[tuple[float, float]]] = {}
    for stage, family, planned, measured in ended:
        for name in (family, ""):
            points.setdefault((stage, name), []).append((planned, measured))
    return Speeds(points, {key: fit_line(members) for key, members in points.items()})


def fit_line(points: list[tuple[float, float]]) -> Line:
    """The line of the median slope between two points (Theil and Sen), with neither coefficient below zero.

    One cell on a node that was busy or swapping does not bend it, as it would bend least squares. Where the points do
    not say more (one, or all alike) what is measured beyond the plan is taken for a start-up time: a small cell's
    seconds, multiplied up, would make years of a large one.
    """
    points = sorted(points)[:: -(-len(points) // MOST_POINTS)]
    middle_x, middle_y = (statistics.median(column) for column in zip(*points, strict=True))
    start_up = Line(max(0.0, middle_y - middle_x), min(1.0, middle_y / middle_x) if middle_x else 1.0)
    slopes = [(y - b) / (x - a) for (a, b), (x, y) in combinations(points, 2) if x - a > 1e-9 * x]
    slope = statistics.median(slopes) if slopes else 0.0
    if slope <= 0:
        return start_up
    base = statistics.median(y - slope * x for x, y in points)
    return Line(base, slope) if base >= 0 else Line(0.0, statistics.median(y / x for x, y in points if x))
