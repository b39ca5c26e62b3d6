"""What is done about one cell, and when the whole study stops by itself."""

from dataclasses import replace

import pytest

from orchestrator.plan import decide, why_halted
from orchestrator.state import CellState, StageState, Status
from orchestrator.study import Retry
from orchestrator.wanted import MissingFile
from slurm.failures import Cause, Death
from tests.orchestrator.ledger import TRAIN
from tests.orchestrator.plans import load, plan_of

BOTH = ("train", "evaluate")
LIMITED = {cause: n for cause, n in Retry().budgets.items() if n is not None}


def stage(status, **more):
    return StageState(status=Status(status), **more)


def died(*deaths, detail="said"):
    """A stage that failed, of causes or deaths, oldest first."""
    found = tuple(d if isinstance(d, Death) else Death(cause=d, detail=detail) for d in deaths)
    last = found[-1]
    return stage("failed", cause=last.cause, detail=last.detail, deaths=found, recent=found, num_attempts=len(found))


def cell(small, train, evaluate=None, **more):
    return CellState(cell=small.cells[0], train=train, evaluate=evaluate or stage("new"), **more)


def action(small, state, **more):
    return decide(small.file.study, state, **more)[0]


# --- budgets -------------------------------------------------------------------------------------------------------


def test_every_cause_has_a_budget():
    assert set(Retry().budgets) == set(Cause)


@pytest.mark.parametrize(("cause", "budget"), LIMITED.items(), ids=[cause.value for cause in LIMITED])
def test_a_cause_is_answered_as_often_as_its_budget_says_and_no_more(small, cause, budget):
    for times in range(1, budget + 1):
        got, reason, stages, _ = decide(small.file.study, cell(small, died(*[cause] * times)))
        assert (got, stages) == ("retry", BOTH)
        assert f"retry {times} of {budget}" in reason
    above = cell(small, died(*[cause] * (budget + 1)))
    assert action(small, above) == "skip"
    assert action(small, above, retry=True) == "retry"


@pytest.mark.parametrize("cause", [Cause.PREEMPTION, Cause.REQUEUE])
def test_what_is_nobodys_fault_is_free(small, cause):
    assert action(small, cell(small, died(*[cause] * 500))) == "retry"


def test_a_time_limit_costs_only_where_it_was_met_without_getting_on(small):
    lost, gained = (Death(cause=Cause.TIME_LIMIT, detail="", progressed=p) for p in (False, True))
    assert action(small, cell(small, died(*[gained] * 100))) == "retry"
    assert action(small, cell(small, died(*[gained] * 100, *[lost] * 3))) == "retry"
    assert action(small, cell(small, died(lost, gained, lost, lost, lost))) == "skip"


@pytest.mark.parametrize("text", ['code_error = "free"', "code_error = 2"])
def test_a_study_sets_its_own_budgets(small, text):
    study = load(small, more=f"[retry]\n{text}\n")[0]
    assert decide(study, cell(small, died(*[Cause.CODE_ERROR] * 2)))[0] == "retry"
    assert (decide(study, cell(small, died(*[Cause.CODE_ERROR] * 3)))[0] == "retry") == ("free" in text)


def test_budgets_begin_anew_once_a_person_asks(ledger):
    again, more = "c" * 12, "d" * 12

    def dies(token, times):
        for number in range(times):
            ledger.start(token=token, attempt=number + 1)
            ledger.die(Cause.KILLED, token=token, attempt=number + 1)
        return decide(ledger.study, ledger.state())[0]

    ledger.submit_both()
    assert dies(TRAIN, 2) == "skip"  # killed is retried once
    ledger.submit(again, [[ledger.cells[0].cell_id]])
    assert dies(again, 1) == "skip"
    ledger.ask_again()
    assert decide(ledger.study, ledger.state())[:2] == ("submit", "asked for again")
    ledger.submit(more, [[ledger.cells[0].cell_id]])
    assert dies(more, 1) == "retry"
    assert dies(more, 2) == "skip"


