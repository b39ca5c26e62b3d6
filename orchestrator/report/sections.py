"""The sections of the page: facts to HTML. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import polars as pl

from orchestrator.frontier import METHODS
from orchestrator.report.facts import MODEL, Facts
from orchestrator.report.headline import answers, paragraph
from orchestrator.report.markup import Column, Markup, bar, element, escape, join, table
from orchestrator.report.panels import Panel, change_text, line_axes, shots_text
from orchestrator.report.words import count, duration, fixed, percent, si, signed

LISTED_CELLS = 50  # of each cause of failure, in the page; tables/cells has all
LISTED_PAIRS = 3  # of each task, in the page; tables/conflicts has more
ENDED_WELL = ("done", "diverged")
FAILED = ("failed", "blocked")


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page."""

    anchor: str
    heading: str
    body: Markup


def sections(facts: Facts, panels: Sequence[Panel], plan: Mapping[str, Any], files: Sequence[str]) -> list[Section]:
    """All sections, in the order of the page; `files` are the paths, relative to it, of tables and figures."""
    return [
        Section("answer", "The answer", _answer(facts)),
        Section("frontier", "Downstream against upstream accuracy", _frontier(facts, panels)),
        Section("fits", "Fits and verdicts", _fits(facts)),
        Section("conflicts", "Conflicts", _conflicts(facts, panels)),
        Section("layers", "Layers", _layers(facts, panels)),
        Section("axes", "Axes", _axes(facts, panels)),
        Section("missing", "What is missing, and why", _missing(facts)),
        Section("operations", "Operations", _operations(facts, plan)),
        Section("cells", "All cells", _all_cells(facts)),
        Section("methods", "Methods and files", _methods(facts, files)),
    ]


# --- 1 to 3 --------------------------------------------------------------------------------------------------------


def _answer(facts: Facts) -> Markup:
    sentences = [
        element("li", element("b", name), f": {verdict}", data_shots=_key(shots), class_=None if sure else "unsure")
        for name, shots, verdict, sure in answers(facts)
    ]
    nothing = element("p", "No value has been measured yet.", class_="empty")
    return join([element("p", paragraph(facts)), element("ul", *sentences, class_="answers") if sentences else nothing])


def _frontier(facts: Facts, panels: Sequence[Panel]) -> Markup:
    if not facts.tasks:
        return _empty("There are no results yet.")
    note = (
        "Each point is a cell (last checkpoint, last layer, mean over draws). The thin line is the upper hull, the thick "
        "curve the law fitted to its vertices: solid where the data identify it, dotted where they do not. The band is "
        "the 95 % interval of the saturation value, downstream accuracy as upstream accuracy goes to 1."
    )
    beyond = element(
        "label",
        element("input", type="checkbox", id="beyond"),
        " extend axes and law to upstream accuracy 1",
        class_="option",
    )
    return join([element("p", note), legend(facts), beyond, _charts(panels, "frontier")])


def legend(facts: Facts) -> Markup:
    """Families by colour, shape and name; sizes by parameters."""
    families = [
        element("span", element("i", class_=f"symbol shape{i % 7} family{i % 7}"), name)
        for i, name in enumerate(facts.families)
    ]
    sizes = []
    if facts.params is not None:
        low, high = facts.params
        dots = [
            element("i", class_="symbol shape0 small"),
            si(low),
            element("i", class_="symbol shape0 large"),
            si(high),
        ]
        sizes = [element("span", *dots, " parameters")]
    return element("p", *families, *sizes, class_="legend") if families or sizes else Markup("")


def _fits(facts: Facts) -> Markup:
    if not facts.tasks:
        return _empty("There is nothing to fit yet.")
    headings = ("rising part", "all cells", "held-out error: hull", "rising part", "all cells")
    columns = [Column("task"), *(Column(name, "number") for name in ("shots", "cells", "hull vertices"))]
    columns += [Column("saturation value (hull) and verdict"), *(Column(heading, "number") for heading in headings)]
    note = (
        "The law e_DS = k e_US^α + e_IR, fitted to the vertices of the hull, to its rising part, and to all cells; the "
        "saturation value is 1 − e_IR with its 95 % bootstrap interval. The verdict is on the hull fit: what stands in grey is "
        "not identified by the data. Held-out error: root mean square error of the fit below the 80 % quantile of upstream "
        "accuracy on what lies above it, each method on its own points."
    )
    return join([element("p", note), table(columns, map(_fit_row, facts.tasks), "The fits of every task")])


