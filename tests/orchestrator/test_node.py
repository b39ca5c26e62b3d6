import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from orchestrator import lock, node
from orchestrator.node import StopRequest, work
from orchestrator.node.jobs import CellsFailedError
from slurm.cluster import load_profile
from tests.orchestrator.ledger import EVALUATE, TRAIN
from tests.private_slurm import wait_until

AGAIN = "c" * 12
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _outside_of_slurm(monkeypatch):
    """No job of an outer Slurm, and this process's signals as they were."""
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    kept = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def asked(monkeypatch):
    """What Slurm's commands were called with; nobody answers."""
    commands = []
    monkeypatch.setattr("slurm.jobs.run_slurm", lambda command: commands.append(command) or "")
    return commands


class Bodies(dict):
    """Bodies that note which work they did, and then do as `act` says."""

    def __init__(self, act=lambda _: {"outcome": "done"}):
        self.did = []
        super().__init__(dict.fromkeys(("train", "evaluate"), self._body))
        self._act = act

    def _body(self, this):
        self.did.append((this.cell_id, this.step))
        return self._act(this)


def run(ledger, token, bodies, index=0):
    node.run_task(str(ledger.store.root), token, index, bodies=bodies)


def ids(ledger):
    return [cell.cell_id for cell in ledger.cells]


def story(ledger, cell=0):
    found = ledger.store.attempts(ledger.cells[cell].cell_id)
    return [(event["event"], event["attempt"], event.get("outcome")) for event in found]


# --- done once -----------------------------------------------------------------------------------------------------


def test_every_cell_of_a_pack_has_its_start_and_end_in_its_ledger_and_a_log(ledger, small, capfd):
    ledger.store.write_study(small.file.text, load_profile("local"))
    ledger.submit(TRAIN, [ids(ledger)[:1], ids(ledger)[1:3]])
    bodies = Bodies(lambda this: {"outcome": "done", "step": os.write(1, this.cell_id.encode())})
    run(ledger, TRAIN, bodies, index=1)
    assert bodies.did == [(cell_id, None) for cell_id in ids(ledger)[1:3]]
    assert story(ledger, 0) == []
    for cell in (1, 2):
        assert story(ledger, cell) == [("start", 1, None), ("end", 1, "done")]
        assert ledger.store.log_path(ids(ledger)[cell], "train", 1).read_text() == ids(ledger)[cell]
    markers = [f"upshot: attempt 1 of train of {cell_id}" for cell_id in ids(ledger)[1:3]]
    assert capfd.readouterr().out.splitlines() == markers


@pytest.mark.parametrize("outcome", ["done", "diverged", "failed"])
def test_a_requeued_job_skips_what_its_earlier_start_ended_and_ends_as_that_did(ledger, outcome):
    ledger.submit(EVALUATE, [ids(ledger)[:2]], "evaluate")
    ledger.run(outcome, 0, token=EVALUATE)
    bodies = Bodies()
    with pytest.raises(CellsFailedError) if outcome == "failed" else nullcontext():
        run(ledger, EVALUATE, bodies)
    assert bodies.did == [(ids(ledger)[1], None)]
    assert len(story(ledger, 0)) == 2


def test_a_requeued_job_goes_on_with_what_was_interrupted(ledger):
    ledger.submit(TRAIN, [ids(ledger)[:2]])
    ledger.run("interrupted", 0)
    ledger.start(1)
    bodies = Bodies()
    run(ledger, TRAIN, bodies)
    assert bodies.did == [(cell_id, None) for cell_id in ids(ledger)[:2]]
    assert story(ledger, 0)[2:] == story(ledger, 1)[1:] == [("start", 2, None), ("end", 2, "done")]


def test_training_that_another_job_ended_is_skipped_as_long_as_its_checkpoints_are_there(ledger):
    ledger.submit(TRAIN, [ids(ledger)[:2]])
    ledger.trained(4, cell=0)
    ledger.run("done", 1)
    ledger.submit(AGAIN, [ids(ledger)[:2]])
    bodies = Bodies()
    run(ledger, AGAIN, bodies)
    assert bodies.did == [(ids(ledger)[1], None)]