def test_the_evaluation_is_retried_without_the_training(small):
    missing = (MissingFile(2, "mnist", "ridge"), MissingFile(4, "mnist", "ridge"))
    state = cell(small, stage("done"), died(Cause.KILLED), steps=(2, 4), missing=missing)
    assert decide(small.file.study, state)[::2] == ("retry", ("evaluate",))
    assert decide(small.file.study, state)[3] == (2, 4)
    assert action(small, replace(state, evaluate=died(Cause.KILLED, Cause.KILLED))) == "skip"


def test_what_would_be_in_vain_is_left_to_a_person(small):
    state = cell(small, died(Cause.OUT_OF_MEMORY))
    vain = {"train": "oom with all that the partition has", "evaluate": None}
    got, reason, *_ = decide(small.file.study, state, vain=vain)
    assert got == "skip"
    assert "all that the partition has" in reason
    assert action(small, state, vain=vain, retry=True) == "retry"


# --- the halt ------------------------------------------------------------------------------------------------------

BUG = died(Cause.CODE_ERROR, detail="KeyError: 'x'")


def cells_of(small, *trains):
    return [CellState(cell=small.cells[i % 4], train=t, evaluate=stage("new")) for i, t in enumerate(trains)]


def test_a_study_whose_first_cells_all_die_of_the_same_error_stops(small):
    study = small.file.study
    live = [stage("running"), stage("pending"), stage("new")]
    assert why_halted(study, cells_of(small, *[BUG] * 4, *live)) is None
    why = why_halted(study, cells_of(small, *[BUG] * 5, *live))
    assert "KeyError: 'x'" in why
    assert "upshot retry" in why


@pytest.mark.parametrize(
    "other",
    [
        died(Cause.CODE_ERROR, detail="KeyError: 'y'"),
        died(Cause.KILLED, detail="KeyError: 'x'"),
        stage("done"),
        stage("diverged"),
    ],
)
def test_one_cell_that_ended_otherwise_is_enough_to_go_on(small, other):
    for position in (0, 3, 5):
        trains = [BUG] * 5
        trains.insert(position, other)
        assert why_halted(small.file.study, cells_of(small, *trains)) is None


def test_evaluations_that_all_die_of_the_same_error_stop_it_too(small):
    def ended(*evaluates):
        return [
            replace(state, evaluate=e)
            for state, e in zip(cells_of(small, *[stage("done")] * 6), evaluates, strict=False)
        ]

    assert "evaluation" in why_halted(small.file.study, ended(*[BUG] * 5))
    assert why_halted(small.file.study, ended(*[BUG] * 4, stage("blocked"))) is None
    assert why_halted(small.file.study, ended(*[BUG] * 5, stage("done"))) is None


def test_how_many_it_takes_is_the_studys_to_say(small):
    study = load(small, more="[retry]\nstop_after = 2\n")[0]
    assert why_halted(study, cells_of(small, BUG)) is None
    assert why_halted(study, cells_of(small, BUG, BUG))


def test_a_halted_plan_submits_nothing_until_somebody_asks(small):
    deaths = {c.cell_id: t for c, t in zip(small.cells, [BUG, BUG, stage("new"), stage("new")], strict=True)}

    def states(c):
        return CellState(cell=c, train=deaths[c.cell_id], evaluate=stage("new"))

    def plan(**options):
        return plan_of(small, more="[retry]\nstop_after = 2\n", states=states, **options)

    halted, asked = plan(), plan(retry=True)
    assert halted.halted
    assert halted.arrays == []
    assert halted.to_json()["halted"] == halted.halted
    assert asked.halted is None
    assert sum(len(pack) for array in asked.arrays for pack in array.tasks) == 4


# --- evaluations ---------------------------------------------------------------------------------------------------

MISSING = tuple(MissingFile(step, task, "ridge") for step in (1, 2, 3, 4) for task in ("mnist", "patches"))


