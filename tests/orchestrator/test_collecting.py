"""`upshot collect --from wandb:...`, with the real wandb client against a loopback server."""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from models.errors import DataError, UserError
from orchestrator import drive
from orchestrator.cli import app
from orchestrator.collecting import Collected, collect_runs, read_columns
from orchestrator.collecting.columns import PLAIN
from orchestrator.node import mirror_cell
from orchestrator.reduce import reduce_study
from orchestrator.results import SCHEMA
from orchestrator.session import open_session
from orchestrator.tracking import reading
from orchestrator.tracking.kept_runs import LoggedRun, Scalar
from orchestrator.tracking.reading import ReadRuns, read_runs, scalars
from tests.orchestrator.own_server import own_server
from tests.orchestrator.upshot_command import upshot
from tests.wandb_artifacts import LoggedFiles
from tests.wandb_server import Run, WandbServer

UNTOLD = {"draw", "regularisation", "method", "downstream_duplicates"}
"""Columns that a mirrored run has nothing of: they are of single draws, or a sentence."""
MEANS = ("downstream_accuracy", "downstream_class_accuracy")
STUDY = """
name = "small"
[upstream]
dataset = "icons"
[grid]
family = "vit"
size = "pico"
patch_size = 8
fraction = [0.01, 0.02]
batch_size = 64
[downstream]
tasks = ["mnist"]
protocol = ["ridge", "scenic"]
shots = [1, 5]
draws = 2
[wandb]
mode = "disabled"
"""


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server and a machine that knows no other."""
    monkeypatch.chdir(tmp_path)
    with own_server(tmp_path, monkeypatch) as started:
        yield started


def log(server: WandbServer, run_id: str, **fields: Any) -> Run:
    """A run that somebody logged."""
    run = Run(run_id, server.entity, "others", **{"state": "finished", **fields})
    server.runs[run_id] = run
    server.beat(run)
    return run


def log_others(server: WandbServer, number: int = 3) -> None:
    """Runs of another training script: per cents, nested values, names of its own."""
    for i in range(number):
        summary = {"val": {"acc1": 50 + i}, "pets_5shot": 60.5 + i, "cars_5shot": 40 + i, "table": {"_type": "table"}}
        config = {"model": {"depth": "S"}, "lr": 0.1 * (i + 1), "seed": i, "betas": [0.9, 0.99]}
        log(server, f"run{i}", group="sweep", config=config, summary=summary)


def read(server: WandbServer, **options: Any) -> ReadRuns:
    return read_runs(server.entity, "others", **{"timeout_s": 20.0, "num_retries": 1, **options})


def held(server: WandbServer) -> ReadRuns:
    """The runs as `read` would give them, without asking for them."""

    def values(given: dict[str, Any]) -> dict[str, Scalar]:
        return scalars(json.loads(json.dumps(given)))

    runs = [
        LoggedRun(
            run_id=run.run_id,
            name=run.name or "",
            group=run.group,
            job_type=run.job_type,
            state=run.state,
            config=values(run.config),
            summary=values(run.summary),
        )
        for run in server.runs.values()
    ]
    return ReadRuns(runs=runs, tables={}, num_read=len(runs), folder=Path())


def test_a_run_is_held_as_it_is_read(server: WandbServer) -> None:
    log_others(server)
    assert read(server).runs == held(server).runs


def collect(server: WandbServer, *columns: str, percent: bool = True) -> Collected:
    return collect_runs(held(server), read_columns(columns), percent=percent)


UPSTREAM = "upstream_accuracy=val.acc1"
TASKS = "downstream_accuracy:{task}:{shots}={task}_{shots}shot"


# --- Upshot's own runs -----------------------------------------------------------------------------------------------


def test_real_cells_come_back_as_the_local_table_says(server: WandbServer, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    session = open_session(path, tmp_path / "runs", [])
    session.submit()
    drive.watch(session.store, session.file, session.profile, show=lambda _: None, tick_s=0.2)
    local = session.collect().collect()
    for cell_id in local["cell_id"].unique():
        assert mirror_cell(session.store, cell_id, "done", mode="online").ok
    shutil.rmtree(tmp_path / "runs")

    printed = upshot("collect", "--from", f"wandb:{server.entity}/upshot", "--group", "small", "-o", "back.parquet")

    assert "2 runs; 2 were read" in printed
    assert "8 rows of 2 cells in back.parquet" in printed
    assert "without" not in printed
    back = pl.read_parquet("back.parquet")
    assert dict(back.schema) == SCHEMA
    keys = ["cell_id", "step", "task", "protocol", "shots"]
    last = local.filter("last_checkpoint", "last_layer").sort("draw")
    others = [name for name in SCHEMA if name not in {*keys, *MEANS, *UNTOLD}]
    expected = last.group_by(keys).agg(pl.col(MEANS).mean(), pl.col(others).first())
    told = [name for name in SCHEMA if name not in UNTOLD]
    assert back.select(told).sort(keys).equals(expected.select(told).sort(keys))
    assert all(back[name].null_count() == back.height for name in UNTOLD)
    counts = ["upstream_num_test", "upstream_num_classes", "num_layers", "layer", "downstream_num_test"]
    assert back.select(counts).null_count().row(0) == (0,) * len(counts)
    names = ("task", "shots", "conflicts", "significant_conflicts", "significant_against")
    local_conflicts, conflicts = (
        [[task[name] for name in names] for task in reduce_study(table, protocol="ridge", draws=20)["tasks"]]
        for table in (local, back)
    )
    assert conflicts == local_conflicts
    assert {task[-1] for task in conflicts} == {"binomial"}  # as the numbers of test images are known

    # The study also logged its table: then it is the local one, to the last draw, and no run is lost.
    buffer = io.BytesIO()
    local.write_parquet(buffer)
    server.runs["sum"] = Run("sum", server.entity, "upshot", group="small", job_type="summary", state="finished")
    for data in (b"an older version", buffer.getvalue()):
        files = {"results.parquet": data}
        server.logged.append(LoggedFiles(server.entity, "upshot", "sum", "results", "results", files))
    printed = upshot("collect", "--from", f"wandb:{server.entity}/upshot", "-o", "whole.parquet")
    assert "study small: the results table that it logged" in printed
    assert pl.read_parquet("whole.parquet").equals(local)


def own(server: WandbServer, run_id: str, **summary: Any) -> Run:
    config = {"cell_id": run_id, "family": "vit", "size": "S", "fraction": 1, "seed": 0, "params": 28_000}
    return log(server, run_id, group="study", config=config, summary={"outcome": "done", **summary})


def test_a_metric_that_is_no_number_is_null_and_says_why(server: WandbServer) -> None:
    name = "downstream/mnist/5shot"
    own(server, "a", **{"upstream/accuracy": 0.5, f"{name}/accuracy": 0.25, f"{name}/best_layer": 3, "step": 10})
    own(server, "b", **{"upstream/accuracy": "NaN", f"{name}/accuracy": "-Infinity"})
    own(server, "c", **{"upstream/accuracy": 0.5, f"{name}/reason": "too few images of class 7"})
    own(server, "d", outcome="running", **{"upstream/accuracy": 0.5, "examples_seen": 99})
    own(server, "e", outcome="diverged", **{"upstream/accuracy": 0.5, f"{name}/accuracy": 0.5})
    log(server, "f", summary={"loss": 1})
    found = collect_runs(read(server), {})
    columns = ["cell_id", "upstream_accuracy", "downstream_accuracy", "last_checkpoint", "reason", "examples_seen"]
    assert found.results.select(columns).rows() == [
        ("a", 0.5, 0.25, True, None, None),
        ("b", None, None, True, "upstream/accuracy is NaN; downstream/mnist/5shot/accuracy is -Infinity", None),
        ("c", 0.5, None, True, "too few images of class 7", None),
        ("d", 0.5, None, False, "W&B has no downstream/mnist/5shot/accuracy (running)", None),
        ("e", None, None, True, "training diverged", None),
    ]
    assert sum(found.reasons.values()) == 4
    assert found.unfinished == {"running": 1}
    assert found.left_out == {"no cell of Upshot's": 1}


def test_cells_that_the_logged_table_lacks_come_from_their_runs(server: WandbServer) -> None:
    for run_id in ("a", "b"):
        own(server, run_id, **{"upstream/accuracy": 0.5, "downstream/mnist/5shot/accuracy": 0.25})
    whole = collect_runs(read(server), {}).results
    buffer = io.BytesIO()
    whole.filter(cell_id="a").with_columns(downstream_accuracy=pl.lit(0.75), draw=0).write_parquet(buffer)
    log(server, "sum", group="study", job_type="summary")
    files = {"results.parquet": buffer.getvalue()}
    server.logged.append(LoggedFiles(server.entity, "others", "sum", "results", "results", files))
    for _ in range(2):  # the second time the table is kept
        found = collect_runs(read(server), {})
        assert found.results.select("cell_id", "downstream_accuracy").rows() == [("a", 0.75), ("b", 0.25)]
        assert found.studies == ["study"]
    assert server.num_downloads == 1

    # The cell has gone on since: another task was judged.
    server.runs["a"].summary["downstream/patches/5shot/accuracy"] = 0.125
    server.beat(server.runs["a"])
    found = collect_runs(read(server), {}).results
    columns = ("cell_id", "task", "downstream_accuracy")
    measured = found.filter(pl.col("downstream_accuracy").is_not_null()).select(columns).rows()
    assert measured == [("a", "mnist", 0.25), ("a", "patches", 0.125), ("b", "mnist", 0.25)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (500, "the server answers 500"),
        ("hang", r"no answer, or half of one \(ConnectionError\)"),
        ("half", "4,000 of 8,000 bytes came"),
        ("trickle", "slower than 100 kB a second"),
    ],
)
def test_a_table_that_does_not_come_is_given_up(
    server: WandbServer, fault: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the client's own download would after twenty minutes, or never."""
    monkeypatch.setattr(reading, "CHUNK", 16)
    log(server, "sum", group="study", job_type="summary")
    server.logged.append(LoggedFiles(server.entity, "others", "sum", "results", "results", {"t.parquet": bytes(8000)}))
    server.fail(fault, "/artifact/")
    with pytest.raises(UserError, match=f"results:v0 cannot be fetched: .*{message}.*; the same command") as caught:
        read(server, timeout_s=2.0)
    assert "http" not in str(caught.value)  # the address is signed
    server.recover()
    assert read(server).tables["study"].read_bytes() == bytes(8000)
    assert [path.name for path in read(server).folder.iterdir() if path.is_dir()] == []


