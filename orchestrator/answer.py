"""One task and number of shots: frontier, held-out errors, recipe, conflicts, as an object for JSON. Pure.

Shape suffix: N cells.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from models.errors import UserError
from orchestrator import conflicts
from orchestrator.frontier import (
    LOSSES,
    METHODS,
    POINTS,
    TRAIN_QUANTILE,
    Choice,
    Contest,
    Fit,
    Loss,
    NumTest,
    Points,
    Verdict,
    find_frontier,
    find_recipes,
    round_steps,
)
from orchestrator.more_cells import more_cells_object

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a study is reduced.

    Args:
        seed: of the bootstrap over cells.
        draws: of the bootstrap.
        loss: of the laws.
        points: what the laws of hull and rising part are fitted to.
        at: the upstream accuracy of the recipes; None for the best vertex of each hull.
        asks_more: whether it is asked how many more cells would tell where a task saturates, which takes simulations.

    Raises:
        UserError: a negative seed, fewer than one draw, an unknown loss or kind of points, or an accuracy outside
            [0, 1].
    """

    seed: int = 0
    draws: int = 200
    loss: Loss = "squared"
    points: Points = "vertices"
    at: float | None = None
    asks_more: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed: {self.seed} given, at least 0 is needed")
        if self.draws < 1:
            raise UserError(f"draws: {self.draws} given, at least 1 bootstrap draw is needed for an interval")
        for name, value, known in (("loss", self.loss, LOSSES), ("points", self.points, POINTS)):
            if value not in known:
                raise UserError(f"{name}: {value!r} is not known; choose {' or '.join(known)}")
        if self.at is not None and not 0.0 <= self.at <= 1.0:
            raise UserError(f"at: upstream={self.at:g} is no accuracy; give a fraction in [0, 1]")


def parse_at(text: str) -> float:
    """The upstream accuracy of `upstream=0.8`.

    Raises:
        UserError: the text says something else.
    """
    name, _, value = text.partition("=")
    try:
        accuracy = float(value)
    except ValueError:
        accuracy = float("nan")
    if name.strip() != "upstream" or math.isnan(accuracy):
        raise UserError(f"--at {text}: give an upstream accuracy as a fraction in [0, 1], such as --at upstream=0.8")
    return accuracy


def recipe_text(task: Mapping[str, Any]) -> str:
    """Which cells to mix and what that reaches, or why there is no recipe."""
    recipe = task["recipe"]
    if recipe is None:
        return str(task["recipe_reason"])
    cells = " and ".join(f"{cell['cell_id']} (p = {cell['p']:.3f})" for cell in recipe["cells"])
    known = recipe["downstream_low"] is not None
    low, high = recipe["downstream_low"], recipe["downstream_high"]
    truly = f" as measured (truly {low:.3f} to {high:.3f})" if known else " as measured"
    reach = "reach" if len(recipe["cells"]) > 1 else "reaches"
    return f"{cells} {reach} {recipe['downstream']:.3f}{truly} at {recipe['upstream']:.3f} upstream"


def answer_task(cells: pl.DataFrame, settings: Settings) -> dict[str, Any]:
    """What the cells of one task and number of shots say (the keys from `n` on of `reduce.reduce_study`).

    Args:
        cells: one row a cell: cell_id, upstream, downstream, upstream_num_test, downstream_num_test, and its axes.
        settings: how.
    """
    us_N, ds_N, sizes = cells["upstream"].to_numpy(), cells["downstream"].to_numpy(), _sizes(cells)
    found = find_frontier(
        us_N,
        ds_N,
        sizes=sizes,
        points=settings.points,
        loss=settings.loss,
        seed=settings.seed,
        draws=settings.draws,
    )
    return {
        "n": cells.height,
        "hull_vertices": found.hull.size,
        "hull": cells[found.hull.tolist()].select("cell_id", "upstream", "downstream").to_dicts(),
        "fits": {method: _fit_object(found.fits[method], settings) for method in METHODS},
        **_said_object(found.said),
        "more_cells": _more_cells(cells, found.said, sizes, settings),
        "held_out": {
            **_contest_object(found.held_out.cells),
            "frontier": _contest_object(found.held_out.frontier),
        },
        **_recipe_object(cells, us_N, ds_N, sizes, settings),
        "spearman": conflicts.spearman(us_N, ds_N),
        "kendall": conflicts.kendall(us_N, ds_N),
        **_conflicts_object(cells, us_N, ds_N),
    }


def _more_cells(cells: pl.DataFrame, said: Verdict, sizes: NumTest | None, settings: Settings) -> dict[str, Any] | None:
    """None too where the value is identified, or more draws are needed rather than more cells."""
    if said.identifiable or said.reason == "too few draws" or not settings.asks_more:
        return None
    choice = Choice(method="hull", points=settings.points, loss=settings.loss)
    return more_cells_object(cells, sizes, choice, seed=settings.seed)


