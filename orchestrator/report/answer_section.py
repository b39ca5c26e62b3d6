"""The first section of the page: the study in numbers, then what each task says. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.frontier import Reason, interval_text
from orchestrator.more_cells import more_cells_text
from orchestrator.report.anchors import told_of
from orchestrator.report.facts import Facts
from orchestrator.report.headline import best_cells, has_text, paragraph
from orchestrator.report.markup import Markup, element, join
from orchestrator.report.panels import shots_text
from orchestrator.report.parts import empty, linked, linking, per_shots, tasks_at
from orchestrator.report.words import count

HEADINGS: Mapping[Reason, str] = {
    "still rising": "Still rising at the best cell, no sign of a plateau yet",
    "end not seen": "Where it saturates cannot be told",
    "bend not seen": "How it bends, and so where it ends, cannot be told",
    "unstable fit": "Parts of the cells lead to other answers than all of them",
    "does not rise": "Downstream accuracy does not rise with upstream accuracy",
    "too few cells": "Too few cells carry the frontier",
    "no cells": "No cell has both accuracies",
    "too few draws": "Too few bootstrap draws for an interval",
}
"""In the order of the page."""
BEST = "best cell"
Best = Mapping[tuple[str, int | None], tuple[Markup, str]]
"""By task and number of shots."""
RANGE_TOLD: tuple[Reason, ...] = ("still rising", "end not seen")


def answer_section(facts: Facts) -> Markup:
    """A paragraph on the study, then for each number of shots the tasks that saturate, and the others by reason."""
    if not facts.tasks:
        return join([element("p", paragraph(facts)), empty("No value has been measured yet.")])
    return join([element("p", paragraph(facts)), per_shots(facts, _answers)])


def _answers(facts: Facts, shots: int | None) -> Markup:
    tasks = tasks_at(facts, shots)
    sure = [task for task in tasks if task["identifiable"]]
    best = _best(facts)
    groups = [(reason, [task for task in tasks if task["reason"] == reason]) for reason in HEADINGS]
    return join(
        [
            element("p", _lead(len(sure), len(tasks), shots), class_="lead"),
            element("ul", *(_identified(task, best) for task in sure), class_="answers") if sure else "",
            *(_group(reason, group, best) for reason, group in groups if group),
            _note(tasks),
        ]
    )


def _best(facts: Facts) -> Best:
    """What there is to say of best cells: words that lead to the cell's section, and what it has."""
    names, told = dict(facts.cells.select("cell_id", "text").iter_rows()), told_of(facts)
    return {
        task: (linked(cell["cell_id"], told, f"{cell['cell_id']}: {names[cell['cell_id']]}", BEST), has_text(cell))
        for task, cell in best_cells(facts).items()
    }


def _lead(num_sure: int, num_tasks: int, shots: int | None) -> str:
    """How many tasks say where they saturate."""
    at = f"At {shots_text(shots)} " if shots is not None else ""
    if num_sure == num_tasks:
        said = "every task says" if num_tasks > 1 else "the task says"
    elif num_sure:
        said = f"{num_sure} of {count(num_tasks, 'task')} {'says' if num_sure == 1 else 'say'}"
    else:
        said = f"no task of {num_tasks} says" if num_tasks > 1 else "the task does not say"
    granted = ", if the law holds beyond the cells that are there" if num_sure else ""
    text = f"{at}{said} where downstream accuracy saturates as upstream accuracy goes to 1{granted}."
    return f"{text[:1].upper()}{text[1:]}"


def _identified(task: Mapping[str, Any], best: Best) -> Markup:
    """The saturation value, and what the verdict adds; what all of them take for granted is said above."""
    value, *more = task["verdict"].split("; ")
    said = element("b", f"{task['task']} {value.partition(' if ')[0]}")
    link, _ = best[task["task"], task["shots"]]
    return element("li", said, *(linking(f"; {one}", BEST, link) for one in more), ".")


def _group(reason: Reason, tasks: Sequence[Mapping[str, Any]], best: Best) -> Markup:
    """Tasks that are not identifiable for one reason; what would tell is said once where it is the same for all."""
    heading = element("h3", element("span", "Not identifiable: ", class_="muted"), HEADINGS[reason])
    texts = [more_cells_text(task) for task in tasks]
    shared = texts[0] if len(tasks) > 1 and len(set(texts)) == 1 else ""
    listed = []
    for task, text in zip(tasks, texts, strict=True):
        sentence = _sentence(reason, task, best.get((task["task"], task["shots"])), "" if shared else text)
        listed.append(element("li", element("b", task["task"]), ": ", sentence, "."))
    said = element("p", f"{shared[:1].upper()}{shared[1:]}.") if shared else ""
    return join([heading, element("ul", *listed, class_="answers others"), said])


def _sentence(reason: Reason, task: Mapping[str, Any], best: tuple[Markup, str] | None, more: str) -> Markup:
    """What the heading does not say of this task."""
    parts = [join([best[0], f" {best[1]}"]) if best else "no cell with both accuracies"]
    fit = task["fits"]["hull"]
    if reason in RANGE_TOLD and fit is not None:
        parts.append(interval_text(1 - fit["e_ir_high"], 1 - fit["e_ir_low"], "the plateau's"))
    if reason == "too few cells":
        parts.append(f"{task['hull_vertices']} of {count(task['n'], 'cell')} on the frontier")
    first, *others = [*parts, more] if more else parts
    return join([first, *(f"; {one}" for one in others)])


def _note(tasks: Sequence[Mapping[str, Any]]) -> Markup:
    """What the numbers of further cells take for granted, where there are any."""
    if not any(task["more_cells"] for task in tasks):
        return Markup("")
    text = (
        "What would tell is found by simulation: further cells like those named, drawn around the law fitted here (the "
        "hull where there is none) with the losses and the evaluation noise of the cells that are there, until the "
        "saturation value is identified in most simulated studies. It is as good as that law is."
    )
    return element("p", element("small", text))
