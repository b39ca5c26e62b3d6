"""Whatever a ledger holds: what may still be running is neither done nor failed."""

from types import SimpleNamespace

from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.attempts import read_attempts
from orchestrator.state import LIVE, CellFiles, Status, find_corpses, judge
from orchestrator.store import Manifest
from orchestrator.submissions import Task, index_submissions
from orchestrator.wanted import MissingFile
from slurm.failures import Cause

CELL = SimpleNamespace(cell_id="c" * 16)
TOKENS = ("a" * 12, "b" * 12, "c" * 12)
STEPS = (1, 2, 3)
NOT_ENDED = {"interrupted"}  # of the outcomes: the job may be requeued, and go on

tasks = st.sampled_from([Task(word) for word in ("pending", "running", "unknown", "gone")])
live = st.sampled_from([Task(word) for word in ("pending", "running", "unknown")])


def events(stage, outcomes, tokens=TOKENS):
    """Records of that stage, in any order, torn or not."""
    common = {
        "stage": st.just(stage),
        "attempt": st.integers(0, 3),
        "token": st.sampled_from(tokens),
        "time": st.floats(0, 1e9),
    }
    step = {} if stage == "train" else {"step_to_evaluate": st.none() | st.sampled_from(STEPS)}
    ends = {"event": st.just("end"), "outcome": st.sampled_from(sorted(outcomes)), "step": st.sampled_from(STEPS)}
    deaths = {"event": st.just("death"), "cause": st.sampled_from([cause.value for cause in Cause])}
    return st.lists(
        st.fixed_dictionaries({"event": st.just("start"), **common, **step})
        | st.fixed_dictionaries({**ends, **common, **step})
        | st.fixed_dictionaries({**deaths, **common, **step}),
        max_size=12,
    )


OUTCOMES = {"done", "diverged", "failed", "interrupted"}


def submissions(train_tokens, evaluate=None):
    """Of training, oldest first; and of an evaluation."""
    manifests = [
        Manifest(
            token=token,
            study="s",
            stage=stage,
            executor="slurm",
            tasks=[["stranger"], [unit]],
            resources={},
            submitted=time,
            job_id="7",
            after=after,
        )
        for time, (token, stage, unit, after) in enumerate(
            [(token, "train", CELL.cell_id, None) for token in train_tokens] + ([evaluate] if evaluate else [])
        )
    ]
    return index_submissions(manifests, {CELL.cell_id})


@given(
    events("train", NOT_ENDED),
    st.lists(st.sampled_from(TOKENS), min_size=1, max_size=3, unique=True),
    live,
    st.dictionaries(st.tuples(st.sampled_from(TOKENS), st.integers(0, 1)), tasks),
    st.sets(st.sampled_from(STEPS)),
)
def test_a_live_or_unknown_training_without_an_end_is_neither_done_nor_failed(records, tokens, newest, others, steps):
    files = CellFiles(attempts=read_attempts(records), steps=tuple(sorted(steps)))
    seen = {**others, (tokens[-1], 1): newest}
    state = judge(CELL, files, submissions(tokens), seen)
    assert state.train.status in LIVE
    assert state.status in LIVE


@given(
    events("train", OUTCOMES),
    st.lists(st.sampled_from(TOKENS), min_size=1, max_size=3, unique=True),
    st.dictionaries(st.tuples(st.sampled_from(TOKENS), st.integers(0, 1)), tasks),
    st.sets(st.sampled_from(STEPS)),
)
def test_a_training_is_done_only_if_one_recorded_so(records, tokens, seen, steps):
    files = CellFiles(attempts=read_attempts(records), steps=tuple(sorted(steps)))
    status = judge(CELL, files, submissions(tokens), seen).train.status
    recorded = {record["outcome"] for record in records if record["event"] == "end"}
    if status in (Status.DONE, Status.DIVERGED):
        assert status.value in recorded
    if status == Status.UNKNOWN:
        assert seen[tokens[-1], 1].state == "unknown"


@given(
    events("evaluate", OUTCOMES, tokens=("e" * 12,)),
    live,
    st.none() | st.sampled_from(STEPS),
    st.sets(st.sampled_from(STEPS), min_size=1),
)
def test_a_live_or_unknown_evaluation_is_neither_done_nor_failed_while_results_are_missing(
    records, task, step, missing
):
    trained = [
        {"event": name, "stage": "train", "attempt": 1, "token": TOKENS[0], "time": 0.0, "outcome": "done"}
        for name in ("start", "end")
    ]
    files = CellFiles(
        attempts=read_attempts([*trained, *records]),
        steps=STEPS,
        missing=tuple(MissingFile(s, "mnist", "ridge") for s in sorted(missing)),
    )
    unit = CELL.cell_id if step is None else f"{CELL.cell_id}@{step}"
    ends = {(a.outcome, a.step) for a in files.attempts if a.stage == "evaluate"}
    assume(not any(outcome in ("done", "failed", "diverged") and s == step for outcome, s in ends))
    found = submissions(TOKENS[:1], ("e" * 12, "evaluate", unit, None))
    state = judge(CELL, files, found, {("e" * 12, 1): task})
    assert state.evaluate.status in LIVE
    assert state.status not in (Status.DONE, Status.FAILED)


@given(
    events("train", OUTCOMES),
    st.lists(st.sampled_from(TOKENS), min_size=1, max_size=3, unique=True),
    st.dictionaries(st.tuples(st.sampled_from(TOKENS), st.integers(0, 1)), tasks),
)
def test_a_corpse_has_no_live_task_unless_its_job_went_on_or_it_failed_by_itself(records, tokens, seen):
    files = CellFiles(attempts=read_attempts(records))
    for corpse in find_corpses(CELL.cell_id, files, submissions(tokens), seen, set()):
        assert corpse.attempt.death is None
        assert corpse.attempt.ended_badly
        if corpse.task.is_live:
            assert corpse.started_again or corpse.attempt.outcome == "failed"
        if corpse.task.state in ("running", "unknown") and corpse.started_again:
            of_job = [attempt for attempt in files.attempts if attempt.token == corpse.attempt.token]
            assert of_job[-1] is not corpse.attempt
