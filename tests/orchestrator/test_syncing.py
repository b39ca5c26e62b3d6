"""`upshot sync` with the real wandb client in several processes, against a loopback server that is not always well."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator import lock
from orchestrator.session import open_submitted
from orchestrator.study_sync import StudySync
from orchestrator.sync_command import summary
from orchestrator.tracking import syncing
from orchestrator.tracking.client import NoKeyError
from orchestrator.tracking.journal import JOURNAL, read_journal
from orchestrator.tracking.stamps import Place, stamp_of, stamped
from orchestrator.tracking.syncing import Report, StudyRefusedError
from orchestrator.tracking.trouble import Trouble, trouble_in
from orchestrator.tracking.wandb_run import is_unchanged, note
from slurm import local
from tests.orchestrator import test_tracking as tracked
from tests.orchestrator.ran_study import TOKEN, RanStudy, damage
from tests.orchestrator.test_tracking import append, evaluate, sync, training
from tests.orchestrator.upshot_command import UPSHOT, upshot, upshot_json
from tests.private_slurm import wait_until
from tests.wandb_server import WandbServer

_bare_machine, server, short_folder = tracked._bare_machine, tracked.server, tracked.short_folder

BRIEF_S = 2.0
"""How patient a sync is with a server that a test has broken for good."""


def ran(folder: Path, number: int, **options: Any) -> RanStudy:
    study = RanStudy(folder, number, **options)
    for cell_id in study.ids:
        study.run(cell_id)
    return study


def synced(study: RanStudy, *, rebuild: bool = False, **options: Any) -> Report:
    return round_of(opened(study, **options), rebuild=rebuild)


def opened(study: RanStudy, **options: Any) -> StudySync:
    return StudySync(open_submitted(study.root, Path("runs")), **{"jobs": 1, **options})


def round_of(sync: StudySync, **options: Any) -> Report:
    return sync.round(lambda _done, _of: None, **options)


def noted(study: RanStudy, cell_id: str) -> dict[str, Any]:
    return dict(json.loads((study.folder(cell_id) / "mirror.json").read_text()))


def left_behind(study: RanStudy) -> list[Path]:
    """Drafts and locks of mirrors."""
    return [path for pattern in (".wandb-draft-*", "*mirror.lock*") for path in study.root.rglob(pattern)]


# --- only what changed -----------------------------------------------------------------------------------------------


def test_only_cells_that_changed_are_told_and_nothing_is_asked_of_the_others(
    tmp_path: Path, server: WandbServer
) -> None:
    study = RanStudy(tmp_path, 5)
    for cell_id in study.ids[:3]:
        study.run(cell_id)
    study.train(study.ids[3], 0, 50)
    report = synced(study)
    assert report.is_good
    assert set(report.told) == set(study.ids[:4])  # the last one never ran
    rows = sum(len(read_journal(study.folder(cell_id))) for cell_id in study.ids[:4])
    assert (sum(report.told.values()), report.unchanged) == (rows, 0)
    assert study.differing(server) == [study.ids[4]]
    assert noted(study, study.ids[0])["project"] == "upshot"

    server.operations.clear()
    report = synced(study)
    assert (report.told, report.unchanged, server.operations) == ({}, 4, [])

    study.train(study.ids[3], 50, 80)
    study.judge(study.ids[0], 50, 0.25)  # the first checkpoint is judged late
    report = synced(study)
    assert (report.told, report.unchanged) == ({study.ids[3]: 3, study.ids[0]: 1}, 2)
    assert [server.runs[cell_id].num_opened for cell_id in study.ids[:4]] == [2, 1, 1, 2]
    assert study.differing(server) == [study.ids[4]]


@pytest.mark.parametrize(
    "change",
    [
        lambda study, cell_id: append(study.folder(cell_id), training(100, 110)),
        lambda study, cell_id: study.judge(cell_id, 50),
        lambda study, cell_id: (study.folder(cell_id) / "evals" / "step_00000100" / "x.parquet").touch(),
        lambda study, cell_id: (study.store.checkpoints(cell_id) / "step_00000200" / "DONE").mkdir(parents=True),
        lambda study, cell_id: study.store.record_attempt(cell_id, event="end"),
        lambda study, cell_id: study.store.study_path.write_text(study.file.text + "\n"),
    ],
)
def test_a_stamp_tells_what_a_mirror_is_written_from(tmp_path: Path, change: Any) -> None:
    study = ran(tmp_path, 1)
    (cell_id,) = study.ids
    folder = study.folder(cell_id)
    before = stamp_of(folder, "done")
    assert (stamp_of(folder, "done"), stamp_of(folder, "failed") == before) == (before, False)
    (study.store.checkpoints(cell_id) / "step_00000300").mkdir()  # half written, as is what follows
    for name in ("wandb.ndjson", "mirror.json", "cell.json", "evals/step_00000100/.lock"):
        (folder / name).touch()
    assert stamp_of(folder, "done") == before
    change(study, cell_id)
    assert stamp_of(folder, "done") != before


def test_a_cell_that_was_mirrored_elsewhere_counts_as_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp, here = "0123", Place.of("upshot", None)
    note(tmp_path, ok=True, mode="online", error=None, rows=3, **stamped(here, stamp))
    assert is_unchanged(tmp_path, here, stamp)
    assert not is_unchanged(tmp_path, here, "4567")
    assert not is_unchanged(tmp_path, Place.of("other", None), stamp)
    assert not is_unchanged(tmp_path, Place.of("upshot", "team"), stamp)
    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert not is_unchanged(tmp_path, Place.of("upshot", None), stamp)
    monkeypatch.setenv("WANDB_BASE_URL", "http://elsewhere")
    assert not is_unchanged(tmp_path, Place.of("upshot", None), stamp)
    (tmp_path / "mirror.json").write_text("[torn")
    assert not is_unchanged(tmp_path, here, stamp)


def test_a_jobs_own_mirror_counts(tmp_path: Path, server: WandbServer) -> None:
    from orchestrator.node import mirror_cell

    study = ran(tmp_path, 1)
    assert mirror_cell(study.store, study.ids[0], "done", mode="online").ok
    assert synced(study).unchanged == 1
    assert mirror_cell(study.store, study.ids[0], "done", mode="offline").ok
    assert synced(study).told == {study.ids[0]: 0}


@pytest.mark.soak
def test_offline_cells_are_synced_and_wandbs_own_sync_doubles_nothing(tmp_path: Path, server: WandbServer) -> None:
    from orchestrator.node import mirror_cell

    study = ran(tmp_path, 2)
    for cell_id in study.ids:
        assert mirror_cell(study.store, cell_id, "done", mode="offline").ok
    assert len(synced(study).told) == 2
    (offline,) = (study.folder(study.ids[0]) / "wandb").iterdir()
    sync(offline)
    assert study.differing(server) == []


# --- a server that is not well ---------------------------------------------------------------------------------------


@pytest.mark.soak
def test_forty_cells_are_told_past_a_server_that_limits_fails_hangs_and_dies(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "TIMEOUT_S", 1.5)  # shorter than the illness, or the client would sit it out
    monkeypatch.setattr(syncing, "MOST_TRIES", 50)
    study = ran(tmp_path, 40)
    met: list[int] = []

    def wait_for(number: int) -> None:
        wait_until(lambda: len(server.runs) >= number, "runs so far")

    def be_ill() -> None:
        for number, fault in ((5, 429), (12, 500), (19, "hang")):
            wait_for(number)
            server.fail(fault)  # type: ignore[arg-type]  # literals in a tuple
            time.sleep(4)  # for so long it is ill
            met.append(server.num_met)
            server.recover()
        wait_for(26)
        server.go_away()
        time.sleep(4)  # the same
        server.come_back()
        met.append(1)

    illness = threading.Thread(target=be_ill)
    illness.start()
    report = synced(study, jobs=3)
    illness.join()
    assert len(met) == 4
    assert min(met) > 0
    assert (report.failed, report.later, report.stopped) == ({}, {}, None)
    assert set(report.told) == set(study.ids)
    assert study.differing(server) == []
    assert sum(run.num_rewritten for run in server.runs.values()) == 0
    assert {run.state for run in server.runs.values()} == {"finished"}
    assert left_behind(study) == []


def test_a_server_that_is_away_is_given_up_and_the_same_command_goes_on(tmp_path: Path, server: WandbServer) -> None:
    study = ran(tmp_path, 6)
    server.go_away()
    said = upshot("sync", study.root, "--patience", BRIEF_S, code=1)
    assert "0 cells mirrored (0 rows), 6 left" in said
    assert "is away" in said
    assert "connection refused" in said
    assert "the same command goes on" in said
    assert len(said.splitlines()) == 2
    server.come_back()
    assert "6 cells mirrored" in upshot("sync", study.root)
    assert study.differing(server) == []
    assert left_behind(study) == []


@pytest.mark.soak
def test_a_cell_that_is_refused_now_and_then_has_its_tries(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(syncing, "MOST_TRIES", 2)
    study = ran(tmp_path, 3)
    stubborn = study.ids[1]
    server.fail(500, f"/{stubborn}/file_stream")
    report = synced(study, patience_s=BRIEF_S, jobs=1)
    assert set(report.told) == {study.ids[0], study.ids[2]}
    assert set(report.later) == {stubborn}
    assert "2 tries" in report.later[stubborn]
    assert not report.is_good


# --- what is the same for every cell ---------------------------------------------------------------------------------


def test_without_a_key_it_stops_at_once(tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    study = ran(tmp_path, 3)
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(NoKeyError, match=r"no W&B key for .*wandb login"):
        synced(study)
    assert server.operations == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": "f" * 40}, ("refuses the key of WANDB_API_KEY", "wandb login")),
        pytest.param({"key": "tooshort"}, ("refuses the key of WANDB_API_KEY",), marks=pytest.mark.soak),
        ({"wandb": 'entity = "nobody"'}, ("nobody/upshot", "entity nobody not found", "wandb.entity")),
        pytest.param(
            {"wandb": 'project = "theirs"'},
            ("theirs at", "permission denied", "wandb.project"),
            marks=pytest.mark.soak,
        ),
    ],
)
def test_what_is_wrong_for_every_cell_is_said_once(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], said: tuple[str, ...]
) -> None:
    study = ran(tmp_path, 3, wandb=change.get("wandb", ""))
    server.closed.add("theirs")
    monkeypatch.setenv("WANDB_API_KEY", change.get("key", WandbServer.api_key))
    with pytest.raises(StudyRefusedError) as refusal:
        synced(study)
    for words in said:
        assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert server.runs == {}
    assert left_behind(study) == []


@pytest.mark.parametrize(
    ("words", "trouble"),
    [
        ("CommError: Timed out while retrying: 429 Too Many Requests", Trouble.PASSING),
        ("CommError: Timed out while retrying: 503 Service Unavailable", Trouble.PASSING),
        ("dial tcp 127.0.0.1:4401: connect: connection refused", Trouble.PASSING),
        ("something that nobody has seen", Trouble.PASSING),
        ('POST http://127.0.0.1:40351/icons-404/401/graphql giving up: HTTP 500: {"error": "no"}', Trouble.PASSING),
        ('POST http://127.0.0.1:400/graphql giving up: {"code":403}', Trouble.STUDY),
        ("CommError: returned error 401: not logged in", Trouble.STUDY),
        ("run abc was previously created and deleted; try a new run name", Trouble.CELL),
        ("returned error 400: invalid tag", Trouble.CELL),
    ],
)
def test_wandbs_words_say_what_kind_of_trouble_it_is(words: str, trouble: Trouble) -> None:
    assert trouble_in(words) == trouble


# --- what is the matter with one cell --------------------------------------------------------------------------------


def test_cells_that_cannot_be_told_are_named_and_the_others_are_told(tmp_path: Path, server: WandbServer) -> None:
    study = ran(tmp_path, 6)
    torn, foreign, deleted, broken, *fine = study.ids
    damage(study.judge(torn, 100))
    server.deleted.add(deleted)
    server.runs[foreign] = tracked_run(foreign, group="another-study")
    server.runs[broken] = tracked_run(broken, group="many", config={"seed": 99})
    answer = upshot_json("sync", study.root, "--patience", BRIEF_S, "--jobs", "2", code=1)
    assert answer["mirrored"] == 2
    failed = answer["failed"]
    assert set(failed) == {torn, foreign, deleted, broken}
    assert ".parquet" in failed[torn]
    assert "another-study" in failed[foreign]
    assert "restore the run" in failed[deleted]
    assert "seed is 99 there and 3 here" in failed[broken]
    assert server.runs[foreign].lines == server.runs[broken].lines == {}
    assert [study.is_told(cell_id, server.runs[cell_id]) for cell_id in fine] == [True, True]
    assert noted(study, torn)["ok"] is False


def tracked_run(run_id: str, **fields: Any) -> Any:
    from tests.wandb_server import Run

    return Run(run_id, WandbServer.entity, "upshot", job_type="cell", **fields)


def test_odd_values_and_names_arrive(tmp_path: Path, server: WandbServer) -> None:
    study = RanStudy(tmp_path, 2)
    odd, mended = study.ids
    for cell_id in study.ids:
        study.train(cell_id, 0, 100, checkpoints=(50, 100))
    records = [
        {"event": "train", "step": 101 + i, "examples_seen": 1616 + i, "time": 1e9 + 101 + i, "train_loss": loss}
        for i, loss in enumerate((math.nan, math.inf, -math.inf))
    ]
    append(study.folder(odd), records)
    study.end(odd, 100, "diverged")
    evaluate(study.folder(odd), 100, {0: [0.5]}, task='süß/x.y "*"')
    append(study.folder(mended), [], torn='{"event": "train", "ste')
    study.end(mended, 100)
    report = synced(study)
    assert report.is_good
    assert study.differing(server) == []
    (name,) = {key for line in server.runs[odd].history for key in line if "süß" in key}
    assert name == 'downstream/süß/x.y "*"/5shot/accuracy'
    losses = [loss for _, loss in server.runs[odd].curve("train/loss")[-3:]]
    assert math.isnan(losses[0])
    assert losses[1:] == [math.inf, -math.inf]
    assert server.runs[odd].summary["outcome"] == "diverged"


def test_a_corrupt_journal_is_named_and_rebuilt(tmp_path: Path, server: WandbServer) -> None:
    study = ran(tmp_path, 2)
    synced(study)
    corrupt = study.ids[0]
    path = study.folder(corrupt) / JOURNAL
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], "\x00\x00" + lines[3][5:], *lines[4:]]))
    assert synced(study).is_good  # W&B has all: nothing is told
    append(study.folder(corrupt), training(100, 120))
    said = upshot("sync", study.root, code=1)
    assert f"{corrupt}: " in said
    assert "--rebuild" in said
    assert "1 unchanged, 1 failed" in said
    assert set(synced(study, rebuild=True).told) == {corrupt}
    assert study.differing(server) == []


# --- what W&B lacks --------------------------------------------------------------------------------------------------


def test_what_wandb_lacks_is_told_anew_from_the_study_folder(tmp_path: Path, server: WandbServer) -> None:
    study = ran(tmp_path, 7)
    synced(study)
    gone, short, torn_front, other, whole, also_whole, deleted = study.ids
    del server.runs[gone]
    run = server.runs[short]
    run.lines = {i: run.lines[i] for i in range(9)}
    run.summary |= {"_told": told_of(study, short, 9), "_step": 8}
    front = server.runs[torn_front]
    front.lines = {i: front.lines[i + 4] for i in range(len(front.lines) - 4)}
    changed = server.runs[other]
    changed.lines[2] = changed.lines[2] | {"train/loss": -1.0}
    changed.summary["_told"] = f"{len(changed.lines)} {'0' * 16}"
    del server.runs[deleted]
    server.deleted.add(deleted)
    untouched = [server.runs[cell_id].num_opened for cell_id in (whole, also_whole)]
    assert synced(study).unchanged == 7  # it takes its own word for it

    server.asked.clear()
    report = synced(study, rebuild=True, patience_s=BRIEF_S)
    assert set(report.told) == {gone, short, torn_front, other}
    assert report.told[short] == len(read_journal(study.folder(short))) - 9
    assert set(report.failed) == {deleted}
    assert len(server.asked) == 1
    assert study.differing(server) == [deleted]
    assert [server.runs[cell_id].num_opened for cell_id in (whole, also_whole)] == untouched
    assert server.runs[other].summary["outcome"] == "done"
    assert server.runs[short].num_rewritten == 0
    report = synced(study, rebuild=True, patience_s=BRIEF_S)
    assert (report.told, report.unchanged) == ({}, 6)


def told_of(study: RanStudy, cell_id: str, number: int) -> str:
    from orchestrator.tracking.journal import digest

    return f"{number} {digest(read_journal(study.folder(cell_id))[:number])}"


@pytest.mark.soak
def test_a_project_that_was_deleted_is_made_anew(tmp_path: Path, server: WandbServer) -> None:
    study = ran(tmp_path, 3)
    synced(study)
    server.runs.clear()
    assert len(synced(study, rebuild=True).told) == 3
    assert study.differing(server) == []


@pytest.mark.soak
def test_a_longer_history_is_written_over_where_wandb_can(tmp_path: Path, server: WandbServer) -> None:
    study = ran(tmp_path, 1)
    (cell_id,) = study.ids
    synced(study)
    before = dict(server.runs[cell_id].lines)
    for name in (JOURNAL, "train.ndjson"):
        (study.folder(cell_id) / name).unlink()
    append(study.folder(cell_id), training(0, 50, salt=0.5))
    assert "--rebuild" in synced(study).failed[cell_id]
    server.rewinds = False  # a server of one's own
    report = synced(study, rebuild=True)
    assert "cannot rewind runs here" in report.failed[cell_id]
    assert "wandb.project" in report.failed[cell_id]
    assert server.runs[cell_id].lines == before
    server.rewinds = True
    assert synced(study, rebuild=True).told == {cell_id: 5}
    assert study.differing(server) == []


def test_a_run_of_another_study_is_never_written_over(tmp_path: Path, server: WandbServer) -> None:
    study = ran(tmp_path, 1)
    server.runs[study.ids[0]] = tracked_run(study.ids[0], group="theirs", lines={0: {"_step": 0, "loss": 1.0}})
    report = synced(study, rebuild=True)
    assert "theirs" in report.failed[study.ids[0]]
    assert server.runs[study.ids[0]].lines == {0: {"_step": 0, "loss": 1.0}}


# --- jobs, other syncs, interruptions --------------------------------------------------------------------------------


def test_cells_that_their_jobs_mirror_are_left_to_them(tmp_path: Path, server: WandbServer) -> None:
    study = ran(tmp_path, 2)
    with lock.holding(study.folder(study.ids[0]) / "mirror.lock"):
        report = synced(study)
    assert summary(report) == "1 cells mirrored (13 rows), 1 by their jobs"
    assert report.is_good
    assert list(server.runs) == [study.ids[1]]


@pytest.mark.soak
def test_two_syncs_at_once_tell_each_cell_once(tmp_path: Path, server: WandbServer) -> None:
    study = ran(tmp_path, 10)
    both = [started(study, "--json", "--jobs", "2") for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(answer["mirrored"] for answer in answers) == 10
    assert [run.num_opened for run in server.runs.values()] == [1] * 10
    assert study.differing(server) == []


def started(study: RanStudy, *words: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [UPSHOT, "sync", str(study.root), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        start_new_session=True,
    )


def descendants(process: "subprocess.Popen[str]", mark: str) -> dict[int, str]:
    """The name of each process that has a variable of that value, the command itself apart."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != process.pid:
            try:
                if f"UPSHOT_MARK={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has ended
                continue
    return found


