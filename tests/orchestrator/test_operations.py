"""What a study took, by its report, against what the raw files of its folder come to."""

import json
import os
import re
import signal
import subprocess
import time

import polars as pl
import pytest

from orchestrator.files import read_records
from orchestrator.operations import operations_of
from orchestrator.report.anchors import anchor_of
from orchestrator.session import Session
from slurm import local
from slurm.failures import Cause
from tests.orchestrator.browser import CHROMIUM, FLAGS
from tests.orchestrator.conftest import SmallStudy
from tests.orchestrator.ledger import EVALUATE, TRAIN
from tests.orchestrator.plans import CLUSTER
from tests.orchestrator.test_report import Page
from tests.orchestrator.upshot_command import upshot

pytestmark = pytest.mark.xdist_group("operations")  # what its tests share is made once

PROFILE = """
scheduler = "local"
currency = "EUR"
[partitions.here]
cpus_per_node = 2
memory_gb_per_node = 4
teraflops = 0.05
price_per_hour = 0.25
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study that was run with the installed command, one worker of which was killed while it trained."""
    small = SmallStudy(tmp_path_factory.mktemp("ran"))
    small.path.with_name("here.toml").write_text(PROFILE)
    sets = ["cluster.profile=here.toml", "grid.epochs=20", "grid.fraction=[0.02]", "train.checkpoints=4"]
    upshot("submit", small.path, "--runs", small.runs, *(word for text in sets for word in ("--set", text)))
    home = next(m for m in small.store.manifests()).job_id
    folder = small.store.job_folder(home)
    victims = {}
    cell_of = {i: tasks[0] for i, tasks in enumerate(small.store.manifest(home).tasks)}
    deadline = time.monotonic() + 200
    while not victims:
        assert time.monotonic() < deadline, "no cell was seen on its way from one checkpoint to the next"
        victims = {i: w for i, w in local.claims(folder).items() if _is_beyond_a_checkpoint(small.store, cell_of[i])}
    index, worker = min(victims.items())
    os.kill(int((folder / "workers" / worker).read_text()), signal.SIGKILL)
    small.killed = cell_of[index]
    upshot("watch", small.store.root)
    upshot("report", small.store.root)
    small.page = Page(small.store.report_folder)
    return small


def _is_beyond_a_checkpoint(store, cell_id):
    """Whether the cell has taken steps after its first checkpoint, and is not about to leave the next."""
    steps = [record["step"] for record in read_records(store.train_log(cell_id)).records]
    (saved, *more) = store.finalised_steps(cell_id) or [None]
    return saved is not None and not more and saved + 5 < max(steps) < 1.6 * saved


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def raw_attempts(root):
    """(cell, stage, number) to seconds, share lost: from the files alone, by other means than the product's."""
    found = {}
    for folder in sorted(root.glob("cells/*/*")):
        events, log = lines(folder / "attempts.ndjson"), lines(folder / "train.ndjson")
        begun = [e["time"] for e in events if e["event"] == "start" and e["stage"] == "train"]
        for e in (e for e in events if e["event"] == "start"):
            same = [o for o in events if (o["stage"], o["attempt"], o["event"]) == (e["stage"], e["attempt"], "end")]
            seconds, lost = same[0]["seconds"] if same else None, 0.0
            if not same:
                following = min(t for t in begun if t > e["time"])
                mine = [r for r in log if e["time"] <= r["time"] < following]
                again = next(r["step"] for r in log if r["event"] == "start" and r["time"] >= following)
                steps = [r["step"] for r in mine]
                seconds = max(r["time"] for r in mine) - e["time"]
                lost = (max(steps) - again) / (max(steps) - min(steps))
            found[folder.name, e["stage"], e["attempt"]] = seconds, lost
    return found


