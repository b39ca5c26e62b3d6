"""What runs inside a job: cells by array index, each with its own attempt, log and outcome.

Jobs carry only strings and numbers here. `jobs` is what array tasks and this machine's workers call, `work` one attempt
from its start to its end in the ledger, `bodies` what an attempt does: the one module that calls `models.train` and
`evals.runner`.
"""

from orchestrator.node.bodies import mirror_cell
from orchestrator.node.jobs import run_queue, run_task
from orchestrator.node.work import Body, StopRequest, Work, own_job_id

__all__ = ["Body", "StopRequest", "Work", "mirror_cell", "own_job_id", "run_queue", "run_task"]
