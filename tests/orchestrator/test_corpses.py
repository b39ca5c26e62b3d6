"""Which attempts are dead: several checkpoints of a cell in one array, tasks that start while the queue is read."""

import time

import pytest

from orchestrator.attempts import read_attempts
from orchestrator.state import CellFiles, find_corpses
from orchestrator.submissions import Task, index_submissions
from tests.orchestrator.ledger import EVALUATE, TRAIN

PENDING, RUNNING = Task("pending"), Task("running")
STEPS = (1, 2, 3)


@pytest.fixture
def judged_singly(ledger):
    """A trained cell whose three checkpoints are judged by a task each."""
    cell_id = ledger.cells[0].cell_id
    ledger.submit_both(ledger.cells[:1])
    ledger.run("done", step=None)
    ledger.submit("d" * 12, [[f"{cell_id}@{step}"] for step in STEPS], "evaluate")
    return ledger


def corpses(ledger, tasks, **more):
    cell_id = ledger.cells[0].cell_id
    files = CellFiles(attempts=read_attempts(ledger.store.attempts(cell_id)), steps=STEPS)
    found = find_corpses(cell_id, files, index_submissions(ledger.store.manifests(), {cell_id}), tasks, set(), **more)
    return [(c.attempt.stage, c.attempt.step, c.started_again) for c in found if c.attempt.token == "d" * 12]


def test_checkpoints_that_are_being_judged_at_once_are_not_taken_for_one_another(judged_singly):
    for attempt, step in enumerate(STEPS, start=1):
        judged_singly.start(token="d" * 12, attempt=attempt, step=step)
    live = {("d" * 12, index): RUNNING for index in range(3)}
    assert corpses(judged_singly, live) == []
    assert corpses(judged_singly, {**live, ("d" * 12, 1): Task("gone")}) == [("evaluate", 2, False)]


def test_a_checkpoint_that_was_never_judged_is_dead_though_its_neighbour_began(judged_singly):
    judged_singly.start(token="d" * 12, step=1)
    live = {("d" * 12, 0): RUNNING, ("d" * 12, 1): Task("gone"), ("d" * 12, 2): PENDING}
    assert corpses(judged_singly, live) == [("evaluate", 2, False)]


def test_each_checkpoint_that_fails_has_a_death_of_its_own(judged_singly):
    for attempt, step in enumerate(STEPS, start=1):
        error = {"type": "ValueError", "message": f"step {step}", "traceback": ""}
        judged_singly.run("failed", token="d" * 12, attempt=attempt, step=step, error=error)
    assert corpses(judged_singly, {}) == [("evaluate", step, False) for step in STEPS]


def test_a_task_that_started_after_the_queue_was_read_was_not_requeued(ledger):
    ledger.submit_both(ledger.cells[:1])
    ledger.start(time=time.time())
    cell_id = ledger.cells[0].cell_id
    files = CellFiles(attempts=read_attempts(ledger.store.attempts(cell_id)))
    submissions = index_submissions(ledger.store.manifests(), {cell_id})
    queue = {(TRAIN, 0): PENDING, (EVALUATE, 0): PENDING}
    assert find_corpses(cell_id, files, submissions, queue, set(), asked_at=time.time()) == []
    [requeued] = find_corpses(cell_id, files, submissions, queue, set(), asked_at=time.time() + 3600)
    assert requeued.started_again
