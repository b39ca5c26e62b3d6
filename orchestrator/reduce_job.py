"""`reduce` as a job, for studies that outgrow the login node."""

import json
from pathlib import Path
from typing import Any

from orchestrator.answer import Settings
from orchestrator.files import write_atomically
from orchestrator.session import Session, open_submitted
from orchestrator.store import Store
from orchestrator.study_job import submit_for_study

MEM_GB = 4.0
NUM_CPUS = 2


def answer_path(store: Store) -> Path:
    """Where the job leaves what `upshot reduce --json` would print."""
    return store.results_path.with_name("reduced.json")


def submit_reduce(session: Session, options: dict[str, Any]) -> str:
    """The id of the job that reduces the study, submitted now or already in the queue.

    Args:
        session: the study.
        options: of `orchestrator.reduce.reduce_study`.

    Raises:
        UserError: an option is wrong, or the study runs on this machine.
        SlurmError: the scheduler does not answer or refuses.
    """
    # What is wrong with them is said now.
    session.protocol(options.get("protocol"))
    Settings(**{name: value for name, value in options.items() if name != "protocol"})
    return submit_for_study(session, "reduce", run_reduce, (options,), mem_gb=MEM_GB, num_cpus=NUM_CPUS)


def run_reduce(study_dir: str, options: dict[str, Any]) -> None:
    """What the job runs: collects the results, and writes the answer beside them."""
    session = open_submitted(Path(study_dir), Path(study_dir).parent)
    write_atomically(answer_path(session.store), json.dumps(session.reduced(**options, workers=NUM_CPUS), indent=1))
