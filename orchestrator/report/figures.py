"""The figures of a report: every chart as SVG, PNG and PDF, grouped into small multiples."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import polars as pl

from orchestrator import charts, effect_charts, heat_charts
from orchestrator.bars import Tell, tell_nobody
from orchestrator.charts import PAPER, Multiple, Spec, Style
from orchestrator.files import write_atomically
from orchestrator.report.axis_panels import spacing_of
from orchestrator.report.facts import Facts
from orchestrator.report.panels import Panel, line_axes

COLUMNS, WIDTH, HEIGHT = 4, 170, 140
# Of more points than this, those that would cover one another on a grid of 2 by 2 pixels are drawn once: symbols are
# wider, and 4,800 cells on 25 tasks stay a file that a paper can include.
DENSE = 500
GRID = {"upstream": WIDTH // 2, "downstream": HEIGHT // 2}


def charts_of(facts: Facts, panels: Sequence[Panel], style: Style) -> dict[str, Spec]:
    """The chart that draws each kind of the panels."""
    made: dict[str, Spec] = {
        "frontier": charts.frontier_chart(style),
        "layers": charts.layers_chart(style),
        "conflicts": effect_charts.conflicts_chart(style),
        "conflict_axes": heat_charts.conflict_axes_chart(style),
        "changes": heat_charts.changes_chart(style, _largest_change(panels)),
        "added": heat_charts.added_chart(style),
        "correlations": heat_charts.correlations_chart(style),
        "depths": effect_charts.depths_chart(style),
        "gains": effect_charts.gains_chart(style),
        "best_of_k": effect_charts.best_of_k_chart(style),
        "measures": effect_charts.measures_chart(style),
        "residuals": effect_charts.residuals_chart(style),
        "along": effect_charts.along_chart(style),
        "layers_along": effect_charts.layers_along_chart(style),
    }
    for axis, values in line_axes(facts).items():
        how = (style, axis, values, spacing_of(facts, axis))
        made |= {
            f"axis {axis}": effect_charts.axis_chart(*how),
            f"axis_tasks {axis}": effect_charts.axis_tasks_chart(*how),
        }
    return {kind: made[kind] for kind in sorted({panel.kind for panel in panels})}


def _largest_change(panels: Sequence[Panel]) -> float:
    changes = [panel.tables["changes"]["value"].abs() for panel in panels if panel.kind == "changes"]
    return float(pl.concat(changes).max() or 0.0) if changes else 0.0  # type: ignore[arg-type]  # of a Float64 column


def write_figures(facts: Facts, panels: Sequence[Panel], folder: Path, tell: Tell = tell_nobody) -> list[Path]:
    """Writes every figure in three formats; the paths written, in order. `tell` hears how many are.

    Raises:
        OSError: the folder cannot be written.
    """
    written, num_figures = [], len({_figure_of(panel) for panel in panels})
    for i, (name, spec) in enumerate(figure_specs(facts, panels)):
        tell("drawing figures", i, num_figures)
        written += write_figure(spec, folder / name)
    return written


def write_figure(spec: Spec, path: Path) -> list[Path]:
    """Writes one figure in three formats, `path` being without suffix; the paths written.

    Raises:
        OSError: the folder cannot be written.
    """
    picture = charts.render(spec)
    formats: dict[str, str | bytes] = {".svg": picture.svg, ".png": picture.png, ".pdf": picture.pdf}
    # Not with_suffix: a name may hold a full stop.
    written = {path.with_name(path.name + suffix): data for suffix, data in formats.items()}
    for file, data in written.items():
        write_atomically(file, data)
    return list(written)


def figure_specs(facts: Facts, panels: Sequence[Panel]) -> Iterator[tuple[str, Spec]]:
    """(file name without suffix, specification) of every figure: one for each kind and number of shots.

    What an axis does is one figure, with the panels of all shots.
    """
    style = Style(theme=PAPER, families=facts.families, params=facts.params, cells=facts.cells.height, legend=True)
    made = charts_of(facts, panels, style)
    for (kind, shots), group in groupby(sorted(panels, key=_figure_of), _figure_of):
        multiples = [
            Multiple(
                chart=made[kind],
                title=panel.title,
                subtitle=panel.note if kind == "frontier" else "",
                data=_rows(panel),
            )
            for panel in group
        ]
        columns = min(COLUMNS, len(multiples))
        name = kind.replace(" ", "_") + (f"_{shots}_shots" if shots >= 0 else "")
        yield name, charts.figure_spec(multiples, PAPER, columns=columns, width=WIDTH, height=HEIGHT)


def _figure_of(panel: Panel) -> tuple[str, int]:
    return panel.kind, -1 if panel.shots is None or panel.kind.startswith("axis ") else panel.shots


def _rows(panel: Panel) -> dict[str, list[dict[str, object]]]:
    tables = dict(panel.tables)
    if panel.kind == "frontier":
        tables["points"] = thinned(tables["points"])
        tables["law"] = tables["law"].filter(pl.col("part") != "beyond")
    return {name: table.to_dicts() for name, table in tables.items()}


def thinned(points: pl.DataFrame) -> pl.DataFrame:
    """Points with both accuracies; where there are many, one for each family and place on the figure's grid."""
    seen = points.drop_nulls(["upstream", "downstream"])
    if seen.height <= DENSE:
        return seen
    places = [(_part(name) * steps).round().alias(f"{name}_at") for name, steps in GRID.items()]
    keys = ["family", *(f"{name}_at" for name in GRID)]
    return seen.with_columns(places).unique(keys, keep="first", maintain_order=True).drop(keys[1:])


def _part(name: str) -> pl.Expr:
    low, high = pl.col(name).min(), pl.col(name).max()
    return (pl.col(name) - low) / (high - low)
