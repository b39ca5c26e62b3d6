"""The study folder: the truth about a study, in files.

STUDY_DIR/
study.toml  cluster.toml              the study and its cluster profile as submitted
images.json                           the numbers of its own images, as plans need them
cells.ndjson                          every cell that was ever submitted, a line each
jobs/<token>.json                     one manifest an array: its cells by array index, its job id
cells/<aa>/<cell_id>/                 one folder a cell
cell.json  attempts.ndjson  train.ndjson  logs/
checkpoints/step_00001000/  evals/step_00001000/<eval_id>.parquet
trunks/<trunk_id>/step_00001000/      states that cells which differ in their length alone go on from
results/  report/
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tomlkit

from models.errors import DataError, StudyError, UserError
from models.recipe import Recipe
from orchestrator import lock
from orchestrator.files import append_record, read_records, write_atomically, write_whole
from orchestrator.grid import Cell, cells
from orchestrator.identity import trunk_id
from orchestrator.images import Images, read_recorded
from orchestrator.study import Study, load_study
from slurm.cluster import Profile

Stage = Literal["train", "evaluate"]
STAGES: tuple[Stage, ...] = ("train", "evaluate")
Purpose = Literal["watch", "reduce"]  # of the jobs that belong to a study as a whole
PURPOSES: tuple[Purpose, ...] = ("watch", "reduce")
RESUME = "resume"  # below a cell's checkpoints: those that are only for going on from


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What one submission carries, written before the scheduler is asked.

    `tasks[i]` lists the work of array index i: a cell, or CELL@STEP for the evaluation of one checkpoint. `job_id` is
    None until the scheduler's answer is recorded; the token stands in the job's name, so a submission whose answer was
    lost is found again. One that the scheduler is taken never to have got is `abandoned`: should it turn up after all,
    its tasks do nothing.

    A `cancelled` one was stopped by a person: nothing of it is started again without being asked for.

    `code` names the snapshot that it runs. `peak_teraflops` is that of all accelerators of one job, where it is known.
    """

    token: str
    study: str
    stage: Stage
    executor: Literal["local", "slurm"]
    tasks: list[list[str]]
    resources: dict[str, Any]
    submitted: float
    after: str | None = None
    job_id: str | None = None
    micro_batch: int | None = None
    checkpointed: bool = False
    compiled: bool = False
    peak_teraflops: float | None = None
    sharded: bool = False
    code: str | None = None
    abandoned: bool = False
    cancelled: bool = False

    @property
    def job_name(self) -> str:
        """What the scheduler calls it."""
        return f"upshot-{self.study}-{self.token}"


def unit(cell_id: str, step: int | None = None) -> str:
    """A piece of work as a manifest names it: a cell, or one checkpoint of a cell."""
    return cell_id if step is None else f"{cell_id}@{step}"


def parse_unit(text: str) -> tuple[str, int | None]:
    """(cell, step or None) of a piece of work."""
    cell_id, at, step = text.partition("@")
    return cell_id, int(step) if at else None


def new_token() -> str:
    """Twelve hexadecimal digits that no other submission has."""
    return secrets.token_hex(6)