def test_runs_without_a_cell_ask_for_columns(server: WandbServer) -> None:
    log_others(server)
    with pytest.raises(UserError, match=r"none of the 3 runs is a cell of Upshot's.*--column"):
        collect_runs(read(server), {})


# --- runs that others logged -----------------------------------------------------------------------------------------


def test_a_mapping_makes_a_row_for_each_run_and_task(server: WandbServer) -> None:
    log_others(server)
    log(server, "late", state="crashed", summary={"val": {"acc1": 10}, "pets_5shot": "n/a"}, config={"lr": "auto"})
    found = collect(
        server,
        UPSTREAM,
        TASKS,
        "learning_rate=lr",
        "size=config:model.depth",
        "upstream_num_test=value:50000",
        "downstream_num_test:pets=value:3669",
    )
    assert dict(found.results.schema) == SCHEMA
    columns = ["cell_id", "task", "shots", "upstream_accuracy", "downstream_accuracy", "downstream_num_test"]
    assert found.results.filter(cell_id="run1").select(columns).rows() == [
        ("run1", "cars", 5, 0.51, 0.41, None),
        ("run1", "pets", 5, 0.51, 0.615, 3669),
    ]
    assert found.results["upstream_num_test"].unique().to_list() == [50000]
    assert found.results.filter(cell_id="run2")["learning_rate"][0] == pytest.approx(0.3)
    late = found.results.filter(cell_id="late").select("downstream_accuracy", "last_checkpoint", "reason").rows()
    assert late == [
        (None, False, "W&B has no cars_5shot (the run is crashed)"),
        (None, False, "pets_5shot is no number ('n/a')"),
    ]
    assert found.unfinished == {"crashed": 1}
    assert found.empty == {"learning_rate": 2, "size": 2}


