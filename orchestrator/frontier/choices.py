"""What is fitted, to which points, under which loss; and the points that a choice takes from a table. Pure numpy.

Shape suffixes: N points, V hull vertices, F points of a fit.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from orchestrator.frontier.hull import rising_part, steps_along, upper_hull
from orchestrator.frontier.law import Loss

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]

Method = Literal["hull", "rising", "all"]
METHODS: tuple[Method, ...] = get_args(Method)
Points = Literal["vertices", "dense"]
POINTS: tuple[Points, ...] = get_args(Points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a law is fitted.

    Args:
        method: to the upper hull, to its rising part, or to all points.
        points: to the vertices of the hull, or to 200 equal upstream steps along it; "all" has no use for it.
        loss: squared, or Huber's.
    """

    method: Method
    points: Points = "vertices"
    loss: Loss = "squared"


def vertices_of(us_N: "Floats", ds_N: "Floats", method: Method) -> "Indices":
    """The rows that a method looks at: the vertices of the hull or of its rising part, or all."""
    if method == "all":
        return np.arange(us_N.size)
    hull_V = upper_hull(us_N, ds_N)
    return hull_V if method == "hull" else hull_V[: rising_part(ds_N[hull_V])]


def fit_points(us_N: "Floats", ds_N: "Floats", choice: Choice) -> tuple["Floats", "Floats"]:
    """Upstream and downstream accuracies (F each) that the law is fitted to."""
    rows = vertices_of(us_N, ds_N, choice.method)
    us_F, ds_F = us_N[rows], ds_N[rows]
    if choice.method == "all" or choice.points == "vertices" or not rows.size:
        return us_F, ds_F
    us_1F, ds_1F = steps_along(us_F[None], ds_F[None], np.array([rows.size]))
    return us_1F[0], ds_1F[0]
