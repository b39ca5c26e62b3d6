"""The section on what the study took: hours planned, used and lost, attempts by how they ended, speed, waits. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from orchestrator.operations import Operations
from orchestrator.report.facts import MODEL, Facts
from orchestrator.report.markup import Column, Markup, bar, element, join, table
from orchestrator.report.parts import empty
from orchestrator.report.state_sections import ENDED_WELL, FAILED
from orchestrator.report.words import count, duration, fixed, hours, listed, percent, si

NOTE = (
    "Hours are those of accelerators, or of CPU cores where a partition has none. Planned is what was expected before "
    "anything was measured; steps that cells of several lengths have in common count once. Lost is, of each attempt, "
    "the share of its steps that no checkpoint kept, so that they were taken again or would have to be; an evaluation "
    "that died is lost whole, and so is a training that died before its first step. An attempt that left no record of "
    "its end counts up to its last training record."
)
PLANNED = {"gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}


def operations_section(facts: Facts, plan: Mapping[str, Any]) -> Markup:
    """What the jobs of the study took; of states alone, their time."""
    if not facts.num_states:
        return empty("Nothing is known about the jobs of imported results.")
    took = facts.operations
    if took is None:
        return element("p", _hours_of_states(facts, plan))
    if took.attempts.is_empty():
        return element("p", f"No job has begun yet. Planned: {_planned(took, plan)}.")
    parts = [
        element("p", _summary(took, plan), *_unfinished(facts)),
        element("p", NOTE, class_="note"),
        *(_by_accelerator(took), _by_model(facts, took), _by_end(took), _waits(took)),
    ]
    return join(parts)


def _hours_of_states(facts: Facts, plan: Mapping[str, Any]) -> str:
    seconds, attempts = float(facts.cells["seconds"].sum()), int(facts.cells["attempts"].sum())
    used = f"{seconds / 3600:.2f} job-hours used in {count(attempts, 'attempt')}."
    planned = [f"{plan[key]:.2f} {name}" for key, name in PLANNED.items() if plan.get(key)]
    if plan.get("sbatch_calls"):
        planned.append(count(plan["sbatch_calls"], "sbatch call"))
    return f"{used} Planned: {', '.join(planned)}." if planned else used


# --- in words ------------------------------------------------------------------------------------------------------


def _summary(took: Operations, plan: Mapping[str, Any]) -> str:
    attempts = took.attempts
    began = attempts.filter(pl.col("attempt") > 0)
    died = attempts.filter(pl.col("outcome") == "died")
    used = [f"{hours(row['hours'])} {row['kind']}-hours" for row in _by_kind(attempts)]
    sentences = [
        f"{listed(used)} used in {count(began.height, 'attempt')}; planned: {_planned(took, plan)}.",
        _lost(attempts, died),
        _evaluation(attempts),
        _money(took),
        _unrecorded(began),
    ]
    return " ".join(filter(None, sentences))


def _unfinished(facts: Facts) -> list[object]:
    """How many cells failed or have not ended, with a link to what is said of them."""
    status = facts.cells["status"].drop_nulls()
    failed, ended = (int(status.is_in(names).sum()) for names in (FAILED, ENDED_WELL))
    going_on = status.len() - failed - ended
    words = [f"{count(failed, 'cell')} failed"] if failed else []
    words += [f"{count(going_on, 'cell')} not finished"] if going_on else []
    return [" ", element("a", listed(words), href="#missing"), "."] if words else []


def _planned(took: Operations, plan: Mapping[str, Any]) -> str:
    sums = took.planned.group_by("kind").agg(pl.col("planned_hours").sum()).sort("kind", descending=True)
    words = [f"{hours(row['planned_hours'])} {row['kind']}-hours" for row in sums.iter_rows(named=True)]
    if plan.get("sbatch_calls"):
        words.append(f"{count(plan['sbatch_calls'], 'sbatch call')} made")
    return listed(words)


def _by_kind(attempts: pl.DataFrame) -> list[dict[str, Any]]:
    """Hours and lost hours by GPU, TPU, CPU."""
    known = attempts.filter(pl.col("kind").is_not_null())
    return known.group_by("kind").agg(pl.col("hours", "lost_hours").sum()).sort("kind", descending=True).to_dicts()


def _lost(attempts: pl.DataFrame, died: pl.DataFrame) -> str:
    """What failures cost; steps that were taken again although their attempt had ended well count too."""
    lost = [
        f"{hours(row['lost_hours'])} {row['kind']}-hours ({percent(row['lost_hours'] / row['hours'])})"
        for row in _by_kind(attempts)
        if row["lost_hours"] > 0
    ]
    if not died.height and not lost:
        return "No attempt died."
    some = f"{count(died.height, 'attempt')} died ({listed(_causes(died))})" if died.height else "No attempt died"
    return f"{some}; lost: {listed(lost) if lost else 'nothing'}."


def _causes(died: pl.DataFrame) -> list[str]:
    causes = died["cause"].value_counts(sort=True).sort("count", "cause", descending=[True, False])
    return [f"{number:,} {cause}" for cause, number in causes.iter_rows()]


def _evaluation(attempts: pl.DataFrame) -> str:
    seconds = dict(attempts.group_by("stage").agg(pl.col("seconds").sum()).iter_rows())
    train, evaluate = (seconds.get(stage, 0.0) for stage in ("train", "evaluate"))
    share = percent(evaluate / (train + evaluate)) if train + evaluate else "0 %"
    return f"Evaluation took {share} of the job time: {duration(evaluate)}, and training {duration(train)}."


def _money(took: Operations) -> str:
    prices = took.attempts["price"].drop_nulls()
    if prices.is_empty():
        return ""
    lost = took.attempts["lost_price"].sum()
    free = took.attempts["price"].null_count()
    unknown = f" ({count(free, 'attempt')} without a price not counted)" if free else ""
    return f"It cost {prices.sum():,.2f} {took.currency}, of which {lost:,.2f} were lost{unknown}."


def _unrecorded(began: pl.DataFrame) -> str:
    silent = began.filter(~pl.col("end_recorded"), pl.col("outcome") == "died").height
    lacking = began["hours"].null_count()
    told = [f"{count(silent, 'attempt')} left no record of the end" if silent else ""]
    told.append(f"{count(lacking, 'attempt')} of lost submissions count no hours" if lacking else "")
    return f"{listed(list(filter(None, told)))}." if any(told) else ""


# --- tables --------------------------------------------------------------------------------------------------------


def _by_accelerator(took: Operations) -> Markup:
    """Hours planned, used by stage, and lost; with prices where there are some."""
    keys = ["kind", "accelerator"]
    stage = {name: pl.col("hours").filter(pl.col("stage") == name).sum() for name in ("train", "evaluate")}
    used = took.attempts.group_by(keys).agg(
        pl.col("hours", "lost_hours").sum(), **stage, price=pl.col("price").drop_nulls().sum()
    )
    planned = took.planned.group_by(keys).agg(pl.col("planned_hours").sum())
    rows = planned.join(used, on=keys, how="full", coalesce=True).drop_nulls("kind").sort(keys, descending=True)
    priced = took.attempts["price"].drop_nulls().len() > 0
    columns = [Column("hours of"), *(Column(name, "number") for name in ("planned", "used", "training", "evaluation"))]
    columns += [Column(name, "number") for name in ("lost", "lost share", *([took.currency] if priced else ()))]
    return table(
        columns, [_accelerator_row(row, priced=priced) for row in rows.iter_rows(named=True)], "By accelerator"
    )


def _accelerator_row(row: Mapping[str, Any], *, priced: bool) -> list[object]:
    used = row["hours"] or 0.0
    numbers = [hours(row[name] or 0.0) for name in ("planned_hours", "hours", "train", "evaluate", "lost_hours")]
    share = percent(row["lost_hours"] / used) if used else "–"
    return [row["accelerator"], *numbers, share, *([f"{row['price'] or 0:,.2f}"] if priced else ())]


def _by_model(facts: Facts, took: Operations) -> Markup:
    """Hours and speed of each family and size, where it ran on several accelerators on each."""
    keys = [name for name in MODEL if name in facts.cells.columns]
    cells = facts.cells.select("cell_id", *keys, "params", "flops")
    used = _sums(took, keys, cells)
    several = used["accelerator"].drop_nulls().n_unique() > 1
    reached = used["mfu"].count() > 0
    most = max(*used["hours"].fill_null(0).to_list(), 1e-9)
    rows = [
        [
            " ".join(str(row[key]) for key in keys) or "all",
            *([row["accelerator"]] if several else ()),
            row["cells"],
            si(row["params"]),
            si(row["flops"] or None),
            row["attempts"],
            hours(row["planned_hours"]),
            bar((row["hours"] or 0.0) / most, hours(row["hours"])),
            hours(row["lost_hours"]),
            si(row["images_per_second"]),
            *([fixed(row["mfu"] and row["mfu"] * 100, 1)] if reached else ()),
        ]
        for row in used.iter_rows(named=True)
    ]
    names = ("cells", "parameters", "training FLOPs", "attempts", "hours planned", "hours used", "hours lost")
    columns = [Column("model"), *([Column("accelerator", "line")] if several else ())]
    columns += [Column(name, "number") for name in (*names, "images a second", *(["MFU %"] if reached else ()))]
    also = " and the share of the peak that was reached (MFU)" if reached else ""
    return table(columns, rows, f"By model. Speed{also}: the median over cells of the mean of each one's last attempt")


def _sums(took: Operations, keys: Sequence[str], cells: pl.DataFrame) -> pl.DataFrame:
    """By model and accelerator: cells, attempts, hours, speed; smallest models of a family first."""
    both = ["cell_id", "accelerator"]
    of_cells = took.attempts.group_by(both).agg(
        pl.col("hours", "lost_hours").sum(),
        attempts=(pl.col("attempt") > 0).sum(),
        trained=(pl.col("stage") == "train").any(),
    )
    planned = took.planned.group_by(both).agg(pl.col("planned_hours").sum())
    rows = planned.join(of_cells, on=both, how="full", coalesce=True).join(cells, on="cell_id", how="left")
    rows = rows.join(took.files.select("cell_id", "images_per_second", "mfu"), on="cell_id", how="left")
    speed = [pl.col(name).filter(pl.col("trained")).median() for name in ("images_per_second", "mfu")]
    by = [*keys, "accelerator"]
    sums = rows.group_by(by).agg(
        pl.col("planned_hours", "hours", "lost_hours", "attempts").sum(),
        *speed,
        cells=pl.col("cell_id").n_unique(),
        params=pl.col("params").max(),
        flops=pl.col("flops").sum(),
    )
    return sums.sort(*keys[:1], "params", *keys[1:], "accelerator", nulls_last=True)


def _by_end(took: Operations) -> Markup:
    """Attempts by how they ended, and what each cost; nothing where all are done."""
    sums = _ends(took.attempts)
    if sums["end"].to_list() == ["done"]:
        return Markup("")
    several, priced = sums["kind"].drop_nulls().n_unique() > 1, took.attempts["price"].count() > 0
    rows = [
        [
            row["end"],
            *([row["kind"] or "–"] if several else ()),
            *(row[name] for name in ("attempts", "cells")),
            *(hours(row[name]) for name in ("hours", "lost_hours")),
            *([f"{row['price']:,.2f}"] if priced else ()),
            row["detail"] or "",
        ]
        for row in sums.iter_rows(named=True)
    ]
    names = ("attempts", "cells", "hours", "hours lost", *([took.currency] if priced else ()))
    columns = [Column("ended by"), *([Column("hours of")] if several else ())]
    columns += [*(Column(name, "number") for name in names), Column("for example")]
    return table(columns, rows, "Attempts by how they ended")


def _ends(attempts: pl.DataFrame) -> pl.DataFrame:
    """Sums by how attempts ended and the kind of their hours; deaths last, the most frequent first."""
    died = pl.col("outcome") == "died"
    return (
        attempts.with_columns(end=pl.when(died).then("cause").otherwise("outcome"))
        .group_by("end", "kind", maintain_order=True)
        .agg(
            pl.col("hours", "lost_hours", "price").sum(),
            attempts=pl.len(),
            cells=pl.col("cell_id").n_unique(),
            died=died.any(),
            detail=pl.col("detail").drop_nulls().first(),
        )
        .sort("died", "attempts", "end", "kind", descending=[False, True, False, True])
    )


def _waits(took: Operations) -> Markup:
    """How long jobs waited in the queue; nothing where no scheduler has one."""
    waited = took.attempts.filter(pl.col("waited_seconds").is_not_null())
    if waited.is_empty():
        return Markup("")
    seconds = pl.col("waited_seconds")
    sums = waited.group_by("partition").agg(jobs=pl.len(), median=seconds.median(), longest=seconds.max())
    rows = [
        [row["partition"] or "the default", row["jobs"], duration(row["median"]), duration(row["longest"])]
        for row in sums.sort("partition").iter_rows(named=True)
    ]
    columns = [Column("partition"), *(Column(name, "number") for name in ("jobs", "median wait", "longest wait"))]
    return table(columns, rows, "From submission to the first start of each job that waits for no other")