def test_columns_may_stand_in_a_file_and_the_command_line_goes_before(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_others(server)
    file = tmp_path / "columns.toml"
    file.write_text('upstream_accuracy = "no_such"\n"downstream_accuracy:{task}:5" = "{task}_5shot"\nseed = "seed"\n')
    words = ["--columns", str(file), "--column", UPSTREAM, "--percent", "-o", "others.parquet"]
    app(["collect", "--from", f"wandb:{server.entity}/others", *words], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "6 rows of 3 cells in others.parquet\ntasks: cars, pets\n" in printed
    assert pl.read_parquet("others.parquet")["seed"].to_list() == [0, 0, 1, 1, 2, 2]
    for text, message in (("a = 1", "1 given"), ("a = ", "cannot be read")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_columns([], file)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["upstream_acuracy=val.acc1", TASKS], "unknown column 'upstream_acuracy'.*Did you mean 'upstream_accuracy'"),
        (["upstream_accuracy=val.acc", TASKS], "no run has 'val.acc' in its config or summary. The nearest: val.acc1"),
        (["upstream_accuracy=config:val.acc1", TASKS], "no run has 'val.acc1' in its config"),
        ([UPSTREAM, "downstream_accuracy:{task}=few/{task}"], "no run has a key like 'few/{task}'"),
        ([UPSTREAM, "downstream_accuracy:{task}=pets_5shot"], "stands on both sides"),
        ([UPSTREAM, "downstream_accuracy:pets:5={task}_5shot"], "stands once on both sides"),
        ([UPSTREAM, "downstream_accuracy:pets:few=pets_5shot"], "'few' shots given"),
        ([UPSTREAM, "downstream_accuracy=pets_5shot"], "write it as downstream_accuracy:TASK"),
        ([UPSTREAM, TASKS, "downstream_accuracy:pets:5=cars_5shot"], "are both downstream_accuracy of task 'pets'"),
        ([UPSTREAM, TASKS, "last_checkpoint=seed"], "unknown column 'last_checkpoint' .it follows"),
        ([UPSTREAM, TASKS, "downstream_num_test:petz=value:9"], "there is no downstream_accuracy of it"),
        ([UPSTREAM, "downstream_accuracy:{task}:{shots}={task}{shots}shot"], "cannot be told"),
        ([UPSTREAM], "need an upstream_accuracy and a downstream_accuracy:TASK"),
        ([UPSTREAM, TASKS, "cell_id=model.depth"], "runs 'run0' and 'run1' are both cell 'S'"),
        (["upstream_accuracy"], "write it as OURS=THEIRS"),
        ([UPSTREAM, UPSTREAM], "is given twice"),
    ],
)
def test_a_mapping_that_makes_no_sense_says_why(server: WandbServer, columns: list[str], message: str) -> None:
    log_others(server)
    with pytest.raises(UserError, match=message):
        collect(server, *columns)