def _conflicts_object(cells: pl.DataFrame, us_N: "Floats", ds_N: "Floats") -> dict[str, Any]:
    num_pairs, num_conflicts = cells.height * (cells.height - 1) // 2, conflicts.count_pairs(us_N, ds_N).conflicts
    significant, noise = conflicts.significant_of(cells)
    return {
        "conflicts": num_conflicts,
        "conflict_share": num_conflicts / num_pairs if num_pairs else None,
        "significant_conflicts": significant,
        "significant_against": noise,
    }


def _fit_object(fit: Fit | None, settings: Settings) -> dict[str, Any] | None:
    if fit is None:
        return None
    return {
        "k": fit.law.k,
        "alpha": fit.law.alpha,
        "e_ir": fit.law.e_ir,
        "e_ir_low": fit.interval.e_ir_low,
        "e_ir_high": fit.interval.e_ir_high,
        "rmse": fit.law.rmse,
        "held_out_rmse": fit.held_out_rmse,
        "alpha_low": fit.interval.alpha_low,
        "alpha_high": fit.interval.alpha_high,
        "draws_failed": fit.interval.num_failed,
        "interval_over": fit.interval.source,
        "at_bound": list(fit.law.at_bound),
        "loss": settings.loss,
        "huber_delta": fit.law.huber_delta,
        "points": settings.points,
        **_said_object(fit.said),
    }


def _said_object(said: Verdict) -> dict[str, Any]:
    return {
        "identifiable": said.identifiable,
        "verdict": said.verdict,
        "reason": said.reason,
        "reasons": list(said.reasons),
    }


def _contest_object(contest: Contest) -> dict[str, Any]:
    return {
        "num_points": contest.num_points,
        "rmse": contest.rmse,
        "degenerate": list(contest.degenerate),
        "best_model": contest.best_model,
    }


def _recipe_object(
    cells: pl.DataFrame, us_N: "Floats", ds_N: "Floats", sizes: NumTest | None, settings: Settings
) -> dict[str, Any]:
    """The recipe at the upstream accuracy that was asked for, or at the best vertex, or why there is none.

    With it the intervals of those at round steps along the hull.
    """
    if not cells.height:
        return {"recipe": None, "recipe_reason": "there is no cell", "recipes_along": None}
    # Of equally good cells, the one that needs least upstream.
    at = float(us_N[ds_N == ds_N.max()].min()) if settings.at is None else settings.at
    steps = round_steps(float(us_N.min()), float(us_N.max()))
    try:
        recipe, *along = find_recipes(us_N, ds_N, [at, *steps], sizes=sizes)
    except UserError as error:
        return {"recipe": None, "recipe_reason": str(error), "recipes_along": None}
    shares = {recipe.left: recipe.p_left, recipe.right: 1.0 - recipe.p_left}
    if recipe.left == recipe.right:
        shares = {recipe.left: 1.0}
    mixed = [
        {"cell_id": cells["cell_id"][row], "p": p, "upstream": float(us_N[row]), "downstream": float(ds_N[row])}
        for row, p in shares.items()
    ]
    return {
        "recipe": {
            "upstream": recipe.upstream,
            "downstream": recipe.downstream,
            "downstream_low": recipe.low,
            "downstream_high": recipe.high,
            "cells": mixed,
        },
        "recipe_reason": None,
        "recipes_along": {
            "upstream": steps,
            "downstream_low": None if sizes is None else [one.low for one in along],
            "downstream_high": None if sizes is None else [one.high for one in along],
        },
    }


def _sizes(cells: pl.DataFrame) -> NumTest | None:
    us, ds = cells["upstream_num_test"], cells["downstream_num_test"]
    return None if us.has_nulls() or ds.has_nulls() else NumTest(us_N=us.to_numpy(), ds_N=ds.to_numpy())


def method_text(protocol: str | None, settings: Settings) -> str:
    """How the numbers were made, in one sentence."""
    probe = "" if protocol is None else f", protocol {protocol}"
    loss = {"squared": "least squares", "huber": "Huber loss (delta in each fit)"}[settings.loss]
    points = {"vertices": "its vertices", "dense": "200 equal upstream steps along it"}[settings.points]
    return (
        f"last checkpoint, last layer, mean over draws{probe}; upper hull of cells; {loss} on {points} "
        "(rising: up to the best downstream vertex; all: every cell) by variable projection; 95 % intervals from "
        f"{settings.draws} bootstrap draws, seed {settings.seed} (hull and rising: a quarter of the cells without "
        "replacement, deviations doubled and reflected; all: with replacement, percentile), with evaluation noise in "
        "hull and rising "
        f"where all test-set sizes are known; held out: cells above the {TRAIN_QUANTILE:.0%} quantile of upstream "
        "accuracy; significant: both differences exceed the 95 % bound of their noise"
    )