@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.soak) for n in (signal.SIGKILL, signal.SIGTERM))]
)
def test_a_sync_that_is_interrupted_leaves_nothing_and_is_completed_by_the_next(
    tmp_path: Path, server: WandbServer, short_folder: str, number: signal.Signals
) -> None:
    study = ran(tmp_path, 16)
    mark = f"{tmp_path}{number}"
    process = started(study, "--jobs", "2", env={"UPSHOT_MARK": mark, "TMPDIR": short_folder})
    wait_until(lambda: len(server.runs) >= 3, "runs so far")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number != signal.SIGKILL else -number)
    assert ("interrupted" in errors) == (number != signal.SIGKILL)
    assert "Traceback" not in errors
    wait_until(lambda: not descendants(process, mark), "processes of the sync are gone", timeout_s=20)
    if number != signal.SIGKILL:
        assert left_behind(study) == []
    assert len(server.runs) < 16
    said = upshot("sync", study.root, "--jobs", "2")
    assert "failed" not in said
    assert study.differing(server) == []
    assert sum(run.num_rewritten for run in server.runs.values()) == 0
    assert left_behind(study) == []


@pytest.mark.soak
def test_a_process_that_dies_costs_its_cell_a_line(tmp_path: Path, server: WandbServer, short_folder: str) -> None:
    study = ran(tmp_path, 6)
    mark = f"{tmp_path}worker"
    server.fail("hang", "/file_stream", after=3)
    process = started(study, "--jobs", "2", "--json", env={"UPSHOT_MARK": mark, "TMPDIR": short_folder})

    def workers() -> list[int]:
        return [pid for pid, command in descendants(process, mark).items() if "spawn_main" in command]

    wait_until(lambda: len(workers()) == 2 and server.num_met > 3, "both tell a cell")
    os.kill(workers()[0], signal.SIGKILL)
    server.recover()
    out, errors = process.communicate(timeout=60)
    answer = json.loads(out)
    assert (process.returncode, answer["mirrored"], len(answer["failed"])) == (1, 5, 1)
    (reason,) = answer["failed"].values()
    assert "killed" in reason
    assert errors == ""
    assert "1 cells mirrored" in upshot("sync", study.root)
    assert study.differing(server) == []
    assert left_behind(study) == []