def test_per_cents_that_were_not_announced_are_refused(server: WandbServer) -> None:
    log_others(server)
    with pytest.raises(DataError, match=r"of run 'run0' is 50.0, outside \[0, 1\].*--percent"):
        collect(server, UPSTREAM, TASKS, percent=False)


def test_fractions_that_were_announced_as_per_cents_are_refused(server: WandbServer) -> None:
    log(server, "a", summary={"acc": 76.5, "pets": 0.6})
    log(server, "b", summary={"acc": 80.5, "pets": 0.9})
    with pytest.raises(DataError, match=r"downstream_accuracy is at most 0.9 in all runs .pets.,.*fraction"):
        collect(server, "upstream_accuracy=acc", "downstream_accuracy:pets=pets")


def test_a_run_without_the_value_takes_none_of_another_kind(server: WandbServer) -> None:
    log(server, "a", config={"acc": 1.0}, summary={"pets": 0.5})
    log(server, "b", config={"acc": 1.0}, summary={"pets": 0.5, "acc": 0.25})
    found = collect(server, "upstream_accuracy=acc", "downstream_accuracy:pets=pets", percent=False)
    assert found.results["upstream_accuracy"].to_list() == [None, 0.25]
    assert found.reasons == {"W&B has no acc (the run is finished)": 1}


def test_what_is_something_else_already_is_no_task(server: WandbServer) -> None:
    evaluations = {"imagenet": 0.75, "pets_5": 0.5, "pets_0": 0.25}
    log(server, "a", summary={"eval": evaluations, "num": {"imagenet": 9, "pets": 7}})
    found = collect(
        server,
        "upstream_accuracy=eval.imagenet",
        "downstream_accuracy:{task}=eval.{task}",
        "downstream_accuracy:{task}:{shots}=eval.{task}_{shots}",
        "downstream_num_test:{task}=num.{task}",
        "downstream_num_test:pets:5=value:8",
        percent=False,
    )
    columns = ["task", "shots", "downstream_accuracy", "downstream_num_test"]
    rows = [("pets", 5, 0.5, 8), ("pets_0", None, 0.25, None), ("pets_5", None, 0.5, None)]
    assert found.results.select(columns).rows() == rows


def test_numbers_are_the_same_text_and_none_is_too_large(server: WandbServer) -> None:
    for run_id, depth, seed in (("a", 12, 2**64 - 1), ("b", 12.0, 7)):
        log(server, run_id, config={"depth": depth, "seed": seed}, summary={"acc": 0.5, "pets": 0.5})
    texts = ["upstream_accuracy=acc", "downstream_accuracy:pets=pets", "size=depth", "seed=seed"]
    found = collect(server, *texts, percent=False)
    assert found.results.select("size", "seed").rows() == [("12", None), ("12", 7)]
    assert found.empty == {"seed": 1}


