"""Writes a study's folder as its submissions and jobs would have left it, for the tests of what is read from it."""

from dataclasses import replace

from orchestrator.attempts import retry_event
from orchestrator.state import CellState, find_corpses, judge, read_files
from orchestrator.store import Manifest, Stage, Store
from orchestrator.study import Study
from orchestrator.submissions import index_submissions
from orchestrator.wanted import wanted_files
from slurm.failures import Cause

TRAIN, EVALUATE = "a" * 12, "b" * 12


class Ledger:
    """Writes into one store. A submission's token names it in everything that follows."""

    def __init__(self, store: Store, study: Study, cells) -> None:
        self.store, self.study, self.cells = store, study, cells
        self.clock = 0.0
        store.write_cells(cells)

    def submit(self, token, tasks, stage: Stage = "train", **more) -> Manifest:
        """A submission, later than those before; `tasks` has a list of units for each array index."""
        self.clock += 1.0
        values = {"executor": "slurm", "job_id": f"{len(self.store.manifests()) + 1}", "submitted": self.clock, **more}
        manifest = Manifest(token=token, study="small", stage=stage, tasks=tasks, **{"resources": {}, **values})
        self.store.write_manifest(manifest)
        return manifest

    def submit_both(self, cells=None, **more) -> None:
        """A training array of one cell a task, and the evaluation that waits for it."""
        tasks = [[cell.cell_id] for cell in cells or self.cells]
        self.submit(TRAIN, tasks, **more)
        self.submit(EVALUATE, tasks, "evaluate", **{"after": TRAIN, **more})

    def change(self, token, **values) -> None:
        self.store.write_manifest(replace(self.store.manifest(token), **values))

    def record(self, event, cell=0, *, token=TRAIN, attempt=1, step=None, **more) -> None:
        stage = self.store.manifest(token).stage
        common = {"event": event, "stage": stage, "attempt": attempt, "token": token}
        if step is not None:
            common["step_to_evaluate"] = step
        self.store.record_attempt(self.cells[cell].cell_id, **{**common, **more})

    def start(self, cell=0, **more) -> None:
        self.record("start", cell, **{"host": "node1", "pid": 1, **more})

    def end(self, outcome, cell=0, **more) -> None:
        self.record("end", cell, outcome=outcome, **{"seconds": 2.0, **more})

    def run(self, outcome, cell=0, **more) -> None:
        """An attempt from its start to its end."""
        self.start(cell, **{name: value for name, value in more.items() if name in ("token", "attempt", "step")})
        self.end(outcome, cell, **more)

    def die(self, cause: Cause, cell=0, detail="said", **more) -> None:
        self.record("death", cell, cause=cause.value, detail=detail, **more)

    def ask_again(self, stage: Stage = "train", cell=0) -> None:
        """Somebody asks for a retry."""
        self.store.record_attempt(self.cells[cell].cell_id, **retry_event(stage))

    def finalise(self, *steps, cell=0) -> None:
        for step in steps:
            folder = self.store.checkpoints(self.cells[cell].cell_id) / f"step_{step:08d}"
            folder.mkdir(parents=True)
            (folder / "DONE").touch()

    def evaluated(self, *steps, cell=0, tasks=("mnist", "patches"), protocols=None, measures=True) -> None:
        """The files of these checkpoints are there: of every protocol where none is named, and upstream measures."""
        wanted = wanted_files(self.study)
        names = [n for (t, p), n in wanted.results.items() if t in tasks and (protocols is None or p in protocols)]
        for step in steps:
            folder = self.store.evals(self.cells[cell].cell_id, step)
            folder.mkdir(parents=True, exist_ok=True)
            for name in [*names, *([wanted.measures] if measures and wanted.measures else [])]:
                (folder / name).touch()

    def trained(self, *steps, cell=0) -> None:
        """The cell's training has ended well, with these checkpoints."""
        self.run("done", cell)
        self.finalise(*steps or (4,), cell=cell)

    # --- what is read of it ----------------------------------------------------------------------------------------

    def submissions(self):
        return index_submissions(self.store.manifests(), {cell.cell_id for cell in self.cells})

    def state(self, tasks=None, cell=0, study=None) -> CellState:
        """Where a cell stands, by what is on record."""
        files = read_files(self.store, study or self.study, self.cells[cell].cell_id)
        return judge(self.cells[cell], files, self.submissions(), tasks or {})

    def corpses(self, tasks=None, cell=0, innocent=()):
        cell_id = self.cells[cell].cell_id
        files = read_files(self.store, self.study, cell_id)
        return find_corpses(cell_id, files, self.submissions(), tasks or {}, set(innocent))