def _fit_row(task: Mapping[str, Any]) -> list[object]:
    fits, sure = task["fits"], task["identifiable"]
    hull = [_saturation(fits["hull"]), element("br"), element("small", task["verdict"])]
    return [
        task["task"],
        "" if task["shots"] is None else task["shots"],
        task["n"],
        task["hull_vertices"],
        element("div", *hull, class_="verdict" if sure else "verdict unsure"),
        *(_saturation(fits[method]) for method in METHODS if method != "hull"),
        *(fixed((fits[method] or {}).get("held_out_rmse"), 4) for method in METHODS),
    ]


def _saturation(fit: Mapping[str, Any] | None) -> str:
    if fit is None:
        return "–"
    value = fixed(1 - fit["e_ir"], 3)
    if fit["e_ir_low"] is None:
        return value
    return f"{value} [{fixed(1 - fit['e_ir_high'], 3)}, {fixed(1 - fit['e_ir_low'], 3)}]"


# --- 4 to 6 --------------------------------------------------------------------------------------------------------


def _conflicts(facts: Facts, panels: Sequence[Panel]) -> Markup:
    if not facts.tasks:
        return _empty("There are no results yet.")
    note = (
        "A conflict is a pair of cells of which one is better upstream and worse downstream. It is significant where both "
        "differences exceed 1.96 binomial standard errors, which takes the sizes of both test sets."
    )
    changes = (
        "Every row takes pairs of cells that differ in one axis only, and shows the mean change of accuracy by raising it: "
        "blue is better, vermilion worse (names have no order: there, from the first to the second). Where upstream and a task differ in sign, the two are at odds."
    )
    parts: list[object] = [element("p", note), _per_shots(facts, _conflict_table)]
    if any(panel.kind == "changes" for panel in panels):
        parts += [element("h3", "By axis, all else equal"), element("p", changes), _charts(panels, "changes")]
        parts += [_per_shots(facts, _controlled_table)]
    if facts.strongest.height:
        parts += [element("h3", "Strongest pairs"), _per_shots(facts, _strongest_table)]
    return join(parts)


def _conflict_table(facts: Facts, shots: int | None) -> Markup:
    rows = []
    for task in _tasks_at(facts, shots):
        pairs = task["n"] * (task["n"] - 1) // 2
        significant = task["significant_conflicts"]
        rows.append(
            [
                task["task"],
                pairs,
                _share(task["conflicts"], pairs),
                "unknown" if significant is None else _share(significant, pairs),
                fixed(task["spearman"], 2),
                fixed(task["kendall"], 2),
            ]
        )
    columns = [
        Column("task"),
        *(Column(n, "number") for n in ("pairs", "conflicts", "significant", "Spearman", "Kendall")),
    ]
    return table(columns, rows, f"Conflicting pairs of cells{_at(shots)}")


def _share(part: int, whole: int) -> Markup:
    share = part / whole if whole else 0.0
    return bar(share, f"{part} ({percent(share)})" if whole else str(part))


def _controlled_table(facts: Facts, shots: int | None) -> Markup:
    """Over all tasks: how often raising an axis moves the two accuracies in opposite directions."""
    rows = facts.changes.filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))
    names = ("upstream_up_downstream_down", "upstream_down_downstream_up", "both_up", "both_down", "tied")
    sums = (
        rows.with_columns(change=change_text())
        .group_by("axis", "change", maintain_order=True)
        .agg(pl.col("pairs", *names).sum())
        .sort("axis", maintain_order=True)
    )
    shown = [
        [row["change"], row["pairs"], *(_share(row[name], row["pairs"]) for name in names)]
        for row in sums.iter_rows(named=True)
    ]
    headings = ("pairs × tasks", "up, down", "down, up", "both up", "both down", "tied")
    columns = [Column("raising"), *(Column(heading, "number") for heading in headings)]
    inner = table(columns, shown, f"Directions of upstream, downstream accuracy over all tasks{_at(shots)}")
    return element("details", element("summary", f"{count(len(shown), 'change')}, counted"), inner)


