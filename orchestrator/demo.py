"""The quickstart study, whole, telling what it does while it does it."""

import time
from pathlib import Path

from models.data import shipped
from orchestrator.observe import Observation
from orchestrator.progress import watch_with_table
from orchestrator.reduced_tables import print_reduced
from orchestrator.session import open_session
from orchestrator.tables import print_plan
from orchestrator.terminal import duration


def run_demo(cluster: str, runs: Path) -> Observation:
    """The last observation of the quickstart study, run on `cluster` and reported; ends with the report's path.

    Raises:
        UserError: the quickstart study is not where it was installed.
        SlurmError: the cluster cannot be reached.
    """
    began = time.monotonic()
    sets = [] if cluster == "local" else [f'cluster.profile="{Path(cluster).resolve()}"']
    session = open_session(shipped("studies", "quickstart.toml"), runs, sets)
    print(f"Study file: {session.file.path}\nStudy folder: {session.store.root}\n")
    seen = session.observe()
    print_plan(seen.plan, session)
    print("\nTraining every cell on real images, then probing every checkpoint on every downstream task.")
    print("Stop it at any time; the next run goes on from what is done.\n")
    session.submit()
    seen = watch_with_table(session)
    print(f"\n{len(seen.states)} cells ended after {duration(time.monotonic() - began)}. Now the answer.\n")
    page = session.report()
    print_reduced(session.reduced())
    print(f"\nW&B and TensorBoard mirrors lie in {session.store.root / 'cells'}")
    print(f"Report: {page}")
    return seen
