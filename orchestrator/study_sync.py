"""A study's cells at W&B, round by round: those whose files have changed since they were last mirrored are told."""

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.bars import Tell
from orchestrator.observe import Observer
from orchestrator.session import Session
from orchestrator.state import CellState, Status
from orchestrator.tracking.client import need_key
from orchestrator.tracking.missing import AwayError, whole_runs
from orchestrator.tracking.stamps import Place, stamp_of
from orchestrator.tracking.summary_run import was_told
from orchestrator.tracking.syncing import PATIENCE_S, Report, Sync
from orchestrator.tracking.wandb_run import TIMEOUT_S, is_unchanged
from orchestrator.tracking.workers import Task

JOBS = 4


def outcome_of(state: CellState) -> str:
    """How a cell ended, as its run says: done, diverged or failed; running where it has not."""
    if state.status in (Status.DONE, Status.DIVERGED, Status.FAILED):
        return str(state.status)
    # Its evaluation may come: until then what its training ended with counts.
    return str(state.train.status) if state.train.status in (Status.DONE, Status.DIVERGED) else "running"


@dataclass(slots=True)
class StudySync:
    """The rounds of one study; what W&B would refuse again is not asked again while its files are the same.

    Args:
        session: the study.
        jobs: how many processes tell cells.
        patience_s: how long W&B may be away before the rest of a round is left.
    """

    session: Session
    jobs: int = JOBS
    patience_s: float = PATIENCE_S
    report: Report = field(init=False)
    _observer: Observer = field(init=False)
    _refused: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._observer = Observer(self.session.store, self.session.file, self.session.profile)
        self.report = self._empty()

    def round(self, show: Callable[[int, int], None], *, rebuild: bool = False) -> Report:
        """What became of each cell, once W&B was told what it had not heard.

        It stands in `report` too, also while this goes on and when it raises. Nothing but the study folder is needed.

        Args:
            show: called with how many cells are done, of how many.
            rebuild: whether W&B is asked what it lacks, and other histories are written over.

        Raises:
            UserError: W&B takes none of the cells: the key, the entity or the project is wrong.
        """
        report = self.report = self._empty()
        states, _ = self._observer.read(strict=False)
        outcomes = {s.cell.cell_id: outcome_of(s) for s in states if s.train.num_attempts}
        stamps = {cell_id: stamp_of(self.session.store.cell_folder(cell_id), o) for cell_id, o in outcomes.items()}
        fine = {cell_id for cell_id, stamp in stamps.items() if self._is_fine(cell_id, stamp)}
        if rebuild:
            try:
                fine &= whole_runs(self.session.store, self._observer.study.name, outcomes, report.place, TIMEOUT_S)
            except AwayError as error:
                report.stopped, report.left = str(error), sorted(outcomes)
                return report
        report.unchanged = len(fine - report.failed.keys())
        self._tell([Task(cell_id, o, over=rebuild) for cell_id, o in outcomes.items() if cell_id not in fine], show)
        self._refused = {cell_id: (stamps[cell_id], reason) for cell_id, reason in report.failed.items()}
        return report

    def tell_study(self, show: Tell) -> None:
        """Tells W&B what the study says as a whole, after its cells; what goes wrong stands in `report`.

        It takes as long as `upshot report`, so it is left out where no cell was told and the last time went well.
        `show` hears how far it is.
        """
        if self.report.stopped is None and (self.report.told or not was_told(self.session.store.root)):
            from orchestrator.study_summary import mirror_study  # its chart libraries take a second to load

            self.report.study = mirror_study(self.session, show).error

    def is_settled(self) -> bool:
        """Whether every cell has ended, and none is to be tried again."""
        return self._observer.look(strict=False).settled

    def _tell(self, tasks: list[Task], show: Callable[[int, int], None]) -> None:
        if tasks:
            need_key()
            told = Sync(self.session.store.root, tasks, self.report, jobs=self.jobs, patience_s=self.patience_s)
            told.run(lambda num_done: show(num_done, len(tasks)))

    def _is_fine(self, cell_id: str, stamp: str) -> bool:
        """Whether nothing of the cell is to be told; one that was refused as it is stays among the failures."""
        refused = self._refused.get(cell_id)
        if refused is not None and refused[0] == stamp:
            self.report.failed[cell_id] = refused[1]
            return True
        return is_unchanged(self.session.store.cell_folder(cell_id), self.report.place, stamp)

    def _empty(self) -> Report:
        wandb = self.session.file.study.wandb
        return Report(place=Place.of(wandb.project, wandb.entity))