def test_checkpoints_are_judged_each_by_itself(ledger):
    cell_id = ids(ledger)[0]
    ledger.submit(EVALUATE, [[f"{cell_id}@2", f"{cell_id}@4"]], "evaluate")
    ledger.run("done", 0, token=EVALUATE, step=2)
    bodies = Bodies()
    run(ledger, EVALUATE, bodies)
    assert bodies.did == [(cell_id, 4)]
    assert ledger.store.attempts(cell_id)[-1]["step_to_evaluate"] == 4


def test_a_submission_that_was_given_up_does_nothing(ledger, capsys):
    ledger.submit(TRAIN, [ids(ledger)], abandoned=True)
    bodies = Bodies()
    run(ledger, TRAIN, bodies)
    assert bodies.did == []
    assert all(story(ledger, cell) == [] for cell in range(4))
    assert "given up" in capsys.readouterr().out


# --- failures ------------------------------------------------------------------------------------------------------


def test_a_cell_that_raises_does_not_stop_the_others_of_its_pack(ledger):
    ledger.submit(TRAIN, [ids(ledger)])
    bad = ids(ledger)[1]

    def act(this):
        if this.cell_id == bad:
            raise OSError(28, "No space left on device")
        return {"outcome": "done"}

    bodies = Bodies(act)
    with pytest.raises(CellsFailedError, match=bad):
        run(ledger, TRAIN, bodies)
    assert [cell_id for cell_id, _ in bodies.did] == ids(ledger)
    assert [story(ledger, cell)[-1][2] for cell in range(4)] == ["done", "failed", "done", "done"]
    error = ledger.store.attempts(bad)[-1]["error"]
    assert (error["type"], error["errno"]) == ("OSError", 28)
    assert "No space left on device" in error["message"]
    assert "Traceback" in error["traceback"]


def test_a_process_that_is_told_to_exit_leaves_word_of_it(ledger):
    ledger.submit(TRAIN, [ids(ledger)])
    with pytest.raises(KeyboardInterrupt):
        run(ledger, TRAIN, Bodies(lambda _: (_ for _ in ()).throw(KeyboardInterrupt)))
    assert story(ledger, 0) == [("start", 1, None), ("end", 1, "interrupted")]
    assert story(ledger, 1) == []


# --- told to stop --------------------------------------------------------------------------------------------------


def stops(number, outcome="interrupted"):
    """A body that is told to stop and, by default, does so in good order."""

    def act(this):
        os.kill(os.getpid(), number)
        assert this.should_stop()
        return {"outcome": outcome, "error": {"type": signal.Signals(number).name, "message": "", "traceback": ""}}

    return act


