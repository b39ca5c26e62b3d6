"""What a study folder says of a cell for its mirrors: configuration, tags, costs."""

from collections.abc import Sequence
from typing import Any

from models.errors import DataError
from models.recipe import Axes
from orchestrator.attempts import Attempt, read_attempts, taken
from orchestrator.files import read_records
from orchestrator.store import Manifest, Store
from orchestrator.study import Study
from orchestrator.tracking.account import Mode, default_mode
from orchestrator.tracking.client import CAUSE, Description
from orchestrator.wanted import wanted_files
from slurm.failures import Evidence, cause_of


def describe(store: Store, cell_id: str) -> Description:
    """The description of a cell as its study folder has it now.

    Raises:
        UserError: the study or the cell's record cannot be read.
    """
    study, recipe = store.study(), store.read_cell(cell_id).recipe
    records = read_records(store.train_log(cell_id)).records
    started = [record for record in records if record.get("event") == "start"]
    attempts = read_attempts(store.attempts(cell_id))
    manifests = _manifests(store, attempts)
    config = {"cell_id": cell_id, **recipe.model_dump(), "params": started[-1]["params"] if started else None}
    axes = [axis for axis in Axes.model_fields if len({v for t in study.grid for v in t.get(axis, [])}) > 1]
    tags = [f"{axis}={config[axis]}" for axis in axes]
    wanted = wanted_files(study)
    return Description(
        study=study.name,
        project=study.wandb.project,
        entity=study.wandb.entity,
        config={**config, **_resources(attempts, manifests)},
        name=" ".join(tags) or cell_id,
        tags=tags,
        summary={
            "gpu_hours": _gpu_hours(attempts, manifests, records),
            "attempts": sum(attempt.stage == "train" and attempt.number > 0 for attempt in attempts),
            "checkpoint": _newest_checkpoint(store, cell_id),
            CAUSE: _cause(attempts),
        },
        wanted=frozenset([*wanted.results.values(), *([wanted.measures] if wanted.measures else [])]),
    )


def mode_of(store: Store) -> Mode:
    """How the study's cells are mirrored: as the study asks for, or as W&B's own settings do.

    Raises:
        UserError: the study cannot be read, or `WANDB_MODE` is no mode.
    """
    return asked_mode(store.study())


def asked_mode(study: Study) -> Mode:
    """The same of a study that has been read.

    Raises:
        UserError: `WANDB_MODE` is no mode.
    """
    return default_mode() if study.wandb.mode == "auto" else study.wandb.mode


def _manifests(store: Store, attempts: Sequence[Attempt]) -> dict[str, Manifest]:
    """By token, the submissions of the attempts; a lost one is left out."""
    found = {}
    for token in {attempt.token for attempt in attempts}:
        try:
            found[token] = store.manifest(token)
        except DataError:
            continue
    return found


def _resources(attempts: Sequence[Attempt], manifests: dict[str, Manifest]) -> dict[str, Any]:
    """What the newest training had of the cluster, and the jobs of all attempts in their order."""
    trained = [manifests[a.token] for a in attempts if a.stage == "train" and a.token in manifests]
    asked = trained[-1].resources if trained else {}
    return {
        "accelerators": asked.get("accelerators", 0) * asked.get("num_nodes", 1),
        "num_nodes": asked.get("num_nodes", 1),
        "partition": asked.get("partition"),
        "jobs": list(dict.fromkeys(attempt.job for attempt in attempts if attempt.job)),
    }


def _gpu_hours(attempts: Sequence[Attempt], manifests: dict[str, Manifest], records: Sequence[dict[str, Any]]) -> float:
    """What all attempts have used; of a training whose end nobody recorded, up to its last record."""
    hours = 0.0
    for attempt, used in zip(attempts, taken(attempts, records), strict=True):
        asked = manifests[attempt.token].resources if attempt.token in manifests else {}
        hours += used.seconds / 3600 * asked.get("accelerators", 0) * asked.get("num_nodes", 1)
    return hours


def _cause(attempts: Sequence[Attempt]) -> str | None:
    """Why the newest attempt that ended badly did, as `upshot status` has it; None where that is not on record."""
    bad = [attempt for attempt in attempts if attempt.death is not None or attempt.outcome == "failed"]
    if not bad:
        return None
    death, error = bad[-1].death, bad[-1].error or {}
    if death is not None:
        return f"{death.cause}: {death.detail}"
    told = Evidence(
        error_type=error.get("type"), error_message=error.get("message", ""), error_number=error.get("errno")
    )
    return ": ".join(cause_of(told))


def _newest_checkpoint(store: Store, cell_id: str) -> str | None:
    """Where it lies, seen from the study folder, which may move."""
    steps = store.finalised_steps(cell_id)
    folder = store.checkpoints(cell_id).relative_to(store.root)
    return str(folder / f"step_{steps[-1]:08d}") if steps else None
