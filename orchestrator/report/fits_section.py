"""The section on fits: what each says of every task, which cells to mix, what predicts best. Pure."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.frontier import METHODS, MIN_HELD_OUT, MODEL_NAMES, MODELS
from orchestrator.report.anchors import told_of
from orchestrator.report.facts import Facts
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.parts import at, empty, folded, linked, per_shots, tasks_at
from orchestrator.report.words import fixed, listed

FITS = {"hull": "hull", "rising": "rising part", "all": "all cells"}


def fits_section(facts: Facts) -> Markup:
    """Saturation values with intervals, recipes, and held-out errors."""
    if not facts.tasks:
        return empty("There is nothing to fit yet.")
    note = (
        "The law e_DS = k e_US^α + e_IR, fitted to the upper hull, to its rising part, and to all cells; the "
        "saturation value is 1 − e_IR with its 95 % interval. A dash stands for a value that the data do not identify, "
        "with the reason; tables/fits.csv has what was fitted. The verdict on a task is that of its hull."
    )
    mixing = (
        "A classifier that asks one cell for some of the images and another for the rest reaches any point between the "
        "two, so every point on the hull can be had. Choose an upstream accuracy here, or any other one with "
        "upshot reduce --at upstream=0.8125. The best of many cells were lucky in part: in parentheses stands "
        "what the mix truly reaches (95 %, where the sizes of the test sets are known), which may lie below."
    )
    return join(
        [
            element("p", note),
            per_shots(facts, _fit_table),
            per_shots(facts, _in_words),
            element("h3", "Which cells to take"),
            element("p", mixing),
            per_shots(facts, _recipes),
            element("h3", "What predicts best"),
            _held_out(facts),
        ]
    )


def _fit_table(facts: Facts, shots: int | None) -> Markup:
    columns = [Column("task"), *(Column(f"saturates at ({name})") for name in FITS.values())]
    columns += [Column("α (hull)", "line"), Column("k", "number"), Column("held-out error of the hull fit", "number")]
    columns += [Column("best", "line"), Column("cells", "number"), Column("vertices", "number")]
    return table(columns, map(_fit_row, tasks_at(facts, shots)), f"The fits of every task{at(shots)}")


def _fit_row(task: Mapping[str, Any]) -> list[object]:
    fit, held = task["fits"]["hull"], task["held_out"]
    sure = fit if task["identifiable"] else None
    alpha = f"{sure['alpha']:.2f} [{sure['alpha_low']:.2f}, {sure['alpha_high']:.2f}]" if sure else "–"
    best = held["best_model"]
    return [
        task["task"],
        *(_saturation(task["fits"][name], task["reason"]) for name in FITS),
        alpha,
        f"{sure['k']:.3g}" if sure else "–",
        _error(held, "hull"),
        f"{MODEL_NAMES[best]} {fixed(held['rmse'][best], 4)}" if best else "–",
        task["n"],
        task["hull_vertices"],
    ]


def _saturation(fit: Mapping[str, Any] | None, without: str) -> Markup:
    """`0.931 [0.915, 0.947]`, or a dash and the reason."""
    if fit is None or not fit["identifiable"]:
        reason = without if fit is None else fit["reason"]
        return join(["– ", element("small", reason)])
    interval = f"[{fixed(1 - fit['e_ir_high'], 3)}, {fixed(1 - fit['e_ir_low'], 3)}]"
    return join([element("b", fixed(1 - fit["e_ir"], 3)), f" {interval}"])


def _in_words(facts: Facts, shots: int | None) -> Markup:
    """Every verdict as a sentence, with its technical reasons; to be unfolded."""
    rows = [
        [task["task"], FITS[name], said["verdict"], "; ".join(said["reasons"]) or "–"]
        for task in tasks_at(facts, shots)
        for name in METHODS
        for said in [task["fits"][name] or (task if name == "hull" else None)]
        if said
    ]
    columns = [Column("task"), Column("fit", "line"), Column("verdict"), Column("reasons")]
    shown = table(columns, rows, f"Verdicts{at(shots)}")
    return folded("Every verdict in words, with its technical reasons", shown)


def _recipes(facts: Facts, shots: int | None) -> Markup:
    names, told = dict(facts.cells.select("cell_id", "text").iter_rows()), told_of(facts)

    def link(cell_id: str) -> Markup:
        return linked(cell_id, told, names.get(cell_id))

    recipes = element("ul", *(_recipe(task, link) for task in tasks_at(facts, shots)), class_="recipes")
    return join([element("p", f"Recipes{at(shots)}", class_="caption"), recipes])


def _recipe(task: Mapping[str, Any], link: Callable[[str], Markup]) -> Markup:
    """The recipe that was asked for, in a sentence that a choice of another point replaces."""
    recipe = task["recipe"]
    if recipe is None:
        return element("li", element("span", element("b", task["task"]), f": {task['recipe_reason']}."))
    mix = element("span", *_mix(recipe, link), class_="mix", aria_live="polite")
    sentence = element("span", element("b", task["task"]), ": ", mix)
    return element("li", sentence, *_chooser(task, recipe["upstream"], link))


def _mix(recipe: Mapping[str, Any], link: Callable[[str], Markup]) -> list[object]:
    known = recipe["downstream_low"] is not None
    low, high = recipe["downstream_low"], recipe["downstream_high"]
    truly = f" as measured (truly {low:.3f} to {high:.3f})" if known else " as measured"
    reached = f" for {recipe['downstream']:.3f}{truly} at {recipe['upstream']:.3f} upstream."
    shares = [(link(cell["cell_id"]), f" (p = {cell['p']:.3f})") for cell in recipe["cells"]]
    if len(shares) == 1:
        return ["take ", shares[0][0], reached]
    return ["mix ", *shares[0], " with ", *shares[1], reached]


def _chooser(task: Mapping[str, Any], upstream: float, link: Callable[[str], Markup]) -> list[Markup]:
    """A slider over round points of the hull, for the script, and the names of its cells; nothing for fewer than two.

    The bounds at each point stand as they are shown, as `upshot reduce --at` prints them.
    """
    along = task["recipes_along"]
    steps = along["upstream"]
    if len(steps) < 2:
        return []
    slider = element(
        "input",
        type="range",
        min=steps[0],
        max=steps[-1],
        step=f"{steps[1] - steps[0]:.6g}",
        value=min(steps, key=lambda step: abs(step - upstream)),
        aria_label=f"Upstream accuracy of a recipe for {task['task']}",
        data_hull=json.dumps([[vertex["upstream"], vertex["downstream"]] for vertex in task["hull"]]),
        data_low=_shown(along["downstream_low"]),
        data_high=_shown(along["downstream_high"]),
    )
    cells = element("template", *(link(vertex["cell_id"]) for vertex in task["hull"]))
    return [element("label", "upstream ", slider, class_="choose", hidden="hidden"), cells]


def _shown(bounds: Sequence[float] | None) -> str | None:
    return None if bounds is None else " ".join(f"{bound:.3f}" for bound in bounds)


def _held_out(facts: Facts) -> Markup:
    """Errors of the fits and of simpler rivals, all on the same points."""
    note = (
        "Root mean square error on the cells above the 80 % quantile of upstream accuracy, and on the hull's vertices "
        "among them, of models that saw the other cells only: the three fits, a straight line in logit space, a "
        "constant, and a monotone regression. All are asked for the same points. An error in parentheses is that of a "
        "degenerate law, which rests on a bound or on no more than three points, so that it cannot be the best; on "
        f"fewer than {MIN_HELD_OUT} points none is. "
    )
    best = Counter(task["held_out"]["best_model"] for task in facts.tasks if task["held_out"]["best_model"])
    won = listed([f"{MODEL_NAMES[name]} on {count}" for name, count in best.most_common()])
    said = f"Best on all cells beyond, by number of tasks and shots: {won}." if won else "Too little could be held out."
    shown = folded("Every model's error", per_shots(facts, _held_out_table))
    return join([element("p", said), shown, element("p", element("small", note))])


def _held_out_table(facts: Facts, shots: int | None) -> Markup:
    columns = [Column("task"), Column("predicts best"), Column("on")]
    columns += [Column(MODEL_NAMES[name], "number") for name in MODELS] + [Column("points", "number")]
    rows = [row for task in tasks_at(facts, shots) for row in _held_out_rows(task)]
    return table(columns, rows, f"Held-out errors{at(shots)}")


def _held_out_rows(task: Mapping[str, Any]) -> list[list[object]]:
    held = task["held_out"]
    return [
        [
            task["task"],
            MODEL_NAMES[contest["best_model"]] if contest["best_model"] else "–",
            points,
            *(_error(contest, name) for name in MODELS),
            contest["num_points"],
        ]
        for points, contest in (("cells", held), ("vertices", held["frontier"]))
    ]


def _error(contest: Mapping[str, Any], name: str) -> str:
    """A model's error; in parentheses that of a degenerate law."""
    error = fixed(contest["rmse"][name], 4)
    return f"({error})" if name in contest["degenerate"] and contest["rmse"][name] is not None else error
