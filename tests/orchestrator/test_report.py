"""The report on studies of every kind: whole, partial, imported, hostile; in a real browser where there is one."""

import hashlib
import itertools
from typing import Any

import numpy as np
import polars as pl

from orchestrator.reduce import reduce_study

TASKS = ("digits", "fashion", "hiragana", "kanji_radical", "landcover", "mnist", "noto_script", "patches")
SHOTS = (1, 5, 10, 25)
SIZES = {"pico": (2, 20_000), "nano": (3, 90_000), "micro": (4, 400_000)}
FAMILIES = {"vit": 1.0, "mixer": 1.3, "resnet": 2.2}


def synthetic(
    tasks: tuple[str, ...] = TASKS, shots: tuple[int, ...] = SHOTS, seed: int = 0
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """A study like the quickstart: 36 cells, two failed, one diverged, one running; the results and the states."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    states: list[dict[str, Any]] = []
    for family, size, fraction, decay in itertools.product(FAMILIES, SIZES, (0.1, 0.3), (0.03, 3.0)):
        cell_id = hashlib.sha256(f"{family} {size} {fraction} {decay}".encode()).hexdigest()[:16]
        axes = {
            "family": family,
            "size": size,
            "fraction": fraction,
            "classes": 1.0,
            "epochs": 3.0,
            "patch_size": None if family == "resnet" else 8,
            "learning_rate": 2e-3,
            "head_weight_decay": decay,
            "seed": 0,
        }
        status, cause = "done", None
        if (family, size, fraction) == ("resnet", "micro", 0.3) and decay == 3.0:
            status, cause = "failed", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
        if (family, size, fraction, decay) == ("mixer", "micro", 0.3, 0.03):
            status = "diverged"
        if (family, size, fraction, decay) == ("vit", "micro", 0.3, 3.0):
            status = "running"
        states.append(
            {
                "cell_id": cell_id,
                **axes,
                "dataset": "icons",
                "status": status,
                "cause": cause,
                "train": status,
                "evaluate": "done",
                "attempts": 3 if status == "failed" else 2,
                "seconds": float(rng.uniform(10, 90)),
                "checkpoints": [50, 100],
                "missing_evaluations": 0,
            }
        )
        if status in ("done", "diverged"):
            rows += _rows(cell_id, axes, tasks, shots, rng, diverged=status == "diverged")
    return pl.DataFrame(rows, infer_schema_length=None), states


def _rows(
    cell_id: str,
    axes: dict[str, Any],
    tasks: tuple[str, ...],
    shots: tuple[int, ...],
    rng: np.random.Generator,
    *,
    diverged: bool,
) -> list[dict[str, Any]]:
    depth, params = SIZES[axes["size"]]
    depth = 5 if axes["family"] == "resnet" else depth
    strength = FAMILIES[axes["family"]] * (params / 20_000) ** 0.45 * axes["fraction"] ** 0.3
    upstream = 1 - 1 / (1 + 0.15 * strength * (0.9 if axes["head_weight_decay"] > 1 else 1.0))
    rows = []
    for step, task, shot, draw, layer in itertools.product((50, 100), tasks, shots, range(3), range(depth + 1)):
        where = tasks.index(task)
        end, slope = 1 - 0.04 * (where + 1) / shot**0.3, 2.0 + 0.8 * where
        error = (1 - end) + 0.6 / shot**0.2 * (1 - upstream) ** slope
        error += 0.05 * abs((layer + 1) / (depth + 1) - (0.75 if where % 2 else 1.0)) + 0.03 * (step == 50)
        accuracy = float(np.clip(1 - error + rng.normal(0, 0.012), 0, 1))
        rows.append(
            {
                "cell_id": cell_id,
                **axes,
                "params": params,
                "flops": params * 6.0 * 128 * step,
                "step": step,
                "examples_seen": step * 128,
                "last_checkpoint": step == 100,
                "upstream_accuracy": None if diverged else upstream - 0.05 * (step == 50),
                "upstream_num_test": 4000,
                "task": task,
                "protocol": "ridge",
                "shots": shot,
                "draw": draw,
                "layer": layer,
                "num_layers": depth + 1,
                "last_layer": layer == depth,
                "downstream_accuracy": None if diverged else accuracy,
                "downstream_num_test": 2000,
                "method": "ridge on frozen features, lambda by leave-one-out",
                "reason": "training diverged at step 40" if diverged else None,
            }
        )
    return rows


def reduced_of(results: pl.DataFrame) -> dict[str, Any]:
    return reduce_study(results, draws=50)