def test_hours_and_what_was_lost_are_those_of_the_raw_files(ran):
    raw = raw_attempts(ran.store.root)
    assert len(raw) == 5  # two cells, trained and judged, and one trained in two attempts
    seconds, lost = raw[ran.killed, "train", 1]
    assert 0 < lost < 1
    attempts = pl.read_csv(ran.store.report_folder / "tables/attempts.csv")
    table = {(r["cell_id"], r["stage"], r["attempt"]): r for r in attempts.iter_rows(named=True)}
    assert table.keys() == raw.keys()
    for key, (took, share) in raw.items():
        assert table[key]["hours"] == pytest.approx(took / 3600, abs=1e-9)
        assert table[key]["lost_hours"] == pytest.approx(took / 3600 * share, abs=1e-9)
        assert table[key]["price"] == pytest.approx(0.25 * took / 3600, abs=1e-9)
    dead = table[ran.killed, "train", 1]
    assert (dead["outcome"], dead["cause"], dead["end_recorded"]) == ("died", "killed", False)
    assert dead["hours"] == pytest.approx(seconds / 3600)


def test_the_table_of_cells_adds_up(ran):
    raw = raw_attempts(ran.store.root)
    operations = pl.read_parquet(ran.store.report_folder / "tables/operations.parquet")
    assert operations.height == 4
    for row in operations.iter_rows(named=True):
        mine = [
            (s, lost) for (cell, stage, _), (s, lost) in raw.items() if (cell, stage) == (row["cell_id"], row["stage"])
        ]
        assert row["attempts"] == len(mine)
        assert row["hours"] == pytest.approx(sum(s for s, _ in mine) / 3600)
        assert row["lost_hours"] == pytest.approx(sum(s * lost for s, lost in mine) / 3600, abs=1e-9)
        trained = lines(ran.store.train_log(row["cell_id"]))
        last = [r for r in trained if r["event"] == "train"][-1]
        assert (row["images_per_second"], row["mfu"]) == (last["images_per_second"], last["mfu"])
        if row["stage"] == "train":  # the FLOPs of the run over the peak of one core, of which 0.3 is expected
            flops = [r["flops"] for r in trained if r["event"] == "checkpoint"][-1]
            assert row["planned_hours"] == pytest.approx(flops / (0.05e12 * 0.3 * 3600))


def test_the_page_says_it_in_words(ran):
    raw = raw_attempts(ran.store.root)
    seconds = sum(took for took, _ in raw.values())
    lost = sum(took * share for took, share in raw.values())
    judged = sum(took for (_, stage, _), (took, _) in raw.items() if stage == "evaluate")
    text = ran.page.text
    hours = re.search(r"([\d.]+) CPU-hours used in 5 attempts; planned: ([\d.]+) CPU-hours\.", text)
    assert float(hours[1]) == pytest.approx(seconds / 3600, abs=0.006, rel=0.06)
    said = re.search(r"1 attempt died \(1 killed\); lost: ([\d.]+) CPU-hours \(([\d.]+) %\)\.", text)
    assert float(said[2]) == pytest.approx(100 * lost / seconds, abs=0.5)
    assert float(re.search(r"Evaluation took ([\d.]+) % of the job time", text)[1]) == pytest.approx(
        100 * judged / seconds, abs=0.5
    )
    cost = 0.25 * seconds / 3600
    assert f"It cost {cost:,.2f} EUR, of which {0.25 * lost / 3600:,.2f} were lost." in text
    assert "1 attempt left no record of the end." in text


def test_a_cell_of_the_frontier_has_its_story_where_links_lead(ran):
    ids = [attributes.get("id") for _, attributes in ran.page.tags]
    assert anchor_of(ran.killed) == f"cell-{ran.killed}"
    sections = [name for name in ids if name and name.startswith("cell-")]
    assert sections
    assert set(sections) <= {anchor_of(cell.cell_id) for cell in ran.store.cells()}
    for name in sections:
        cell_id = name.removeprefix("cell-")
        below = f"cells/{cell_id[:2]}/{cell_id}"
        for path in (f"{below}/logs/train-1.log", f"{below}/tensorboard", f"{below}/checkpoints/step_"):
            assert path in ran.page.text
    paths = [text for text in ran.page.texts if re.fullmatch(r"cells/[0-9a-f]{2}/[\w/.-]+", text)]
    assert len(paths) >= 4 * len(sections)
    assert all((ran.store.root / path).exists() for path in paths)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_opens_the_cell_that_the_address_names_and_no_other(ran, tmp_path):
    name = next(a["id"] for _, a in ran.page.tags if (a.get("id") or "").startswith("cell-"))
    address = f"{(ran.page.folder / 'index.html').as_uri()}#{name}"
    command = [CHROMIUM, f"--user-data-dir={tmp_path}", *FLAGS.split(), address]
    drawn = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.findall(r'<details (?:class="[\w-]+" )?id="([^"]+)"[^>]* open=""', drawn) == [name]