def _strongest_table(facts: Facts, shots: int | None) -> Markup:
    names = dict(facts.cells.select("cell_id", "text").iter_rows())
    rows, listed, total = [], 0, 0
    frame = facts.strongest.filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))
    for (task,), pairs in frame.partition_by("task", as_dict=True, maintain_order=True).items():
        total += pairs["conflicts"][0]
        shown = pairs.head(LISTED_PAIRS)
        listed += shown.height
        rows += [_pair_row(task, pair, names) for pair in shown.iter_rows(named=True)]
    columns = [Column("task"), Column("better upstream"), Column("better downstream"), Column("differ in")]
    columns += [Column("upstream gain", "number"), Column("downstream loss", "number")]
    more = f"{count(total - listed, 'further conflict')} not listed here; tables/conflicts.csv has the strongest."
    caption = f"The {LISTED_PAIRS} strongest conflicts of each task{_at(shots)}"
    return join([table(columns, rows, caption), element("p", more if total > listed else "", class_="note")])


def _pair_row(task: object, pair: Mapping[str, Any], names: Mapping[str, str]) -> list[object]:
    cells = [_cell_name(pair[f"cell_id_{side}"], names) for side in ("upstream", "downstream")]
    changes = [
        signed(sign * pair[value]) + (f" ({pair[z]:.1f} σ)" if pair[z] is not None else "")
        for sign, value, z in ((1, "upstream_gain", "upstream_z"), (-1, "downstream_loss", "downstream_z"))
    ]
    return [str(task), *cells, pair["differs_on"] or "–", *changes]


def _layers(facts: Facts, panels: Sequence[Panel]) -> Markup:
    if not any(panel.kind == "layers" for panel in panels):
        return _empty("Only one layer of each cell was probed, or none yet.")
    note = (
        "Accuracy of the probe at every layer, mean over the cells of a model and over draws; depth is the layer's number as a "
        "part of all, and 1 the features before the head. The ring marks the best layer of each model. The best layer is "
        "picked by the accuracy it is judged by, so its gain is an upper bound."
    )
    return join([element("p", note), legend(facts), _charts(panels, "layers"), _per_shots(facts, _best_table)])


def _best_table(facts: Facts, shots: int | None) -> Markup:
    frame = facts.best.filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))
    found = {(row["task"], row["family"]): row for row in frame.iter_rows(named=True)}
    rows = [
        [task, *(_best(found.get((task, f))) for f in facts.families)]
        for task in frame["task"].unique(maintain_order=True)
    ]
    columns = [Column("task"), *(Column(family) for family in facts.families)]
    caption = f"Mean gain of the best layer over the last, its median depth, and in how many cells the last is best{_at(shots)}"
    return table(columns, rows, caption)


