"""Given upstream accuracy, does an axis add information about downstream accuracy? Pure numpy and polars.

Source of the question: arXiv 2110.02095, section 3, where data size, model size and epochs add none. Chosen here:

- Base model: logit(downstream) is a cubic polynomial of logit(upstream). Logits make the relation close to a line
  (arXiv 2107.04649), the cubic takes up what bend is left. Accuracies are kept within [0.001, 0.999].
- Axis: numbers as their logarithm where all are positive, otherwise as they are; `size` as the logarithm of params
  where they are known; names (and seeds) as categories. Cells without a value of the axis are left out.
- Test: F of the nested models, with a permutation p-value after Freedman and Lane (1983, as in Winkler et al. 2014):
  residuals of the base model are permuted, and both models fitted again. The identity counts as one permutation.

Cells are exchanged as if they differed in nothing else: an axis that goes along with another one in the grid (a family
with its own epochs) passes for it, and p-values are not corrected for the number of tests.

Shape suffixes: N cells, T tasks (with shots), D draws, X = D T, B columns of the base model, Q columns of an axis, K
columns, A axes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from orchestrator.conflicts import UNORDERED, axes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

LOWEST = 0.001
DEGREE = 3
MIN_FREEDOM = 3
MAX_CATEGORIES = 50
PERMUTATIONS = 999
# Values permuted at once (8 bytes each, two such arrays live at a time).
MAX_BLOCK = 2_000_000
# Parts of a sum of squares below this are rounding.
ROUNDING = 1e-10

RESIDUALS_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "cell_id": pl.String,
    "residual": pl.Float64,
}
Form = Literal["log", "log params", "linear", "categories"]
AXIS_EFFECTS_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "axis": pl.String,
    "form": pl.String,
    "n": pl.Int64,
    "num_values": pl.Int64,
    "f": pl.Float64,
    "numerator": pl.Int64,
    "denominator": pl.Int64,
    "p_value": pl.Float64,
    "partial_r2": pl.Float64,
    "slope": pl.Float64,
    "reason": pl.String,
}


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis as columns of a linear model, for the cells that have a value of it."""

    name: str
    form: Form
    known_N: "Bools"
    columns_NQ: "Floats"
    num_values: int


def axis_effects(cells: pl.DataFrame, *, permutations: int = PERMUTATIONS, seed: int = 0) -> pl.DataFrame:
    """The nested comparison for every task, shots and known axis: `AXIS_EFFECTS_SCHEMA`.

    `f` has `numerator` and `denominator` degrees of freedom; `partial_r2` is the part of the base model's residual sum
    of squares that the axis takes up; `slope` is the change of logit(downstream) with one unit of a number (or of its
    natural logarithm), null for categories. Where the comparison cannot be made these are null, and `reason` says why.

    Args:
        cells: one row per task, shots and cell.
        permutations: draws behind each p-value; the smallest one is 1 / (permutations + 1).
        seed: of the permutations.
    """
    known = axes_of(cells)
    rows: list[dict[str, Any]] = []
    for groups in _alike(cells):
        us_N = _logit(groups[0]["upstream"].to_numpy())
        ds_NT = _logit(np.stack([group["downstream"].to_numpy() for group in groups], axis=1))
        coded = [_coded(groups[0], axis) for axis in known]
        names = [group.select("task", "shots").row(0) for group in groups]
        for same in _by_cells(coded):
            known_N = same[0].known_N
            found = _compare(us_N[known_N], ds_NT[known_N], same, permutations, seed)
            rows += [
                {"task": task, "shots": shots, **row}
                for (task, shots), of_task in zip(names, found, strict=True)
                for row in of_task
            ]
    order = pl.col("axis").replace_strict(known, range(len(known)), return_dtype=pl.Int64)
    return pl.DataFrame(rows, schema=AXIS_EFFECTS_SCHEMA).sort("task", "shots", order)


def residuals(cells: pl.DataFrame) -> pl.DataFrame:
    """What each cell does on each task beyond its upstream accuracy: `RESIDUALS_SCHEMA`.

    The residual of the base model, in logits: above 0 where downstream accuracy is higher than the cubic of upstream
    accuracy says. Tasks with too few cells for the cubic have no row.

    Args:
        cells: one row per task, shots and cell.
    """
    frames = [pl.DataFrame(schema=RESIDUALS_SCHEMA)]
    for group in cells.sort("task", "shots", "cell_id").partition_by("task", "shots", maintain_order=True):
        base_NB = _base(_logit(group["upstream"].to_numpy()))
        if group.height - base_NB.shape[1] < MIN_FREEDOM:
            continue
        ds_N = _logit(group["downstream"].to_numpy())
        residual = pl.Series("residual", ds_N - base_NB @ (base_NB.T @ ds_N))
        frames.append(group.select("task", "shots", "cell_id").with_columns(residual))
    return pl.concat(frames)


