import time
from dataclasses import replace

import pytest

from orchestrator.observe import Observation
from orchestrator.progress import counts_line, failures_by_cause, hours_line, lines_of, notes, seconds_left
from orchestrator.speeds import measure_speeds
from orchestrator.state import CellState, StageState, Status
from orchestrator.terminal import duration
from slurm.failures import Cause
from tests.orchestrator.plans import load, plan_of

HOUR = 3600.0


def stage(word, **more):
    return StageState(status=Status(word), **more)


def seen(small, *pairs, ended=(), hours=1.0, sets=(), **more):
    """An observation of cells whose (training, evaluation) stand so; a training takes `hours`, its evaluation a tenth.

    `ended` are the (stage, family, planned, measured seconds) that were measured.
    """
    study, found = load(small, sets)
    by_id = {
        cell.cell_id: CellState(cell=cell, train=train, evaluate=evaluate)
        for cell, (train, evaluate) in zip(found, pairs, strict=False)
    }
    plan = plan_of(
        small,
        sets=sets,
        states=lambda cell: (
            by_id.get(cell.cell_id) or CellState(cell=cell, train=stage("done"), evaluate=stage("done"))
        ),
        hours=hours,
        speeds=measure_speeds(ended),
    )
    kept = [planned for planned in plan.cells if planned.cell.cell_id in by_id]
    return Observation(study=study, states=list(by_id.values()), plan=replace(plan, cells=kept), **more)


def s(train, evaluate):
    return stage(train), stage(evaluate)


ENDED = [("train", "vit", 1.0, HOUR)]


def test_nothing_is_known_before_the_first_stage_has_ended(small):
    assert seconds_left(seen(small, s("running", "pending"))) is None


def test_what_is_left_takes_what_the_plan_expects(small):
    # One trains and is judged, one is judged; both are under way.
    observed = seen(small, s("running", "pending"), s("done", "running"), ended=ENDED)
    assert seconds_left(observed) == pytest.approx((1.1 + 0.1) * HOUR / 2)


def test_steps_that_a_shorter_cell_takes_are_no_time_of_the_longer_ones(small):
    lengths = ["grid.family=vit", "grid.fraction=0.01", "grid.epochs=[1,2,3]", 'grid.schedule="rsqrt"']
    under_way = (s("running", "pending"), s("pending", "pending"), s("pending", "pending"))
    to_submit = (s("new", "new"), s("new", "new"), s("new", "new"))
    for pairs in (under_way, to_submit):
        observed = seen(small, *pairs, ended=ENDED, sets=lengths)
        own = 3 - 0.8 / 2 - 1.6 / 3
        assert seconds_left(observed) == pytest.approx((own + 0.3) * HOUR)


def test_failed_and_blocked_stages_take_no_more_time(small):
    observed = seen(small, s("failed", "blocked"), s("running", "pending"), s("diverged", "done"), ended=ENDED)
    assert seconds_left(observed) == pytest.approx(1.1 * HOUR)


def test_a_finished_study_has_nothing_left(small):
    assert seconds_left(seen(small, s("done", "done"), ended=ENDED)) == 0


def test_nothing_runs_before_the_scheduler_expects_to_start_it(small):
    observed = seen(small, s("pending", "pending"), ended=ENDED, starts_at=time.time() + 100 * HOUR)
    assert seconds_left(observed) == pytest.approx(100 * HOUR, rel=1e-3)


def test_a_line_counts_every_cell_once(small):
    observed = seen(small, s("done", "done"), s("running", "pending"), s("unknown", "new"), s("diverged", "done"))
    assert counts_line(observed) == "1 done, 1 running, 1 pending, 0 failed, 1 diverged, – left"
    assert "0 diverged" not in counts_line(seen(small, s("done", "done")))


def test_an_eta_is_told_while_something_is_left(small):
    assert "about 66 min left" in counts_line(seen(small, s("running", "pending"), ended=ENDED))
    done = seen(small, s("done", "done"), ended=ENDED)
    assert done.settled
    assert "left" not in counts_line(done)


def test_failures_are_told_by_cause_the_most_frequent_first(small):
    killed = stage("failed", cause=Cause.KILLED, detail="nothing says why")
    memory = stage("failed", cause=Cause.OUT_OF_MEMORY, detail="Slurm says OUT_OF_MEMORY")
    observed = seen(small, (killed, stage("blocked")), (memory, stage("blocked")), (stage("done"), memory))
    by_cause = failures_by_cause(observed)
    assert [(why, len(states)) for why, states in by_cause] == [
        ("oom: Slurm says OUT_OF_MEMORY", 2),
        ("killed: nothing says why", 1),
    ]
    assert notes(observed)[0].startswith("2 failed: oom")
    assert by_cause[0][1][0].cell.cell_id in notes(observed)[0]


def test_hours_used_are_those_of_attempts_whose_end_is_on_record(small):
    observed = seen(small, (stage("done", seconds=HOUR), stage("failed", seconds=0.5 * HOUR)))
    assert hours_line(observed) == "1.50 GPU-hours used, 1.10 expected for the whole study"


def test_what_waits_and_why_is_noted(small):
    observed = seen(small, s("new", "new"), num_waiting=3, starts_at=time.time() + 2 * HOUR)
    said = "\n".join(notes(observed))
    assert "3 cells wait for room in the queue" in said
    assert "expects the last job to start in 2.0 h" in said
    halted = replace(observed, plan=replace(observed.plan, halted="the first 5 cells"))
    assert "the first 5 cells" in notes(halted)


def test_lines_come_when_something_changed_but_not_too_often(small, capsys):
    now = [100.0]
    show = lines_of(lambda: now[0])
    one, two = seen(small, s("running", "pending")), seen(small, s("done", "running"), s("running", "pending"))
    for observed, at in ((one, 100), (two, 101), (one, 120), (two, 140), (two, 160)):
        now[0] = at
        show(observed)
    assert capsys.readouterr().out.splitlines() == [counts_line(one), counts_line(two)]


def test_the_end_is_told_at_once_with_what_failed(small, capsys):
    now = [0.0]
    show = lines_of(lambda: now[0])
    show(seen(small, s("running", "pending")))
    now[0] = 1.0
    show(seen(small, (stage("failed", cause=Cause.KILLED, detail="said"), stage("blocked"))))
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "0 done, 0 running, 0 pending, 1 failed"
    assert said[2].startswith("1 failed: killed: said")


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (200, "3 min"), (18720, "5.2 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text