def _best(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{signed(row['gain'])} at {fixed(row['depth'], 2)}; last best in {row['last_best']} of {row['cells']}"


def _axes(facts: Facts, panels: Sequence[Panel]) -> Markup:
    kinds = [f"axis {axis}" for axis in line_axes(facts)]
    if not any(panel.kind in kinds for panel in panels):
        return _empty("No ordered axis has cells that differ in it only.")
    note = (
        "A thin line joins cells that differ in one axis only; a thick one is the mean over the lines of a family that have "
        "every value. Mean downstream accuracy is that over all tasks."
    )
    return join([element("p", note), legend(facts), _charts(panels, *kinds)])


# --- 7 to 9 --------------------------------------------------------------------------------------------------------


def _missing(facts: Facts) -> Markup:
    cells = facts.cells
    parts: list[object] = []
    if not facts.num_states:
        parts.append(element("p", "These results were imported: what ran and what failed is not known here."))
    failed = cells.filter(pl.col("status").is_in(FAILED))
    if failed.height:
        parts += [element("h3", "Failed"), _failures(failed)]
    diverged = cells.filter(pl.col("status") == "diverged")
    if diverged.height:
        lead = "Their loss became infinite or no number; that is a result, and their rows stay in the table without values."
        parts += [element("h3", "Diverged"), element("p", lead), _cell_table(diverged, "Diverged cells")]
    open_ = cells.filter(~pl.col("status").is_in([*ENDED_WELL, *FAILED]) | _lacks_evaluations())
    if open_.height:
        parts += [element("h3", "Not finished"), _cell_table(open_, "Cells that are not finished")]
    if facts.num_states and not parts:
        parts.append(element("p", "Nothing: every cell ended and every evaluation is there."))
    return join([*parts, element("h3", "Rows without a value"), _dropped(facts)])


def _lacks_evaluations() -> pl.Expr:
    return pl.col("status").is_in(ENDED_WELL) & (pl.col("missing_evaluations") > 0)


def _failures(failed: pl.DataFrame) -> Markup:
    causes = failed.with_columns(pl.col("cause").fill_null("unknown")).partition_by(
        "cause", as_dict=True, maintain_order=True
    )
    return join(
        element(
            "div",
            element("pre", cause, class_="cause"),
            _cell_table(cells, f"{count(cells.height, 'cell')} with this cause"),
        )
        for (cause,), cells in causes.items()
    )


def _cell_table(cells: pl.DataFrame, caption: str) -> Markup:
    rows = [
        [
            _code(row["cell_id"]),
            row["text"],
            row["status"],
            row["attempts"],
            row["checkpoints"],
            row["missing_evaluations"],
        ]
        for row in cells.head(LISTED_CELLS).iter_rows(named=True)
    ]
    columns = [Column("cell"), Column("axes"), Column("status")]
    columns += [Column(name, "number") for name in ("attempts", "checkpoints", "evaluations missing")]
    more = cells.height - len(rows)
    note = element("p", f"{count(more, 'further cell')} not listed here; tables/cells.csv has all.", class_="note")
    return join([table(columns, rows, caption), note if more > 0 else ""])


def _dropped(facts: Facts) -> Markup:
    if not facts.reasons and not any(task["dropped"] for task in facts.tasks):
        return element("p", "None." if facts.tasks else "There are no rows yet.")
    dropped = [
        [task["task"], "" if task["shots"] is None else task["shots"], reason, number]
        for task in facts.tasks
        for reason, number in task["dropped"].items()
    ]
    columns = [Column("task"), Column("shots", "number"), Column("reason"), Column("rows", "number")]
    whole = element("ul", *(element("li", f"{reason}: {count(n, 'row')}") for reason, n in facts.reasons.items()))
    lead = "In the whole results table (all checkpoints, layers and draws) these rows have no downstream accuracy:"
    parts: list[object] = [element("p", lead), whole] if facts.reasons else []
    if dropped:
        inner = table(columns, dropped, "Rows of last checkpoints and layers that the fits left out")
        parts.append(element("details", element("summary", "What the fits left out, by task"), inner))
    return join(parts)


def _operations(facts: Facts, plan: Mapping[str, Any]) -> Markup:
    if not facts.num_states:
        return _empty("Nothing is known about the jobs of imported results.")
    keys = [name for name in MODEL if name in facts.cells.columns]
    sums = facts.cells.group_by(keys or [pl.lit("all").alias("family")], maintain_order=True).agg(
        cells=pl.len(),
        params=pl.col("params").max(),
        flops=pl.col("flops").sum(),
        attempts=pl.col("attempts").sum(),
        seconds=pl.col("seconds").sum(),
    )
    most = max(sums["seconds"].max() or 0.0, 1e-9)  # type: ignore[type-var]  # of a Float64 column
    rows = [
        [
            " ".join(str(row[key]) for key in keys) or "all",
            row["cells"],
            si(row["params"]),
            si(row["flops"] or None),
            row["attempts"],
            bar(row["seconds"] / most, duration(row["seconds"])),
            duration(row["seconds"] / row["cells"]),
        ]
        for row in sums.iter_rows(named=True)
    ]
    headings = ("cells", "parameters", "training FLOPs", "attempts", "job time", "a cell")
    columns = [Column("model"), *(Column(heading, "number") for heading in headings)]
    return join([element("p", _planned(facts, plan)), table(columns, rows, "Jobs by model")])


def _planned(facts: Facts, plan: Mapping[str, Any]) -> str:
    used = f"{facts.cells['seconds'].sum() / 3600:.2f} job-hours used in {count(facts.cells['attempts'].sum(), 'attempt')}."
    planned = [
        f"{plan[key]:.2f} {name}" if key != "sbatch_calls" else count(plan[key], name)
        for key, name in (("gpu_hours", "GPU-hours"), ("cpu_hours", "CPU-hours"), ("sbatch_calls", "sbatch call"))
        if plan.get(key)
    ]
    return f"{used} Planned: {', '.join(planned)}." if planned else used


def _all_cells(facts: Facts) -> Markup:
    if facts.cells.is_empty():
        return _empty("The study has no cells.")
    columns = [
        Column("cell"),
        Column("axes"),
        Column("parameters", "number"),
        Column("upstream", "number"),
        Column("status"),
    ]
    rows = [
        [_code(row["cell_id"]), row["text"], si(row["params"]), fixed(row["upstream"], 4), row["status"] or "imported"]
        for row in facts.cells.iter_rows(named=True)
    ]
    inner = table(columns, rows, "All cells")
    return element("details", element("summary", count(len(rows), "cell")), inner)


def _methods(facts: Facts, files: Sequence[str]) -> Markup:
    reducer = sorted({task["method"] for task in facts.tasks if task.get("method")})
    choices = [element("li", f"Probe: {text}.") for text in facts.methods] + [
        element("li", f"Reducer: {text}.") for text in reducer
    ]
    lists = []
    for name, group in groupby(files, key=lambda path: path.rpartition(".")[0]):
        links = [element("a", path.rpartition(".")[2], href=path) for path in group]
        lists.append(element("li", f"{name}: ", *(part for link in links for part in (link, " "))))
    law = "Frontier, law and conflicts follow Abnar, Dehghani, Neyshabur and Sedghi, arXiv 2110.02095."
    return join(
        [element("p", law), element("ul", *choices), element("h3", "Files"), element("ul", *lists, class_="files")]
    )


# --- parts ---------------------------------------------------------------------------------------------------------


def _charts(panels: Sequence[Panel], *kinds: str) -> Markup:
    """A place for each chart of these kinds; the script fills it with the panel of the chosen shots."""
    slots = dict.fromkeys((panel.kind, panel.name) for panel in panels if panel.kind in kinds)
    figures = [
        element(
            "figure",
            element("figcaption", _chart_heading(kind, name), element("p", "", class_="note")),
            element("div", class_="plot"),
            data_kind=kind,
            data_name=name,
        )
        for kind, name in slots
    ]
    return element("div", *figures, class_="wide" if "changes" in kinds else "charts")


def _chart_heading(kind: str, name: str) -> Markup:
    if kind == "changes":
        return Markup("")
    return element("h3", kind.removeprefix("axis ") if kind.startswith("axis ") else name)


def _per_shots(facts: Facts, make: Any) -> Markup:
    return join(element("div", make(facts, shots), data_shots=_key(shots)) for shots in facts.shots)


def _tasks_at(facts: Facts, shots: int | None) -> list[dict[str, Any]]:
    return [task for task in facts.tasks if task["shots"] == shots]


def _cell_name(cell_id: str, names: Mapping[str, str]) -> Markup:
    return join([_code(cell_id), element("br"), element("small", names.get(cell_id, ""))])


def _code(cell_id: str) -> Markup:
    return element("code", cell_id)


def _key(shots: int | None) -> str:
    return "none" if shots is None else str(shots)


def _at(shots: int | None) -> str:
    return f", {shots_text(shots)}" if shots is not None else ""


def _empty(text: str) -> Markup:
    return element("p", text, class_="empty")