def test_a_stop_request_leaves_the_rest_of_the_pack_and_ends_badly(ledger, asked):
    ledger.submit(TRAIN, [ids(ledger)])
    bodies = Bodies(stops(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run(ledger, TRAIN, bodies)
    assert ended.value.code == "stopped"  # a string is printed, and the exit code is 1
    assert len(bodies.did) == 1
    assert story(ledger, 0)[-1] == ("end", 1, "interrupted")
    assert [story(ledger, cell) for cell in (1, 2, 3)] == [[], [], []]
    assert asked == []


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({"SLURM_JOB_ID": "41"}, "41"),
        ({"SLURM_JOB_ID": "43", "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "2"}, "41_2"),
    ],
)
def test_near_its_time_limit_a_job_requeues_itself_and_no_other_task_of_its_array(
    ledger, asked, monkeypatch, environment, job
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ledger.submit(TRAIN, [ids(ledger)])
    with pytest.raises(SystemExit, match="requeued"):
        run(ledger, TRAIN, Bodies(stops(signal.SIGUSR2)))
    assert asked == [["scontrol", "requeue", job]]
    assert ledger.store.attempts(ids(ledger)[0])[0]["job"] == job


def test_a_job_that_ends_its_work_just_before_its_time_limit_ends_well(ledger, asked):
    ledger.submit(TRAIN, [ids(ledger)[:1]])
    run(ledger, TRAIN, Bodies(stops(signal.SIGUSR2, outcome="done")))
    assert asked == []
    ledger.submit(AGAIN, [ids(ledger)[1:3]])
    with pytest.raises(SystemExit):  # but not if another cell of its pack is left
        run(ledger, AGAIN, Bodies(stops(signal.SIGUSR2, outcome="done")))
    assert len(asked) == 1


@pytest.mark.parametrize(("time_min", "early"), [(24 * 60, True), (1, False), (None, False)])
def test_a_signal_long_before_the_time_limit_is_not_about_it(time_min, early):
    stop = StopRequest(time_min)
    assert not stop
    stop.listen()
    os.kill(os.getpid(), signal.SIGUSR2)
    assert stop
    assert (stop.signal, stop.early) == (signal.SIGUSR2, early)


def test_a_cell_that_lost_its_lock_is_not_taken_for_trained_by_those_who_wait_for_the_job(ledger):
    ledger.submit(TRAIN, [ids(ledger)[:1]])
    lost = {"outcome": "interrupted", "error": {"type": "LockLost", "message": "", "traceback": ""}}
    with pytest.raises(SystemExit):
        run(ledger, TRAIN, Bodies(lambda _: lost))


# --- several at the same cell --------------------------------------------------------------------------------------

JOB = """
import sys, time
from pathlib import Path
from orchestrator import node
from orchestrator.store import Store

study_dir, token, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
real_sleep = time.sleep

def sleep(seconds):
    (folder / f"{token} waits").touch()
    real_sleep(min(seconds, 0.05))

time.sleep = sleep

def body(work):
    print("printed to the cell's own log")
    (folder / f"{token} began").touch()
    while not (folder / f"{token} may end").exists():
        real_sleep(0.05)
    done = work.store.checkpoints(work.cell_id) / "step_00000004"
    done.mkdir(parents=True)
    (done / "DONE").touch()
    return {"outcome": "done", "step": 4}

node.run_task(study_dir, token, 0, bodies={"train": body, "evaluate": body})
"""


@pytest.fixture
def job(ledger, tmp_path):
    """Starts a process that runs array task 0 of a submission; what is left of them ends with the test."""
    started = []

    def start(token):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", JOB, str(ledger.store.root), token, str(tmp_path)]
        started.append(subprocess.Popen(command, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_of_two_jobs_at_the_same_cell_the_second_waits_and_then_has_nothing_to_do(ledger, job, tmp_path):
    for token in (TRAIN, AGAIN):
        ledger.submit(token, [ids(ledger)[:1]])
    first = job(TRAIN)
    wait_until((tmp_path / f"{TRAIN} began").exists, "the first trains")
    second = job(AGAIN)
    wait_until((tmp_path / f"{AGAIN} waits").exists, "the second waits")
    (tmp_path / f"{TRAIN} may end").touch()
    assert first.wait(60) == second.wait(60) == 0
    assert not (tmp_path / f"{AGAIN} began").exists()
    assert "printed" in ledger.store.log_path(ids(ledger)[0], "train", 1).read_text()
    assert story(ledger) == [("start", 1, None), ("end", 1, "done")]


def test_the_cell_of_a_job_that_was_killed_is_free_for_the_next(ledger, job, tmp_path):
    for token in (TRAIN, AGAIN):
        ledger.submit(token, [ids(ledger)[:1]])
    first = job(TRAIN)
    wait_until((tmp_path / f"{TRAIN} began").exists, "the first trains")
    second = job(AGAIN)
    wait_until((tmp_path / f"{AGAIN} waits").exists, "the second waits")
    (tmp_path / f"{AGAIN} may end").touch()
    first.kill()
    assert second.wait(60) == 0
    assert story(ledger) == [("start", 1, None), ("start", 2, None), ("end", 2, "done")]


def test_who_waits_in_vain_for_a_cell_does_not_let_its_evaluation_start(ledger, monkeypatch):
    monkeypatch.setattr(work, "LOCK_WAIT_S", 0.0)
    ledger.submit(TRAIN, [ids(ledger)[:2]])
    bodies = Bodies()
    with (
        lock.holding(ledger.store.cell_folder(ids(ledger)[0]) / "train.lock"),
        pytest.raises(CellsFailedError, match=ids(ledger)[0]),
    ):
        run(ledger, TRAIN, bodies)
    assert bodies.did == [(ids(ledger)[1], None)]
    assert story(ledger, 0) == []