# --- cells that run --------------------------------------------------------------------------------------------------


@contextmanager
def running(study: RanStudy, cell_id: str) -> Iterator[None]:
    """A worker of this machine has the cell while the block runs."""
    home = study.store.job_folder(TOKEN)
    with local.alive(home, "worker"):
        (home / "claims").mkdir()
        (home / "claims" / str(study.ids.index(cell_id))).write_text("worker")
        yield


@pytest.mark.soak
def test_watch_follows_a_cell_until_it_has_ended(tmp_path: Path, server: WandbServer) -> None:
    study = RanStudy(tmp_path, 2)
    done, goes_on = study.ids
    study.run(done)
    study.train(goes_on, 0, 50, checkpoints=(50,))
    with running(study, goes_on):
        process = started(study, "--watch", "--every", "1", "--json")
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert (first["mirrored"], server.runs[goes_on].state) == (2, "preempted")
        assert server.runs[goes_on].summary["outcome"] == "running"
        study.train(goes_on, 50, 100, checkpoints=(100,))
        second = json.loads(process.stdout.readline())
        assert (second["mirrored"], second["unchanged"], second["rows"]) == (1, 1, 6)
        study.end(goes_on, 100)
    study.judge(goes_on, 50)
    study.judge(done, 50)
    out, errors = process.communicate(timeout=60)
    rounds = [json.loads(line) for line in out.splitlines()]
    assert rounds[-1]["failed"] == {}
    assert (process.returncode, errors) == (0, "")
    assert server.runs[goes_on].state == "finished"
    assert study.differing(server) == []