def _base(us_N: "Floats") -> "Floats":
    """A basis of the cubics of upstream logits."""
    return _basis(np.vander(_standard(us_N), DEGREE + 1)) if us_N.size else np.zeros((0, 0))


def _alike(cells: pl.DataFrame) -> "Iterator[list[pl.DataFrame]]":
    """Tasks and shots with the same cells at the same upstream accuracies, which share their permutations."""
    alike: dict[tuple[object, ...], list[pl.DataFrame]] = {}
    for group in cells.sort("task", "shots", "cell_id").partition_by("task", "shots", maintain_order=True):
        key = (tuple(group["cell_id"]), group["upstream"].to_numpy().tobytes())
        alike.setdefault(key, []).append(group)
    yield from alike.values()


def _by_cells(coded: "Sequence[_Axis]") -> "list[list[_Axis]]":
    """Axes that are known of the same cells, which share their base model."""
    found: dict[bytes, list[_Axis]] = {}
    for axis in coded:
        found.setdefault(axis.known_N.tobytes(), []).append(axis)
    return list(found.values())


def _logit(accuracy_N: "Floats") -> "Floats":
    kept_N = np.clip(accuracy_N, LOWEST, 1 - LOWEST)
    logit_N: Floats = np.log(kept_N / (1 - kept_N))
    return logit_N


def _coded(cells: pl.DataFrame, axis: str) -> _Axis:
    values = cells[axis]
    known = values.drop_nulls()
    num_values, known_N = known.n_unique(), values.is_not_null().to_numpy()
    if axis == "size" and "params" in cells.columns and not cells["params"].filter(values.is_not_null()).has_nulls():
        numbers, form = cells["params"].filter(values.is_not_null()), "log params"
    elif known.dtype.is_numeric() and axis not in UNORDERED:
        numbers, form = known, "log" if known.len() and float(known.min()) > 0 else "linear"  # type: ignore[arg-type]  # of a column of numbers
    else:
        levels = known.unique().sort()[1 : MAX_CATEGORIES + 1]
        columns_NQ = (known.to_numpy()[:, None] == levels.to_numpy()).astype(np.float64)
        return _Axis(axis, "categories", known_N, columns_NQ, num_values)
    column_N = numbers.cast(pl.Float64).to_numpy()
    column_N = column_N if form == "linear" else np.log(column_N)
    return _Axis(axis, form, known_N, column_N[:, None], num_values)  # type: ignore[arg-type]  # one of the forms above


def _compare(
    us_N: "Floats", ds_NT: "Floats", axes: "Sequence[_Axis]", permutations: int, seed: int
) -> "list[list[dict[str, Any]]]":
    """Rows of each task for these axes."""
    base_NB = _base(us_N)
    residual_NT = ds_NT - base_NB @ (base_NB.T @ ds_NT)
    added = [_basis(a.columns_NQ - base_NB @ (base_NB.T @ a.columns_NQ), scale=a.columns_NQ) for a in axes]
    reasons = [_reason(axis, us_N.size, base_NB.shape[1], q.shape[1]) for axis, q in zip(axes, added, strict=True)]
    tested = [i for i, reason in enumerate(reasons) if reason is None]
    total_T = (residual_NT**2).sum(axis=0)
    flat_T = total_T <= ROUNDING * np.maximum((ds_NT**2).sum(axis=0), 1e-300)
    r2, exceeded = np.zeros((len(axes), total_T.size)), np.zeros((len(axes), total_T.size), dtype=np.int64)
    if tested:
        columns = [added[i] for i in tested]
        r2[tested] = _partial_r2(residual_NT, base_NB, columns)
        exceeded[tested] = _num_as_large(residual_NT, base_NB, columns, r2[tested], permutations, seed)
    return [
        [
            _row(axis, us_N, q_NQ, base_NB, residual_NT[:, t], r2[i, t], (1 + exceeded[i, t]) / (permutations + 1), why)
            for i, (axis, q_NQ) in enumerate(zip(axes, added, strict=True))
            for why in [reasons[i] or ("upstream accuracy leaves nothing to explain" if flat_T[t] else None)]
        ]
        for t in range(total_T.size)
    ]


