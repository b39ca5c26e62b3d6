"""What the effects come to: one row an axis, one sentence a finding. Pure.

The frames are those of `effects.frames_of`, of all numbers of shots or of one.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

LEVEL = 0.05

Frames = Mapping[str, pl.DataFrame]


def axis_summary(axes: pl.DataFrame) -> pl.DataFrame:
    """For each axis that was tested, most telling first.

    Columns: axis, tests (tasks and shots), found (p <= 0.05), by_chance (as many would be, were there nothing to find),
    partial_r2 (median).
    """
    tested = axes.filter(pl.col("p_value").is_not_null())
    summed = tested.group_by("axis", maintain_order=True).agg(
        tests=pl.len(),
        found=(pl.col("p_value") <= LEVEL).sum(),
        by_chance=LEVEL * pl.len(),
        partial_r2=pl.col("partial_r2").median(),
    )
    return summed.sort(pl.col("found") / pl.col("tests"), "partial_r2", "axis", descending=[True, True, False])


def parting(directions: pl.DataFrame) -> pl.DataFrame:
    """Rows in which one direction outweighs the other beyond chance (p <= 0.05), surest first."""
    return directions.filter(pl.col("p_value") <= LEVEL).sort("p_value", "axis", "task", "shots")


def sentences(frames: Frames) -> list[str]:
    """Every finding in plain words."""
    return [
        *axis_sentences(frames["axes"]),
        *choice_sentences(frames["regret"], frames["best_cells"]),
        *alike_sentences(frames["correlations"]),
        *layer_sentences(frames["layers"]),
        *tuned_sentences(frames["coverage"]),
    ]


def axis_sentences(axes: pl.DataFrame) -> list[str]:
    """Which axes tell more of downstream accuracy than upstream accuracy does."""
    told = [
        f"Given upstream accuracy, {row['axis']} adds information on {row['found']} of "
        f"{_tasks(row['tests'], axes)} "
        f"(p ≤ {LEVEL:g}; by chance it would on {row['by_chance']:.2g}); in the median it explains "
        f"{row['partial_r2'] * 100:.0f} % of what upstream accuracy leaves."
        for row in axis_summary(axes).iter_rows(named=True)
    ]
    untested = axes.filter(
        pl.col("p_value").is_null() & (pl.col("num_values") > 1) & ~pl.col("axis").is_in(_tested(axes).implode())
    )
    reasons = untested.unique("axis").sort("axis").select("axis", "reason").iter_rows()
    return told + [f"Whether {axis} adds information cannot be told: {reason}." for axis, reason in reasons]


def _tested(axes: pl.DataFrame) -> pl.Series:
    return axes.filter(pl.col("p_value").is_not_null())["axis"].unique()


def choice_sentences(regret: pl.DataFrame, best: pl.DataFrame) -> list[str]:
    """What one cell for all tasks loses, and what the best cell upstream loses."""
    return [*_regret(regret), *_upstream(best)]


def _regret(regret: pl.DataFrame) -> list[str]:
    told = []
    for row in regret.filter(pl.col("mean_rank").fill_null(1) == 1).iter_rows(named=True):
        left_out = _count(row["incomplete_cells"], "cell")
        if row["cell_id"] is None:
            told.append(f"No cell has all {row['tasks']} tasks{_at(row['shots'])}, so that none can stand for all.")
            continue
        told.append(
            f"One cell for all {row['tasks']} tasks{_at(row['shots'])}: {row['cell_id']} loses "
            f"{row['mean_regret']:.3f} of accuracy on average and {row['worst_regret']:.3f} at worst "
            f"({row['worst_task']}) against the best cell of each"
            + (f"; {left_out} without all tasks left out." if row["incomplete_cells"] else ".")
        )
    return told


def _upstream(best: pl.DataFrame) -> list[str]:
    if best.is_empty():
        return []
    told = []
    alone, shared = best.filter(highest_upstream=1), best.filter(pl.col("highest_upstream") > 1)
    if alone.height:
        told.append(
            f"The cell with the highest upstream accuracy is the best one on {alone.filter(upstream_rank=1).height} of "
            f"{_tasks(alone.height, best)}; taking it everywhere {_lost(alone)}."
        )
    if shared.height:
        numbers = shared["highest_upstream"].to_list()
        fewest, most = min(numbers), max(numbers)
        cells = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        told.append(
            f"On {_tasks(shared.height, best)}, {cells} cells share the highest upstream accuracy, so that it chooses "
            f"none; taking any of them {_lost(shared)} (means over these cells)."
        )
    return told


def _lost(best: pl.DataFrame) -> str:
    lost_N = best["lost_by_upstream"].to_numpy()
    return f"loses {lost_N.mean():.3f} of accuracy on average and {lost_N.max():.3f} at worst"


def alike_sentences(correlations: pl.DataFrame) -> list[str]:
    """Whether tasks rank the cells alike."""
    known = correlations.drop_nulls("spearman").sort("spearman", "task", "other", "shots")
    if known.is_empty():
        return []
    least, values_N = known.row(0, named=True), known["spearman"].to_numpy()
    return [
        f"Two tasks rank the cells with a median Spearman of {np.median(values_N):.2f}; least alike are "
        f"{least['task']} and {least['other']}{_at(least['shots'])} ({least['spearman']:.2f}, "
        f"{_count(least['n'], 'cell')})."
    ]


def layer_sentences(layers: pl.DataFrame) -> list[str]:
    """Which layer is best, and where it goes as upstream accuracy grows."""
    whole = layers.filter(pl.col("family").is_null())
    if whole.is_empty():
        return []
    cells, last, optimistic = (int(whole[name].sum()) for name in ("cells", "last_best", "optimistic"))
    gain = float((whole["gain"] * whole["cells"]).sum()) / cells
    # A rank correlation without a trend has a standard error of 1 / sqrt(n - 1).
    moves = whole.filter(pl.col("drift").abs() * (pl.col("n") - 1).sqrt() > 1.96)
    up, down = int((moves["drift"] > 0).sum()), int((moves["drift"] < 0).sum())
    hope = " An upper bound: the layer is chosen by the accuracy it is judged by." if optimistic else ""
    return [
        f"The last layer is the best in {last:,} of {cells:,} choices (a cell on a task); the chosen layer gains "
        f"{gain:+.3f} over it on average.{hope} As upstream accuracy grows the best layer lies deeper on {up} and less "
        f"deep on {down} of {_tasks(whole.height, whole)} (beyond 1.96 standard errors)."
    ]


def tuned_sentences(coverage: pl.DataFrame) -> list[str]:
    """Whether every family and size was tuned as much."""
    settings = coverage.filter(pl.col("axis").is_null())
    fewer = settings.filter("fewer")
    if settings.is_empty():
        return []
    most = int(settings["values"].to_numpy().max())
    if fewer.is_empty():
        return [f"Every family and size has as many hyper-parameter settings: {most}."]
    named = [
        " ".join(filter(None, (row["family"], row["size"]))) + f" ({row['values']})"
        for row in fewer.iter_rows(named=True)
    ]
    return [f"Tuned with fewer hyper-parameter settings than the most ({most}): {', '.join(named)}."]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _tasks(number: int, frame: pl.DataFrame) -> str:
    """`8 tasks`, or `32 tasks × shots` where there are several numbers of shots."""
    return _count(number, "task") + (" × shots" if frame["shots"].n_unique() > 1 else "")


def _at(shots: int | None) -> str:
    return "" if shots is None else f" at {_count(shots, 'shot')}"
