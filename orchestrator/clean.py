"""What finished cells no longer need, and its removal.

Never touched: measured weights, metrics and state of any checkpoint, the last checkpoint whole, evaluations, ledgers,
cell logs, manifests, results, report; and anything of a cell that is not finished or whose jobs are live.
"""

import secrets
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.errors import DataError, StudyError, UserError
from orchestrator.bars import Tell, tell_nobody
from orchestrator.files import write_atomically
from orchestrator.grid import Cell
from orchestrator.identity import trunk_id
from orchestrator.observe import Observer
from orchestrator.session import open_submitted
from orchestrator.snapshot import DIFF, LOCK, RECORD
from orchestrator.state import ENDED_WELL, CellState
from orchestrator.store import RESUME, Manifest, Store, parse_unit
from orchestrator.study_job import codes_in_use
from orchestrator.submissions import Tasks
from slurm import local

Kind = Literal["resume", "draft", "damaged", "optimizer", "trunk", "submission", "code", "lock"]
GOING_ON = ("optimizer.safetensors", "raw.safetensors")
SUBMITIT_FILES = ("*.pkl", "*.sh", "*.out", "*.err")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A file or folder that may go."""

    kind: Kind
    path: Path
    num_bytes: int


def clean(store: Store, tell: Tell = tell_nobody) -> list[Leftover]:
    """Removes what finished cells no longer need; what that was. `tell` hears how much is gone.

    Raises:
        DriverBusyError: a driver is at work.
        SlurmUnreachable: nobody knows which jobs are live, so nothing was removed.
        UserError: something could not be removed; what came before it is gone.
    """
    store.study()  # a folder that holds none is told of before anything is made in it
    with store.driving():
        found = leftovers(store)
        for i, leftover in enumerate(found):
            tell("removing", i, len(found))
            _remove(leftover)
    return found


def leftovers(store: Store) -> list[Leftover]:
    """What `clean` would remove; changes nothing.

    Raises:
        SlurmUnreachable: nobody knows which jobs are live.
    """
    states, tasks = _states(store)
    manifests = store.manifests()
    busy = {cell_id for m in manifests for i, ids in _work(m) if _is_live(tasks, m, i) for cell_id in ids}
    trained = [c for c, state in states.items() if state.train.status in ENDED_WELL and c not in busy]
    finished = {c for c in trained if states[c].status in ENDED_WELL}
    ended = {m.token for m in manifests if all(cell_id in finished for _, ids in _work(m) for cell_id in ids)}
    return [
        *(leftover for cell_id in sorted(trained) for leftover in _of_cell(store, cell_id)),
        *_found("trunk", unneeded_trunks(store, set(trained))),
        *_of_submissions(store, manifests, ended),
        *_found("code", unneeded_code(store.root / "code", manifests, ended, codes_in_use(store))),
        *_found("draft", (store.root / "code").glob(".draft-*")),
        *_found("lock", store.root.glob(".driver.lock.*")),
    ]


def unneeded_code(
    folder: Path, manifests: Iterable[Manifest], ended: set[str], kept: Collection[str | None] = ()
) -> list[Path]:
    """The snapshots in `folder` that no submission names but such as have ended."""
    needed = {manifest.code for manifest in manifests if manifest.token not in ended} | set(kept)
    snapshots = [path for path in sorted(folder.glob("*")) if path.is_dir() and not path.name.startswith(".")]
    return [path for path in snapshots if path.name not in needed]


def unneeded_trunks(store: Store, trained: set[str]) -> list[Path]:
    """The trunks that no cell can go on from any more: all of theirs are trained, submitted yet or not."""
    trunks = sorted((store.root / "trunks").glob("*"))
    try:
        known = {cell.cell_id: cell for cell in (*store.submitted_cells(), *store.cells())} if trunks else {}
    except StudyError:  # its images are gone or out of reach, so nobody knows which cells may still come
        return []
    needed = {trunk_id(cell.recipe) for cell_id, cell in known.items() if cell_id not in trained}
    return [path for path in trunks if path.name not in needed]


def _work(manifest: Manifest) -> Iterator[tuple[int, list[str]]]:
    """The cells of each array task."""
    for index, units in enumerate(manifest.tasks):
        yield index, [parse_unit(text)[0] for text in units]


def _is_live(tasks: Tasks, manifest: Manifest, index: int) -> bool:
    return (manifest.token, index) in tasks and tasks[manifest.token, index].is_live


def _states(store: Store) -> tuple[dict[str, CellState], Tasks]:
    """The state of every cell that has a folder, in the study still or not; those that cannot be read are left out.

    With it, what is live.
    """
    cells: list[Cell] = []
    for cell_id in sorted(store.cell_ids()):
        try:
            cells.append(store.read_cell(cell_id))
        except DataError:
            continue
    session = open_submitted(store.root, store.root.parent)
    states, queue = Observer(store, session.file, session.profile, of=cells).read()
    return {state.cell.cell_id: state for state in states}, queue.tasks


def _of_cell(store: Store, cell_id: str) -> Iterator[Leftover]:
    """What only a training that goes on would need. Where no numbered checkpoint is, that in `resume` is the last."""
    folder, steps = store.checkpoints(cell_id), store.finalised_steps(cell_id)
    yield from _found("draft", folder.glob(".draft-*"))
    yield from _found("damaged", folder.glob("corrupt-step_*"))
    yield from _found("resume", [folder / RESUME] if steps else [])
    earlier = [folder / f"step_{step:08d}" for step in steps[:-1]]
    yield from _found("optimizer", (path / name for path in earlier for name in GOING_ON))


def _of_submissions(store: Store, manifests: list[Manifest], ended: set[str]) -> Iterator[Leftover]:
    """Files of submitit; the folder of a local queue's first submission holds the workers of all of them."""
    carried: dict[str, set[str]] = defaultdict(set)
    for manifest in manifests:
        carried[manifest.token].add(manifest.token)
        if manifest.executor == "local" and manifest.job_id is not None:
            carried[manifest.job_id].add(manifest.token)
    for token, tokens in carried.items():
        folder = store.job_folder(token)
        if tokens <= ended and not local.living(folder):
            yield from _found("submission", (path for name in SUBMITIT_FILES for path in sorted(folder.glob(name))))


def _found(kind: Kind, paths: Iterable[Path]) -> Iterator[Leftover]:
    """Those that are there; links are left alone, whoever made them."""
    for path in paths:
        if path.exists() and not path.is_symlink():
            inside = path.rglob("*") if path.is_dir() else [path]
            num_bytes = sum(p.lstat().st_size for p in inside if p.is_symlink() or p.is_file())
            yield Leftover(kind=kind, path=path, num_bytes=num_bytes)


def _remove(leftover: Leftover) -> None:
    path = leftover.path
    try:
        if leftover.kind == "code":
            _keep_records(path)
        if path.is_dir():
            # First out of the way as a whole: a folder that is half removed must not pass for a checkpoint or for code.
            path = path.rename(path.with_name(f".draft-{secrets.token_hex(8)}"))
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be removed: {error.strerror}") from error


def _keep_records(snapshot: Path) -> None:
    """Leaves beside a snapshot what tells which code it was, so that every result can still be traced to its commit."""
    for name in (RECORD, DIFF, LOCK):
        if (snapshot / name).is_file():
            write_atomically(snapshot.with_name(f"{snapshot.name}.{name}"), (snapshot / name).read_bytes())
