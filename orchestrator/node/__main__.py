"""Starts workers on this machine: STUDY_DIR TOKEN[,TOKEN...] NUM_WORKERS."""

import sys
from pathlib import Path

from orchestrator.node import run_queue
from orchestrator.store import Store
from slurm.submit import submit_workers


def main() -> None:
    """Returns once they are started; they outlive it."""
    study_dir, tokens, num_workers = sys.argv[1:]
    folder = Store(Path(study_dir)).job_folder(tokens.split(",")[0])
    submit_workers(run_queue, [(study_dir, tokens, f"worker-{i}") for i in range(int(num_workers))], folder=folder)


if __name__ == "__main__":
    main()
