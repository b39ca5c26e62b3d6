"""The columns that `--csv` prints: of each command its main table, in a fixed order.

A column's name is the path of its value in a row of the JSON, so that both say the same. docs/commands.md shows them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from models.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """A command's main table.

    Args:
        rows: where the JSON has its rows; None where the whole of it is the one row.
        columns: what each column holds, by its name.
    """

    rows: str | None
    columns: Mapping[str, str]


CELL = {"cell_id": "the cell"}
AXES = {name: "an axis, as in the study file" for name in Recipe.model_fields if name != "dataset"}
RECIPE = {**CELL, "dataset": "upstream images", **AXES}
RESOURCES = {
    f"resources.{stage}.{name}": f"what a job to {stage} asks for: {words}"
    for stage in ("train", "evaluate")
    for name, words in {
        "partition": "partition",
        "num_nodes": "nodes",
        "accelerators": "accelerators a node",
        "accelerator": "their kind",
        "num_cpus": "CPU cores a node",
        "mem_gb": "memory a node, GiB",
        "time_min": "time limit, minutes",
    }.items()
}
SUBMITTED = Columns(
    rows="cells",
    columns={**CELL, "outcome": "submitted, waiting for room in the queue, or planned (--dry-run)", "reason": "why"},
)

TABLES: Mapping[str, Columns] = {
    "plan": Columns(
        rows="cells",
        columns={
            **RECIPE,
            "params": "parameters",
            "flops": "training FLOPs, two for a multiply-add",
            **RESOURCES,
            "micro_batch": "images that an accelerator takes at once",
            "sharded": "whether the training state is spread over accelerators",
            "shared": "share of the steps that a shorter cell takes",
            "gpu_hours": "expected, without the steps that a shorter cell takes",
            "cpu_hours": "the same",
            "limits_hit": "limits of the partition that the cell meets",
            "action": "submit, retry, wait or skip",
            "reason": "why",
        },
    ),
    "submit": SUBMITTED,
    "retry": SUBMITTED,
    "status": Columns(
        rows="cells",
        columns={
            **RECIPE,
            "status": "of the cell",
            "cause": "what it died of, with details",
            "cause_name": "the same, as `--cause` takes it",
            "train": "status of its training",
            "evaluate": "status of its evaluation",
            "attempts": "how often it was started",
            "seconds": "that its attempts took",
            "checkpoints": "steps that are kept",
            "missing_evaluations": "how many are still to come",
        },
    ),
    "why": Columns(
        rows="attempts",
        columns={
            "time": "seconds since 1970",
            "stage": "train or evaluate",
            "attempt": "its number",
            "event": "start, end, death or retry",
            "step_to_evaluate": "the checkpoint, where one alone is judged",
            "outcome": "of an end: done, diverged, interrupted or failed",
            "seconds": "that the attempt took",
            "step": "that it reached",
            "cause": "of a death",
            "detail": "of a death",
            "error.message": "of a failure",
            "node": "where it ran",
            "host": "the same, as the machine names itself",
            "job": "Slurm's id",
            "pid": "of the process",
        },
    ),
    "cancel": Columns(rows=None, columns={"study": "its name", "stopped": "submissions that were stopped"}),
    "clean": Columns(
        rows="leftovers",
        columns={"kind": "what it is", "path": "where it lies, or lay", "num_bytes": "how large it is"},
    ),
    "collect": Columns(rows=None, columns={"output": "the results table", "rows": "in it", "cells": "in it"}),
    "import": Columns(
        rows="tasks",
        columns={
            "task": "its name",
            "table": "the file",
            "column": "of the file",
            "complete": "cells with both accuracies",
        },
    ),
    "evaluate": Columns(
        rows="tasks",
        columns={
            "task": "its name",
            "protocol": "how it was judged",
            "shots": "a class; empty: all images",
            "downstream_accuracy": "mean over draws, last layer",
            "reason": "why there is none",
        },
    ),
    "reduce": Columns(
        rows="tasks",
        columns={
            "task": "its name",
            "shots": "a class; empty: all images",
            "n": "cells",
            "hull_vertices": "cells on the upper hull",
            "identifiable": "whether the data tell where it saturates",
            "verdict": "in words",
            **{
                f"fits.hull.{name}": words
                for name, words in {
                    "e_ir": "irreducible error: it saturates at 1 - e_ir",
                    "e_ir_low": "95 % interval",
                    "e_ir_high": "95 % interval",
                    "alpha": "exponent of the law",
                    "alpha_low": "95 % interval",
                    "alpha_high": "95 % interval",
                    "k": "factor of the law",
                    "rmse": "of the fit",
                    "held_out_rmse": "on cells that are better upstream",
                }.items()
            },
            "held_out.best_model": "what predicts the held-out cells best",
            "held_out.num_points": "how many are held out",
            "recipe.upstream": "upstream accuracy of the recipe",
            "recipe.downstream": "what it reaches",
            "spearman": "rank correlation of upstream and downstream",
            "kendall": "the same, Kendall's",
            "conflicts": "pairs of cells that the two rank differently",
            "conflict_share": "of all pairs",
            "significant_conflicts": "pairs beyond the noise of evaluation",
        },
    ),
    "reduce --submit": Columns(rows=None, columns={"job": "its id", "answer": "where it will lie"}),
    "report": Columns(rows=None, columns={"page": "the file", "published": "its address at W&B, with --wandb"}),
    "comparison": Columns(
        rows="tasks",
        columns={
            "task": "its name",
            "shots": "a class",
            "n_a": "cells of the first study",
            "n_b": "cells of the second",
            "range.low": "upstream, from where on the frontiers are compared",
            "range.high": "upstream, up to where",
            "difference.value": "of the frontiers, the first less the second, on average",
            "difference.low": "of its 95 % interval",
            "difference.high": "of its 95 % interval",
            "verdict": "which frontier lies higher where",
        },
    ),
    "models": Columns(
        rows="models",
        columns={
            "family": "of the ladder, or timm",
            "size": "its name",
            "patch_size": "pixels",
            "params": "parameters",
            "forward_flops": "of one image, two for a multiply-add",
            "train_flops": "of one image and step",
            "layers": "that are probed",
            "state_gb": "weights, gradients and optimiser, float32",
            "image_gb.float32": "each image trained on at once adds",
            "image_gb.bfloat16": "the same in bfloat16",
            "source": "of the shape",
        },
    ),
    "tasks": Columns(
        rows="tasks",
        columns={
            "name": "as a study names it",
            "kind": "packaged, public or path",
            "group": "natural, specialised or structured",
            "title": "of the data set",
            "num_classes": "classes",
            "chance": "accuracy of guessing",
            "num_train": "training images",
            "num_test": "test images",
            "vtab": "whether it is one of VTAB-1k",
            "present": "whether its images are here",
            "layout": "in which they lie",
            "folder": "where",
            "split": "how it is split",
            "licence": "of the images",
            "source": "of the images",
            "url": "where they are had",
        },
    ),
    "sync": Columns(
        rows="cells",
        columns={
            **CELL,
            "outcome": "mirrored, by_others, failed or left; cells that are up to date are not listed",
            "rows": "that W&B was told",
            "reason": "why it failed",
        },
    ),
    "doctor": Columns(
        rows="checks",
        columns={
            "level": "ok, advice or mend",
            "topic": "what was looked at",
            "found": "what was found",
            "remedy": "what to do",
        },
    ),
    "data index": Columns(
        rows=None,
        columns={
            "folder": "where the index is",
            "examples": "images",
            "classes": "of labels; 0: none",
            "shards": "in all",
            "read": "that were read now",
        },
    ),
    "data check": Columns(
        rows="images",
        columns={
            "use": "upstream or task",
            "name": "as the study has it",
            "layout": "in which they lie; empty: missing",
            "folder": "where",
            "num_classes": "found",
            "num_train": "found",
            "num_test": "found",
            "num_duplicates": "test images that are in the train part too",
            "error": "what is missing or broken",
            "notes": "what else is worth knowing",
        },
    ),
}