def test_every_column_can_be_mapped(server: WandbServer) -> None:
    log_others(server, number=1)
    columns = dict.fromkeys(PLAIN, "value:1") | {"cell_id": "value:x", "flip": "value:true"}
    texts = [*(f"{ours}={theirs}" for ours, theirs in columns.items()), TASKS]
    found = collect(server, *texts)
    assert found.results.select(PLAIN).null_count().row(0) == (0,) * len(PLAIN)


# --- paging, keeping, refusals ---------------------------------------------------------------------------------------


@pytest.fixture
def _short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LISTED", 4)
    monkeypatch.setattr(reading, "READ", 3)


@pytest.mark.usefixtures("_short_pages")
def test_runs_are_paged_filtered_on_the_server_and_read_once(server: WandbServer) -> None:
    log_others(server, number=10)
    log(server, "elsewhere", group="another")
    first = read(server, group="sweep")
    assert [run.run_id for run in first.runs] == [f"run{i}" for i in range(10)]
    assert first.num_read == 10
    listed = [asked for asked in server.asked if "config" not in asked["fields"]]
    assert [asked["cursor"] for asked in listed] == [None, "4", "8"]
    assert {asked["filters"] for asked in listed} == {'{"group": "sweep"}'}
    assert len(server.asked) == 3 + 4

    server.asked.clear()
    server.runs["run7"].summary["pets_5shot"] = 1
    server.beat(server.runs["run7"])
    second = read(server)
    assert second.num_read == 2  # what went on, and what the group left out
    assert second.runs[7].summary["pets_5shot"] == 1
    assert second.runs[:7] == first.runs[:7]
    assert not list(Path(os.environ["XDG_CACHE_HOME"]).glob("others"))


@pytest.mark.usefixtures("_short_pages")
@pytest.mark.parametrize(("fault", "message"), [(429, "limits the rate"), (500, "does not answer"), ("hang", "answer")])
def test_what_was_read_before_a_failure_is_not_read_again(server: WandbServer, fault: Any, message: str) -> None:
    log_others(server, number=10)
    whole = 2 + 3 + 2  # signing in, three pages of names, two of the four of whole runs
    server.fail(fault, "/graphql", after=whole)
    with pytest.raises(UserError, match=rf"{message}.*is kept \(6 runs\)"):
        read(server, timeout_s=5.0)
    server.recover()
    assert read(server).num_read == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("POST http://127.0.0.1:40351/a-429/graphql giving up: HTTP 500: {}", "does not answer"),
        ("HTTP 403 Forbidden", "refuses the key"),
        ("HTTP 401: user is not logged in", "refuses the key"),
        ("no API key", "refuses the key"),
        ("429 Too Many Requests", "limits the rate"),
    ],
)
def test_a_refusal_is_told_by_what_is_said_and_not_by_addresses(words: str, message: str) -> None:
    assert message in reading.refusal(ValueError(words))


def test_a_busy_server_is_asked_again(server: WandbServer) -> None:
    log_others(server)
    server.fail(500, "/graphql", until=1)
    assert read(server).num_read == 3


def test_a_torn_cache_is_read_anew(server: WandbServer) -> None:
    log_others(server)
    path = read(server).folder / "runs.ndjson"
    path.write_text(path.read_text()[:-40])
    assert read(server).num_read == 1
    for _ in range(4):
        for run in server.runs.values():
            server.beat(run)
        read(server)
    assert len(path.read_text().splitlines()) <= 6
    assert read(server).num_read == 0


def test_no_key_no_project_no_runs_and_a_refused_key(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    log_others(server)
    with pytest.raises(UserError, match="there is no project tester/nope"):
        read_runs(server.entity, "nope", timeout_s=5)
    with pytest.raises(UserError, match="tester/others has no runs of group 'nope'"):
        read(server, group="nope")
    for key in ("x" * 40, "malformed"):
        monkeypatch.setenv("WANDB_API_KEY", key)
        with pytest.raises(UserError, match="refuses the key"):
            read(server)
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(UserError, match="no W&B key for http://127"):
        read(server)


def test_a_cache_folder_that_is_a_file_says_so(server: WandbServer, tmp_path: Path) -> None:
    log_others(server)
    (tmp_path / "upshot").write_text("")
    with pytest.raises(UserError, match="XDG_CACHE_HOME names another"):
        read(server)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--group", "g"], "--group: belongs to --from"),
        (["runs/small", "--from", "wandb:a/b"], "--from reads W&B and no study"),
        (["--from", "wandb:project"], "write it as wandb:ENTITY/PROJECT"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        app(["collect", *words], standalone_mode=False)