class Store:
    """One study folder. Reading it never needs the scheduler."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._cells = str(self.root / "cells")
        self._cells_path = self.root / "cells.ndjson"
        self._images_path = self.root / "images.json"

    # --- the study -------------------------------------------------------------------------------------------------

    @property
    def study_path(self) -> Path:
        """The study as submitted."""
        return self.root / "study.toml"

    def write_study(self, text: str, profile: Profile) -> None:
        """Keeps the study's text and its cluster profile; unchanged ones are left alone."""
        kept = {self.study_path: text, self.root / "cluster.toml": tomlkit.dumps(profile.model_dump(exclude_none=True))}
        for path, content in kept.items():
            if not path.exists() or path.read_text(encoding="utf-8") != content:
                write_atomically(path, content)

    def write_images(self, told: str | None) -> None:
        """Keeps the numbers of a study's own images (`images.recorded`); an unchanged record is left alone."""
        if told is not None and not _holds(self._images_path, told):
            write_atomically(self._images_path, told)

    def images(self) -> Images:
        """The study's images as they were submitted; those on the disk where the study has none of its own.

        Raises:
            DataError: the record is damaged.
        """
        return read_recorded(self._images_path)

    def study(self) -> Study:
        """The study as submitted.

        Raises:
            StudyError: the folder holds none.
        """
        if not self.study_path.exists():
            raise StudyError(f"{self.root}: holds no study (no study.toml); `upshot submit` makes one")
        return load_study(self.study_path, images=self.images()).study

    def cells(self) -> list[Cell]:
        """The cells of the study as submitted."""
        return cells(self.study(), self.study_path, self.images())

    def cell_ids(self) -> set[str]:
        """Every cell that has a folder, whether the study still has it or not."""
        return {path.name for path in (self.root / "cells").glob("??/*")}

    # --- cells -----------------------------------------------------------------------------------------------------

    def cell_folder(self, cell_id: str) -> Path:
        """Where a cell keeps everything; sharded, so that no folder holds thousands."""
        return Path(self._cell(cell_id))

    def _cell(self, cell_id: str) -> str:
        """The same as text: a look at thousands of live cells asks for each, and joining paths takes longest."""
        return f"{self._cells}/{cell_id[:2]}/{cell_id}"

    def write_cells(self, cells: Iterable[Cell]) -> None:
        """Records what cells are, in one file: thousands of folders are not made before their jobs run."""
        records = {record["cell_id"]: record for record in read_records(self._cells_path).records}
        new = {cell.cell_id: _record(cell) for cell in cells}
        if any(records.get(cell_id) != record for cell_id, record in new.items()):
            lines = [json.dumps(record, separators=(",", ":")) for record in {**records, **new}.values()]
            write_atomically(self._cells_path, "".join(f"{line}\n" for line in lines))

    def read_cell(self, cell_id: str) -> Cell:
        """The cell of that id.

        Raises:
            DataError: the cell's record is missing or damaged.
        """
        try:
            with self._cells_path.open(encoding="utf-8") as lines:
                return _cell_of(json.loads(next(line for line in lines if f'"{cell_id}"' in line)))
        except (OSError, ValueError, KeyError, StopIteration) as error:
            told = "it has no line there" if isinstance(error, StopIteration) else str(error)
            raise DataError(f"{self._cells_path}: the record of cell {cell_id} cannot be read: {told}") from error

    def submitted_cells(self) -> list[Cell]:
        """Every cell that was ever submitted, whether the study still has it or not.

        Raises:
            DataError: the record of one is damaged.
        """
        try:
            return [_cell_of(record) for record in read_records(self._cells_path).records]
        except (ValueError, KeyError) as error:
            raise DataError(f"{self._cells_path}: the record of a cell cannot be read: {error}") from error

    def trunk(self, recipe: Recipe) -> Path:
        """The folder of the states that the cells which differ from this one in their length alone go on from."""
        return self.root / "trunks" / trunk_id(recipe)

    def lengths(self, cell: Cell) -> dict[str, float]:
        """The epochs of the submitted cells that differ from this one in nothing else, by their ids."""
        wanted = {**_record(cell), "cell_id": None, "epochs": None}
        return {
            record["cell_id"]: float(record["epochs"])
            for record in read_records(self._cells_path).records
            if {**record, "cell_id": None, "epochs": None} == wanted and record["cell_id"] != cell.cell_id
        }

    def keep_cell(self, cell: Cell) -> None:
        """Puts the cell's record into its folder too, which then says of itself what it is."""
        path = self.cell_folder(cell.cell_id) / "cell.json"
        record = json.dumps(_record(cell), indent=1)
        if not _holds(path, record):
            write_whole(path, record)

    def checkpoints(self, cell_id: str) -> Path:
        """The folder of a cell's checkpoints."""
        return self.cell_folder(cell_id) / "checkpoints"

    def finalised_steps(self, cell_id: str, below: str = ".") -> list[int]:
        """The steps that have a finalised checkpoint, ascending; `below` is RESUME for those to go on from."""
        folder = f"{self._cell(cell_id)}/checkpoints/{below}"
        names = [name for name in _names(folder) if name.startswith("step_")]
        return sorted(int(name.removeprefix("step_")) for name in names if os.path.exists(f"{folder}/{name}/DONE"))  # noqa: PTH110 - see `_cell`

    def evaluated_steps(self, cell_id: str) -> list[int]:
        """The steps that have a folder of evaluations, ascending."""
        folder = self.cell_folder(cell_id) / "evals"
        return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))

    def result_names(self, cell_id: str, step: int) -> set[str]:
        """The names of the files in the folder of a checkpoint's evaluations."""
        return set(_names(f"{self._cell(cell_id)}/evals/step_{step:08d}"))

    def ledger_signature(self, cell_id: str) -> tuple[int, int]:
        """Changes whenever the cell's ledger does; (0, 0) where there is none."""
        try:
            seen = os.stat(f"{self._cell(cell_id)}/attempts.ndjson")  # noqa: PTH116 - see `_cell`
        except FileNotFoundError:
            return 0, 0
        return seen.st_mtime_ns, seen.st_size

    def evals(self, cell_id: str, step: int) -> Path:
        """The folder of a checkpoint's evaluations."""
        return self.cell_folder(cell_id) / "evals" / f"step_{step:08d}"

    def train_log(self, cell_id: str) -> Path:
        """The cell's training records."""
        return self.cell_folder(cell_id) / "train.ndjson"

    def log_path(self, cell_id: str, stage: Stage, number: int) -> Path:
        """What the cell printed in its `number`-th attempt at a stage."""
        return self.cell_folder(cell_id) / "logs" / f"{stage}-{number}.log"

    # --- attempts --------------------------------------------------------------------------------------------------

    def record_attempt(self, cell_id: str, **event: Any) -> None:
        """Adds one event to the cell's ledger, with its time."""
        append_record(self.cell_folder(cell_id) / "attempts.ndjson", {"time": time.time(), **event})

    def attempts(self, cell_id: str) -> list[dict[str, Any]]:
        """The cell's ledger, oldest first."""
        return read_records(self.cell_folder(cell_id) / "attempts.ndjson").records

    # --- manifests -------------------------------------------------------------------------------------------------

    def write_manifest(self, manifest: Manifest) -> None:
        """Records a submission, before and after the scheduler has answered."""
        write_atomically(self.root / "jobs" / f"{manifest.token}.json", json.dumps(asdict(manifest), indent=1))

    def set_job_id(self, manifest: Manifest, job_id: str) -> Manifest:
        """The manifest with the scheduler's answer, recorded."""
        answered = replace(self.manifest(manifest.token), job_id=job_id)  # it may have been cancelled meanwhile
        self.write_manifest(answered)
        return answered

    def manifest(self, token: str) -> Manifest:
        """One submission.

        Raises:
            DataError: it is missing or damaged.
        """
        path = self.root / "jobs" / f"{token}.json"
        try:
            return Manifest(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: the manifest cannot be read: {error}") from error

    def manifests(self) -> list[Manifest]:
        """Every submission, oldest first."""
        found = [self.manifest(path.stem) for path in (self.root / "jobs").glob("*.json")]
        return sorted(found, key=lambda manifest: (manifest.submitted, manifest.token))

    def job_folder(self, token: str) -> Path:
        """Where a submission's own files (submitit's, claims, job logs) lie."""
        return self.root / "jobs" / token

    @property
    def is_cancelled(self) -> bool:
        """Whether a person has stopped the study, and not asked for anything since."""
        return (self.root / "cancelled").exists()

    def set_cancelled(self, cancelled: bool) -> None:
        """Records that, or takes it back."""
        if cancelled:
            write_atomically(self.root / "cancelled", "")
        else:
            (self.root / "cancelled").unlink(missing_ok=True)

    # --- results ---------------------------------------------------------------------------------------------------

    @property
    def results_path(self) -> Path:
        """The collected results table."""
        return self.root / "results" / "results.parquet"

    @property
    def measures_path(self) -> Path:
        """The collected measures on the held-out upstream images."""
        return self.root / "results" / "measures.parquet"

    @property
    def kept_answers_path(self) -> Path:
        """Answers of tasks, for the next reduction (`orchestrator.kept`)."""
        return self.root / "results" / "answers.json"

    @property
    def report_folder(self) -> Path:
        """The report and its figures and tables."""
        return self.root / "report"

    # --- one driver at a time --------------------------------------------------------------------------------------

    @contextmanager
    def driving(self) -> Iterator[Callable[[], None]]:
        """Holds the study's driver lock: a file made atomically, touched while held, stale after two minutes.

        What it yields raises DriverBusyError once another driver has taken the lock, as after a long suspension.

        Raises:
            DriverBusyError: another driver holds it.
        """
        path = self.root / "driver.lock"
        with ExitStack() as stack:
            try:
                is_ours = stack.enter_context(lock.holding(path))
            except lock.LockBusyError as error:
                is_link = path.is_symlink()
                told = str(error) if is_link else f"{self.root}: {error.owner} drives this study ({path.name})"
                raise DriverBusyError(told) from error

            def check() -> None:
                if not is_ours():
                    owner = lock.read_owner(path) or "nobody"
                    raise DriverBusyError(f"{self.root}: the driver lock was lost to {owner}")

            yield check


def _record(cell: Cell) -> dict[str, Any]:
    return {"cell_id": cell.cell_id, **cell.recipe.model_dump()}


def _cell_of(record: dict[str, Any]) -> Cell:
    return Cell(record["cell_id"], Recipe.model_validate({k: v for k, v in record.items() if k != "cell_id"}))


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except FileNotFoundError:
        return False


def study_job_name(study: str, purpose: Purpose) -> str:
    """The name in the queue of the job that watches, or reduces, a study."""
    return f"upshot-{study}-{purpose}"


class DriverBusyError(UserError):
    """Another `submit` or `watch` drives the study."""


def _names(folder: str) -> list[str]:
    """What is in a folder; nothing where there is none."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all that is wanted
    except (FileNotFoundError, NotADirectoryError):
        return []