# --- a cluster, written by hand ------------------------------------------------------------------------------------


@pytest.fixture
def on_gpus(small, ledger, scheduler):
    """Two cells, on two nodes of two GPUs each: one preempted and gone on with, one whose evaluation failed."""
    asked = {"partition": "gpu-h100", "accelerators": 2, "num_nodes": 2, "accelerator": "gpu:h100", "num_cpus": 16}
    cells = [[cell.cell_id] for cell in ledger.cells[:2]]
    ledger.submit(TRAIN, cells, submitted=1000.0, resources=asked)
    ledger.submit(EVALUATE, cells, "evaluate", after=TRAIN, submitted=1000.0, resources={**asked, "num_nodes": 1})
    return ledger


def look(ledger, small, scheduler):
    seen = Session(small.file, ledger.store, CLUSTER).observe()
    assert scheduler.num_asked["squeue"] == 1
    took = operations_of(ledger.store, CLUSTER, seen)
    assert not scheduler.num_asked
    return took


def log(ledger, cell, *records):
    path = ledger.store.train_log(ledger.cells[cell].cell_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for at, event, step in records:
            file.write(json.dumps({"time": at, "event": event, "step": step}) + "\n")


def end(ledger, outcome, first, last, *, cell=0, attempt=1, seconds=2.0, **more):
    """The end of a training, as a job records it."""
    common = {"event": "end", "stage": "train", "attempt": attempt, "token": TRAIN, "seconds": seconds}
    steps = {"outcome": outcome, "first_step": first, "step": last}
    ledger.store.record_attempt(ledger.cells[cell].cell_id, **common, **steps, **more)


def row(took, ledger, cell, attempt, stage="train"):
    [found] = took.attempts.filter(cell_id=ledger.cells[cell].cell_id, attempt=attempt, stage=stage).iter_rows(
        named=True
    )
    return found


def test_preempted_hours_are_lost_but_for_what_was_gone_on_from(on_gpus, small, scheduler):
    on_gpus.start(time=1600.0, node="n1", job="7_0")
    log(on_gpus, 0, (1601.0, "start", 0), (1700.0, "train", 40), (5200.0, "train", 100))
    on_gpus.die(Cause.PREEMPTION, node="n1")
    on_gpus.start(attempt=2, time=6000.0)
    log(on_gpus, 0, (6001.0, "start", 75), (7000.0, "train", 200))
    end(on_gpus, "done", 75, 200, attempt=2, seconds=1800.0)
    on_gpus.finalise(200)
    took = look(on_gpus, small, scheduler)
    dead, alive = (row(took, on_gpus, 0, number) for number in (1, 2))
    assert (dead["seconds"], dead["units"], dead["hours"]) == (3600.0, 4, 4.0)
    assert dead["lost_hours"] == 1.0  # steps 75 to 100 of 0 to 100
    assert (dead["price"], dead["lost_price"]) == (8.0, 2.0)
    assert (dead["kind"], dead["accelerator"], dead["node"], dead["job"]) == ("GPU", "gpu:h100", "n1", "7_0")
    assert (dead["outcome"], dead["cause"]) == ("died", "preemption")
    assert (alive["hours"], alive["lost_hours"], alive["outcome"]) == (2.0, 0.0, "done")
    assert (dead["waited_seconds"], alive["waited_seconds"]) == (600.0, None)


@pytest.mark.parametrize(("saved", "lost"), [((), 1.0), ((50,), 0.5), ((50, 100), 0.0)])
def test_after_the_last_attempt_checkpoints_tell_what_is_kept(on_gpus, small, scheduler, saved, lost):
    on_gpus.start(time=1000.0)
    log(on_gpus, 0, (1000.0, "start", 0), (4600.0, "train", 100))
    on_gpus.end("failed", seconds=3600.0, error={"type": "E", "message": "no", "traceback": ""})
    on_gpus.finalise(*saved)
    dead = row(look(on_gpus, small, scheduler), on_gpus, 0, 1)
    assert dead["lost_hours"] == lost * dead["hours"] == lost * 4.0
    assert dead["cause"] == "code-error"


def test_a_corrupt_checkpoint_loses_what_every_attempt_before_it_did(on_gpus, small, scheduler):
    for number, (start, first, last) in enumerate([(1000.0, 0, 50), (5000.0, 50, 100), (9000.0, 25, 200)], 1):
        on_gpus.start(attempt=number, time=start)
        log(on_gpus, 0, (start, "start", first), (start + 3600, "train", last))
        error = {} if number == 3 else {"error": {"type": "SIGUSR2", "message": "", "traceback": ""}}
        end(on_gpus, "interrupted" if error else "done", first, last, attempt=number, seconds=3600.0, **error)
    on_gpus.finalise(200)
    took = look(on_gpus, small, scheduler)
    assert [row(took, on_gpus, 0, number)["lost_hours"] for number in (1, 2, 3)] == [2.0, 4.0, 0.0]


def test_evaluations_that_died_are_lost_whole_and_their_wait_is_no_queue(on_gpus, small, scheduler):
    on_gpus.trained(200, cell=1)
    on_gpus.start(cell=1, token=EVALUATE, time=2000.0)
    error = {"type": "MemoryError", "message": "", "traceback": ""}
    on_gpus.end("failed", cell=1, token=EVALUATE, seconds=1800.0, error=error)
    dead = row(look(on_gpus, small, scheduler), on_gpus, 1, 1, "evaluate")
    assert (dead["hours"], dead["lost_hours"], dead["cause"], dead["waited_seconds"]) == (1.0, 1.0, "oom", None)


def test_what_never_began_counts_as_a_death_without_hours(on_gpus, small, scheduler):
    took = look(on_gpus, small, scheduler)
    never = row(took, on_gpus, 0, 0)
    assert (never["cause"], never["hours"], never["started"], never["log"]) == ("launch-failure", 0.0, None, None)


def test_a_running_attempt_has_used_what_its_log_tells_and_lost_nothing(on_gpus, small, scheduler):
    on_gpus.start(time=1000.0)
    log(on_gpus, 0, (1000.0, "start", 0), (2800.0, "train", 10))
    scheduler.in_queue("1_0", "RUNNING", TRAIN)
    now = row(look(on_gpus, small, scheduler), on_gpus, 0, 1)
    assert (now["outcome"], now["hours"], now["lost_hours"], now["cause"]) == ("open", 2.0, 0.0, None)


def test_the_first_of_a_pack_alone_has_waited(small, ledger, scheduler):
    ledger.submit(TRAIN, [[ledger.cells[0].cell_id, ledger.cells[1].cell_id]], submitted=100.0)
    for cell, start in ((0, 160.0), (1, 400.0)):
        ledger.start(cell=cell, time=start)
        end(ledger, "done", 0, 4, cell=cell)
        ledger.finalise(4, cell=cell)
    took = look(ledger, small, scheduler)
    assert [row(took, ledger, cell, 1)["waited_seconds"] for cell in (0, 1)] == [60.0, None]


def test_a_lost_submission_leaves_hours_unknown(on_gpus, small, scheduler):
    on_gpus.start(token=TRAIN, time=1000.0)
    end(on_gpus, "done", 0, 4)
    on_gpus.finalise(4)
    for event in on_gpus.store.attempts(on_gpus.cells[0].cell_id):
        on_gpus.store.record_attempt(on_gpus.cells[0].cell_id, **event | {"token": "c" * 12})
    took = look(on_gpus, small, scheduler)
    [lost] = took.attempts.filter(pl.col("hours").is_null()).iter_rows(named=True)
    assert (lost["outcome"], lost["seconds"]) == ("done", 2.0)
    assert (lost["kind"], lost["lost_hours"], lost["price"]) == (None, None, None)