def _row(
    axis: _Axis,
    us_N: "Floats",
    added_NQ: "Floats",
    base_NB: "Floats",
    residual_N: "Floats",
    r2: float,
    p_value: float,
    reason: str | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "axis": axis.name,
        "form": axis.form,
        "n": us_N.size,
        "num_values": axis.num_values,
        "reason": reason,
    }
    if reason is not None:
        return row
    num_added = added_NQ.shape[1]
    freedom = us_N.size - base_NB.shape[1] - num_added
    column_N = added_NQ[:, 0]
    return row | {
        "f": float(r2 / num_added / ((1 - r2) / freedom)) if r2 < 1 else None,
        "numerator": num_added,
        "denominator": freedom,
        "p_value": float(p_value),
        "partial_r2": float(r2),
        "slope": None
        if axis.form == "categories"
        else float(column_N @ residual_N / (column_N @ axis.columns_NQ[:, 0])),
    }


def _reason(axis: _Axis, num_cells: int, num_base: int, num_added: int) -> str | None:
    """Why the axis cannot be tested."""
    if axis.num_values < 2:
        return "one value" if axis.num_values else "no value"
    if axis.form == "categories" and axis.num_values > MAX_CATEGORIES:
        return f"{axis.num_values} categories, at most {MAX_CATEGORIES} are compared"
    if num_cells - num_base - num_added < MIN_FREEDOM:
        return f"{num_cells} cells are too few for {num_base + num_added} parameters"
    return None if num_added else "its value follows from upstream accuracy"


def _standard(values_N: "Floats") -> "Floats":
    spread = float(values_N.std())
    standard_N: Floats = (values_N - values_N.mean()) / (spread if spread > 0 else 1.0)
    return standard_N


def _basis(columns_NK: "Floats", scale: "Floats | None" = None) -> "Floats":
    """An orthonormal basis of the columns' span; what is rounding beside `scale` spans nothing."""
    if not columns_NK.size:
        return np.zeros((columns_NK.shape[0], 0))
    left_NK, sizes, _ = np.linalg.svd(columns_NK, full_matrices=False)
    largest = np.linalg.norm(columns_NK if scale is None else scale)
    basis: Floats = left_NK[:, sizes > 1e-9 * max(float(largest), 1e-300)]
    return basis


def _partial_r2(residual_NT: "Floats", base_NB: "Floats", added: "Sequence[Floats]") -> "Floats":
    """For each axis and column of residuals: the part of what the base model leaves that the axis takes up."""
    starts = np.cumsum([0, *(q_NQ.shape[1] for q_NQ in added)])[:-1]
    squares_KT = (np.concatenate(added, axis=1).T @ residual_NT) ** 2
    left_T = (residual_NT**2).sum(axis=0) - ((base_NB.T @ residual_NT) ** 2).sum(axis=0)
    taken_AT: Floats = np.add.reduceat(squares_KT, starts, axis=0)
    r2_AT: Floats = np.divide(taken_AT, left_T, where=left_T > 0, out=np.zeros_like(taken_AT))
    return r2_AT


def _num_as_large(
    residual_NT: "Floats",
    base_NB: "Floats",
    added: "Sequence[Floats]",
    observed_AT: "Floats",
    permutations: int,
    seed: int,
) -> "NDArray[np.int64]":
    """In how many permutations of the residuals the axis takes up as much. F rises with partial R^2 alone."""
    num_cells, num_tasks = residual_NT.shape
    rng = np.random.default_rng(seed)
    at_once = max(1, MAX_BLOCK // max(1, residual_NT.size))
    counts_AT = np.zeros(observed_AT.shape, dtype=np.int64)
    for start in range(0, permutations, at_once):
        num_draws = min(at_once, permutations - start)
        order_ND = np.stack([rng.permutation(num_cells) for _ in range(num_draws)], axis=1)
        permuted_NX = residual_NT[order_ND].reshape(num_cells, num_draws * num_tasks)
        r2_ADT = _partial_r2(permuted_NX, base_NB, added).reshape(len(added), num_draws, num_tasks)
        counts_AT += (r2_ADT >= observed_AT[:, None] * (1 - 1e-9)).sum(axis=1)
    return counts_AT