def test_watch_says_once_what_is_wrong_and_does_not_ask_again(tmp_path: Path, server: WandbServer) -> None:
    study = ran(tmp_path, 2)
    damage(study.judge(study.ids[0], 100))
    sync = opened(study)
    report = round_of(sync)
    assert (len(report.told), list(report.failed)) == (1, [study.ids[0]])
    server.operations.clear()
    again = round_of(sync)
    assert (again.failed, again.unchanged, server.operations) == (report.failed, 1, [])
    (study.folder(study.ids[0]) / "evals" / "step_00000100").rename(study.folder(study.ids[0]) / "aside")
    assert round_of(sync).told.keys() == {study.ids[0]}


# --- what is printed -------------------------------------------------------------------------------------------------


def test_what_it_prints_fits_a_terminal_and_says_it_all(tmp_path: Path, server: WandbServer) -> None:
    study = ran(tmp_path, 3)
    assert upshot("sync", study.root) == "3 cells mirrored (39 rows)\n"
    assert upshot_json("sync", study.root) == {
        "server": server.url,
        "entity": None,
        "project": "upshot",
        "mirrored": 0,
        "rows": 0,
        "unchanged": 3,
        "by_others": [],
        "failed": {},
        "left": [],
        "stopped": None,
        "study": None,
        "cells": [],
    }


def test_unchanged_cells_need_neither_wandb_nor_a_key(tmp_path: Path, server: WandbServer) -> None:
    study = ran(tmp_path, 1)
    upshot("sync", study.root)
    code = (
        "import sys\nfrom orchestrator.cli import main\nsys.argv = ['upshot', 'sync', sys.argv[1]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print([name for name in ('wandb', 'torch', 'multiprocessing.popen_spawn_posix') if name in sys.modules])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(study.root)],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(tracked.ROOT)},
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
