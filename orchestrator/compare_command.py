"""`upshot report A B`: calls the library, prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.output import print_found

if TYPE_CHECKING:
    from orchestrator.comparing import Comparison, Difference

BAND_DRAWS = 5  # for one of a fit: a band over all steps at once ends where few draws lie


def run_comparison(
    sources: Sequence[Path], runs: Path, output: Path | None, options: dict[str, Any], *, as_json: bool, as_csv: bool
) -> None:
    """Writes the comparison of two studies or tables, and prints what it says."""
    from orchestrator.comparing import compare, folder_name, open_sides, to_json, write_comparison

    sides = open_sides(sources, runs, **options)
    comparison = compare(*sides, draws=BAND_DRAWS * options["draws"], seed=options["seed"])
    page = write_comparison(comparison, output or Path(folder_name(comparison)))
    if as_json or as_csv:
        print_found("comparison", {**to_json(comparison), "page": str(page)}, as_csv=as_csv)
        return
    _print(comparison)
    print(page)


def _print(comparison: "Comparison") -> None:
    from orchestrator.comparing import named, sentence
    from orchestrator.terminal import print_sentence, print_table

    names = [side.name for side in comparison.sides]
    rows = [
        (task.title, *(cells.height for cells in task.cells), _mean(task.difference), _value(task.saturation[2]))
        for task in comparison.tasks
    ]
    columns = ("task", "cells A", "cells B", "A less B, on average", "saturation")
    print_table(f"A: {names[0]}; B: {names[1]}", columns, rows)
    for text in comparison.warnings:
        print_sentence(text)
    for task in comparison.tasks:
        print_sentence(f"{task.title}: {sentence(task, names)}")
    for name, keys in zip(names, comparison.only, strict=True):
        if keys:
            print_sentence(f"only in {name}, and left out: {named(keys)}")


def _mean(found: "Difference | str") -> str:
    return "–" if isinstance(found, str) else _value((found.mean, found.mean_low, found.mean_high))


def _value(found: tuple[float, float, float] | None) -> str:
    return "–" if found is None else "{:.3f} [{:.3f}, {:.3f}]".format(*found).replace("-", "−")
