"""What `upshot reduce` prints: the answer of every task, what predicts best, conflicts, effects."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from orchestrator.answer import recipe_text
from orchestrator.effects import frames_of
from orchestrator.effects.summary import axis_summary, parting, sentences
from orchestrator.frontier import MIN_HELD_OUT, MODEL_NAMES
from orchestrator.more_cells import more_cells_text
from orchestrator.terminal import print_sentence, print_table

MAX_PARTING = 12
MAX_CONFLICTS = 5


def print_reduced(reduced: Mapping[str, Any], *, recipes: bool = False) -> None:
    """The frontier of each task and its verdict, what was left out, conflicts and prediction; recipes if asked for."""
    tasks, study = reduced["tasks"], reduced.get("study", {"finished": True})
    if not study["finished"]:
        ended = ", ".join(f"{number} {status}" for status, number in sorted(study["by_status"].items()))
        causes = ", ".join(f"{number} of {cause}" for cause, number in sorted(study["failed"].items()))
        print_sentence(f"Not finished: of {study['cells']} cells {ended}" + (f" (failed: {causes})" if causes else ""))
    columns = ("cells", "vertices", "saturates at", "alpha", "k")
    _print_tasks("Downstream accuracy as upstream accuracy goes to 1", columns, tasks, _frontier_row)
    for verdict, named in _grouped(tasks, lambda task: task["verdict"]):
        print_sentence(f"{named}: {verdict}")
    for more, named in _grouped(tasks, more_cells_text):
        print_sentence(f"{named}: {more}")
    for dropped, named in _grouped(tasks, _dropped_text):
        print_sentence(f"{named}: left out {dropped}")
    columns = ("conflicts", "significant", "best", "error", "points")
    _print_tasks("Conflicting pairs; what predicts the cells best upstream", columns, tasks, _conflicts_row)
    _print_contest(tasks)
    _print_strongest(reduced.get("conflicts", {}).get("strongest", []))
    for task in tasks if recipes else ():
        print_sentence(f"{_named(task)}: {recipe_text(task)}")


def _print_tasks(
    title: str,
    columns: Sequence[str],
    tasks: Sequence[Mapping[str, Any]],
    row: Callable[[Mapping[str, Any]], tuple[object, ...]],
) -> None:
    """A line a task and number of shots; without a column of shots where no task has any."""
    if all(task["shots"] is None for task in tasks):
        return print_table(title, ("task", *columns), ((task["task"], *row(task)) for task in tasks))
    rows = ((task["task"], "" if task["shots"] is None else task["shots"], *row(task)) for task in tasks)
    return print_table(title, ("task", "shots", *columns), rows)


def _frontier_row(task: Mapping[str, Any]) -> tuple[object, ...]:
    fit, size = task["fits"]["hull"], (task["n"], task["hull_vertices"])
    if not task["identifiable"] or fit is None:
        return *size, "not identifiable", "", ""
    value, low, high = (f"{1 - fit[name]:.3f}" for name in ("e_ir", "e_ir_high", "e_ir_low"))
    return *size, f"{value} [{low}, {high}]", f"{fit['alpha']:.2f}", f"{fit['k']:.3g}"


def _dropped_text(task: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{number:,} row{'' if number == 1 else 's'} ({reason})" for reason, number in task["dropped"].items()
    )


def _conflicts_row(task: Mapping[str, Any]) -> tuple[object, ...]:
    held, pairs = task["held_out"], task["n"] * (task["n"] - 1) // 2
    counts, best = (task["conflicts"], task["significant_conflicts"]), held["best_model"]
    shares = ("" if number is None or not pairs else f"{100 * number / pairs:.1f} %" for number in counts)
    return *shares, best or "", f"{held['rmse'][best]:.4f}" if best else "", held["num_points"]


def _print_contest(tasks: Sequence[Mapping[str, Any]]) -> None:
    """What the names of the models mean, and which of them could not win."""
    best = dict.fromkeys(task["held_out"]["best_model"] for task in tasks if task["held_out"]["best_model"])
    if best:
        named = ", ".join(f"{name}: {MODEL_NAMES[name]}" for name in best if MODEL_NAMES[name] != name)
        print_sentence(f"Held out are the 20 % of cells that are best upstream{f' ({named})' if named else ''}.")
    for models, named in _grouped(tasks, lambda task: ", ".join(task["held_out"]["degenerate"])):
        why = "degenerate (the other cells do not determine it) and cannot be best"
        print_sentence(f"{named}: the law fitted to {models} is {why}")
    few = [_named(task) for task in tasks if 0 < task["held_out"]["num_points"] < MIN_HELD_OUT]
    if few:
        print_sentence(f"{', '.join(few)}: nothing is best on fewer than {MIN_HELD_OUT} held-out points")
    for why, named in _grouped(tasks, lambda task: str(task["significant_against"]).partition("unknown: ")[2]):
        print_sentence(f"{named}: no significance, {why}")


def _print_strongest(conflicts: Sequence[Mapping[str, Any]]) -> None:
    """The few strongest conflicts of all tasks, and how many others there are."""
    shown = sorted(conflicts, key=_strength, reverse=True)[:MAX_CONFLICTS]
    if not shown:
        return
    print_sentence("Strongest conflicts, the cell that is better upstream first:")
    for pair in shown:
        errors = pair["upstream_z"] is not None and pair["downstream_z"] is not None
        sigmas = f" ({pair['upstream_z']:.1f} and {pair['downstream_z']:.1f} standard errors)" if errors else ""
        print_sentence(
            f"{_named(pair)}: {pair['cell_id_upstream']} against {pair['cell_id_downstream']}, "
            f"+{pair['upstream_gain']:.3f} upstream, -{pair['downstream_loss']:.3f} downstream{sigmas}"
        )
    totals = {(pair["task"], pair["shots"]): pair["conflicts"] for pair in conflicts}
    more = sum(totals.values()) - len(shown)
    if more:
        are = "conflict is" if more == 1 else "conflicts are"
        print_sentence(f"{more:,} further {are} not listed; upshot report lists more.")


def _strength(pair: Mapping[str, Any]) -> tuple[float, float]:
    """The weaker of the two differences, in standard errors where they are known."""
    errors = (pair["upstream_z"] or 0.0, pair["downstream_z"] or 0.0)
    return min(errors), min(pair["upstream_gain"], pair["downstream_loss"])


def _grouped(tasks: Iterable[Mapping[str, Any]], text: Callable[[Mapping[str, Any]], str]) -> Iterable[tuple[str, str]]:
    """Every text that some tasks have, and these tasks; none of an empty text."""
    groups: dict[str, list[str]] = defaultdict(list)
    for task in tasks:
        groups[text(task)].append(_named(task))
    return [(said, ", ".join(names)) for said, names in groups.items() if said]


def _named(task: Mapping[str, Any]) -> str:
    return task["task"] if task["shots"] is None else f"{task['task']} {task['shots']}"


def print_effects(effects: dict[str, Any]) -> None:
    """What axes add, in which direction they part the two accuracies, which cell to take, then all in sentences."""
    frames = frames_of(effects)
    added = axis_summary(frames["axes"])
    if added.height:
        rows = (
            (row["axis"], f"{row['found']} of {row['tests']}", f"{row['by_chance']:.2g}", f"{row['partial_r2']:.2f}")
            for row in added.iter_rows(named=True)
        )
        columns = ("axis", "p <= 0.05 on", "by chance", "partial R2, median")
        print_table("What an axis adds, given upstream accuracy", columns, rows)
    found = parting(frames["directions"])
    if found.height:
        with_shots = found["shots"].is_not_null().any()
        shown = [_parting(row, with_shots) for row in found.head(MAX_PARTING).iter_rows(named=True)]
        headings = ("raising", "task", *(["shots"] if with_shots else []), "pairs", "up, down", "down, up", "p")
        title = "Where upstream and downstream part, upstream first (sign test)"
        print_table(title, headings, shown, num_names=2)
        if found.height > MAX_PARTING:
            print_sentence(f"{found.height - MAX_PARTING} more in --json")
    _print_agreement(frames["protocols"])
    for sentence in sentences(frames):
        print_sentence(sentence)


def _print_agreement(pairs: pl.DataFrame) -> None:
    """Every two protocols over all tasks and shots; `--json` and the report have each of them."""
    if pairs.is_empty():
        return
    over = pairs.group_by("protocol", "other", maintain_order=True).agg(
        pl.col("spearman").median(), pl.col("mean_difference").mean(), comparisons=pl.len()
    )
    rows = (
        (
            row["other"],
            row["protocol"],
            row["comparisons"],
            "" if row["spearman"] is None else f"{row['spearman']:.3f}",
            f"{row['mean_difference']:+.3f}",
        )
        for row in over.iter_rows(named=True)
    )
    columns = ("protocol", "against", "on", "rank correlation", "difference")
    print_table("Whether protocols rank cells alike, median and mean over tasks and shots", columns, rows)


def _parting(row: Mapping[str, Any], with_shots: bool) -> tuple[object, ...]:
    shots = ["" if row["shots"] is None else row["shots"]] if with_shots else []
    counts = row["upstream_up_downstream_down"], row["upstream_down_downstream_up"]
    return row["axis"], row["task"], *shots, row["pairs"], *counts, f"{row['p_value']:.2g}"