def training(small, steps, **evaluate):
    """A cell that trains on and has left these checkpoints, none of them judged."""
    missing = tuple(file for file in MISSING if file.step in steps)
    return cell(
        small,
        stage("running"),
        stage(evaluate.pop("status", "pending"), covered=frozenset({None}), **evaluate),
        steps=steps,
        missing=missing,
    )


def test_checkpoints_are_judged_ahead_only_where_training_goes_on_for_long(small):
    study = load(small, ["train.checkpoints=4", "downstream.ahead_min=30"])[0]
    for hours, steps, ahead in ((1.0, (1,), (1,)), (1.0, (1, 2), (1, 2)), (1.0, (1, 2, 3), ()), (0.5, (1,), ())):
        got, _, stages, found = decide(study, training(small, steps), hours=hours)
        assert found == ahead
        assert (got, stages) == (("submit", ("evaluate",)) if ahead else ("wait", ()))


def test_the_last_checkpoint_alone_is_never_judged_ahead(small):
    study = load(small, ["train.checkpoints=4", "downstream.ahead_min=0", "downstream.checkpoints=last"])[0]
    assert decide(study, training(small, (1, 2)), hours=100)[0] == "wait"


def test_nothing_is_judged_ahead_once_an_evaluation_has_failed(small):
    study = load(small, ["train.checkpoints=4", "downstream.ahead_min=1"])[0]
    dead = (Death(cause=Cause.KILLED, detail=""),)
    assert decide(study, training(small, (1,)), hours=100)[0] == "submit"
    assert decide(study, training(small, (1,), deaths=dead), hours=100)[0] == "wait"


@pytest.mark.parametrize("word", ["pending", "unknown"])
def test_nothing_is_judged_ahead_of_a_training_that_does_not_run_for_certain(small, word):
    study = load(small, ["train.checkpoints=4", "downstream.ahead_min=1"])[0]
    assert decide(study, replace(training(small, (1,)), train=stage(word)), hours=100)[0] == "wait"


def test_checkpoints_that_live_evaluations_judge_are_left_out(small):
    study = load(small, ["train.checkpoints=4", "downstream.ahead_min=1"])[0]
    state = training(small, (1, 2, 3))
    covered = replace(state.evaluate, covered=frozenset({None, 2}))
    assert decide(study, replace(state, evaluate=covered), hours=100)[3] == (1, 3)
    everything = replace(state.evaluate, covered=frozenset({1, 2, 3}))
    assert decide(study, replace(state, evaluate=everything), hours=100)[0] == "wait"


def test_once_training_has_ended_the_whole_cells_evaluation_covers_every_checkpoint(small):
    state = replace(training(small, (1, 2, 3, 4)), train=stage("done"))
    assert decide(small.file.study, state)[0] == "wait"
    alone = replace(state, evaluate=replace(state.evaluate, covered=frozenset({2})))
    assert decide(small.file.study, alone)[::3] == ("submit", (1, 3, 4))
    unknown = replace(alone, evaluate=replace(alone.evaluate, status=Status.UNKNOWN))
    assert decide(small.file.study, unknown)[0] == "wait"


def test_what_is_being_judged_is_read_from_the_live_submissions(ledger):
    from orchestrator.submissions import Task

    cell_id, ahead = ledger.cells[0].cell_id, "d" * 12
    ledger.submit_both()
    ledger.start()
    ledger.finalise(1, 2, 3)
    ledger.submit(ahead, [[f"{cell_id}@1"], [f"{cell_id}@2"]], "evaluate")
    live = {(TRAIN, 0): Task("running"), ("b" * 12, 0): Task("pending")}
    live |= {(ahead, 0): Task("running"), (ahead, 1): Task("gone")}
    state = ledger.state(live)
    assert state.evaluate.covered == {None, 1}
    assert state.evaluate.status == Status.RUNNING
    assert state.status == Status.RUNNING
