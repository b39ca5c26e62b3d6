"""A scheduler's answers, made up: for odd situations that a real one cannot be made to give at will.

Accounts that lag by minutes, a stranger with a recycled job id, a database that does not answer: what asks, parses and
decides is real; only the text that squeue, sacct and sinfo would print is written down here. That text is what real
ones print is held by the tests against real clusters (tests/slurm/test_jobs.py, tests/faults).
"""

from collections import Counter

from slurm.resources import SlurmError, SlurmUnreachable

SILENT = SlurmUnreachable("squeue: slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
NO_DATABASE = SlurmUnreachable("sacct: error: Problem talking to the database: Connection refused")
NO_ACCOUNTING = SlurmError("sacct: Slurm accounting storage is disabled")
NO_SACCT = SlurmUnreachable("sacct: not found on PATH; is this a login node of the cluster?")


class Scheduler:
    """Stands in for `slurm.jobs.run_slurm`. An answer that is an exception is raised."""

    def __init__(self, monkeypatch) -> None:
        self.queue: list[str] | Exception = []
        self.accounts: list[str] | Exception = NO_ACCOUNTING
        self.nodes: list[str] | Exception = []
        self.asked: list[list[str]] = []
        monkeypatch.setattr("slurm.jobs.run_slurm", self._answer)

    def _answer(self, command, **_) -> str:
        self.asked.append(list(command))
        answer = {"squeue": self.queue, "sacct": self.accounts, "sinfo": self.nodes, "scancel": []}[command[0]]
        if isinstance(answer, Exception):
            raise answer
        return "".join(f"{line}\n" for line in answer)

    @property
    def num_asked(self) -> Counter:
        """How often each command was asked, since the last time."""
        counts = Counter(command[0] for command in self.asked)
        self.asked.clear()
        return counts

    def in_queue(self, job_id, state, token, *, reason="None", node="", start="N/A") -> None:
        """A line of squeue's for a job of the study, or for one with another name."""
        name = f"upshot-small-{token}" if len(token) == 12 else token
        self.queue = [*self.queue, f"{job_id}|{state}|1000|{start}|{node}|{reason}|{name}"]

    def accounted(self, job_id, state, token, *, start=0, end=0, code="0:0", node="None assigned") -> None:
        """A line of sacct's, for one start of a job."""
        name = f"upshot-small-{token}" if len(token) == 12 else token
        before = [] if isinstance(self.accounts, Exception) else self.accounts
        times = "|".join(str(at) if at else "Unknown" for at in (start, end))
        self.accounts = [*before, f"{job_id}|{state}|1000|{times}|{code}|{node}|{name}"]
