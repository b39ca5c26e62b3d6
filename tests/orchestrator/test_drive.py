"""How a plan is carried out where sbatch refuses: with one of our own, since a real one does not refuse at will."""

from dataclasses import replace

import pytest

from orchestrator.drive import Driver
from orchestrator.state import CellState, StageState, Status
from orchestrator.study import load_study
from slurm.cluster import Profile
from slurm.failures import Cause, Death
from slurm.resources import LimitReachedError
from tests.orchestrator.plans import CPU, plan_of

CLUSTER = Profile(partitions={"cpu": CPU})
NO_NODE = "sbatch: error: Batch job submission failed: Requested node configuration is not available"
FULL = "sbatch: error: QOSMaxSubmitJobPerUserLimit"


@pytest.fixture
def refuse(tmp_path, monkeypatch):
    """Makes sbatch refuse with some words where a shell test of $script and $count (of those taken) says so."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(words="", when="false"):
        body = f"""#!/bin/sh
for script; do :; done
count=$(cat {folder}/count 2>/dev/null || echo 0)
if {when}; then echo '{words}' >&2; exit 1; fi
echo $((count + 1)) > {folder}/count
cp "$script" {folder}/taken-$((count + 1))
echo "Submitted batch job $((count + 1))"
"""
        for name, text in (("sbatch", body), ("srun", "#!/bin/sh\n")):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        return folder

    return write


def act(small, plan):
    return Driver(small.store, small.file, CLUSTER).act(plan)


def died_on_cpu0(cell):
    deaths = (Death(cause=Cause.NODE_FAILURE, detail="said", node="cpu0"),)
    dead = StageState(status=Status.FAILED, cause=Cause.NODE_FAILURE, detail="said", deaths=deaths, recent=deaths)
    return CellState(cell=cell, train=dead, evaluate=replace(dead, status=Status.BLOCKED))


def kept(small):
    """(stage, job id, abandoned) of every submission, oldest first."""
    return [(m.stage, m.job_id, m.abandoned) for m in small.store.manifests()]


def test_a_plan_becomes_arrays_whose_evaluations_wait_for_their_trainings(small, refuse):
    folder = refuse()
    plan = plan_of(small, CLUSTER, ["cluster.pack=1"])
    train, evaluate = act(small, plan)
    assert kept(small) == [("train", "1", False), ("evaluate", "2", False)]
    assert (evaluate.after, train.after) == (train.token, None)
    assert "--dependency=aftercorr:1" in (folder / "taken-2").read_text()
    assert f"--job-name={train.job_name}" in (folder / "taken-1").read_text()
    assert {cell for pack in train.tasks for cell in pack} == {cell.cell_id for cell in small.cells}


def test_nodes_that_failed_are_left_out(small, refuse):
    folder = refuse()
    act(small, plan_of(small, CLUSTER, states=died_on_cpu0))
    assert all("--exclude=cpu0" in (folder / f"taken-{n}").read_text() for n in (1, 2))


def test_nodes_that_failed_are_used_where_there_are_no_others_and_nothing_is_submitted_twice(small, refuse):
    folder = refuse(NO_NODE, when='grep -q exclude= "$script"')
    submitted = act(small, plan_of(small, CLUSTER, states=died_on_cpu0))
    assert [(m.stage, m.job_id) for m in submitted] == [("train", "1"), ("evaluate", "2")]
    assert not any("exclude=" in (folder / f"taken-{n}").read_text() for n in (1, 2))
    # refused ones are given up, and each stage was taken once
    assert sorted(kept(small), key=str) == [
        ("evaluate", "2", False),
        ("evaluate", None, True),
        ("train", "1", False),
        ("train", None, True),
    ]


def test_an_evaluation_that_is_refused_for_good_leaves_its_training_alone(small, refuse):
    refuse(NO_NODE, when="[ $count = 1 ]")
    with pytest.raises(LimitReachedError, match="node configuration"):
        act(small, plan_of(small, CLUSTER))
    assert sorted(kept(small), key=str) == [("evaluate", None, True), ("train", "1", False)]


def test_a_limit_that_passes_leaves_the_rest_for_the_next_look(small, refuse, capsys):
    refuse(FULL, when="[ $count = 2 ]")
    plan = plan_of(small, CLUSTER.model_copy(update={"max_array_tasks": 1}), ["cluster.pack=1"])
    assert len(plan.arrays) == 4
    assert [m.job_id for m in act(small, plan)] == ["1", "2"]
    assert "waits for room" in capsys.readouterr().err
    assert [abandoned for *_, abandoned in kept(small)].count(True) == 1


def test_an_sbatch_without_an_answer_may_have_taken_the_job(small, refuse, capsys):
    refuse("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", when="true")
    assert act(small, plan_of(small, CLUSTER)) == []
    assert kept(small) == [("train", None, False)]  # not given up: the next look tells
    assert "the next look tells" in capsys.readouterr().err


def test_what_a_person_asked_for_beyond_the_room_in_the_queue_is_remembered(ledger, small, refuse):
    folder = refuse(FULL, when="[ $count = 2 ]")
    for tool in ("squeue", "sacct", "sinfo"):
        (folder / tool).write_text("#!/bin/sh\n")
        (folder / tool).chmod(0o755)
    ledger.submit_both()
    for cell in range(len(ledger.cells)):
        ledger.start(cell)
        ledger.die(Cause.CODE_ERROR, cell)
    file = load_study(small.path, ["cluster.pack=1"])
    driver = Driver(small.store, file, CLUSTER.model_copy(update={"max_array_tasks": 1}))
    driver.observer.asks_limits = False
    assert driver.tick().plan.arrays == []  # code errors wait for somebody
    driver.tick(retry=True)
    taken = sorted(folder.glob("taken-*"))
    assert len(taken) == 2  # a training and its evaluation
    refuse()
    driver.tick()  # as `watch` does: nobody asks again
    assert len(sorted(folder.glob("taken-*"))) == 2 * len(ledger.cells)
