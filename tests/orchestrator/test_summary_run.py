"""What W&B shows of a whole study, with the real wandb client and report library against a loopback server."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evals.measures import MEASURES_SCHEMA
from evals.protocol import RESULT_SCHEMA
from models.errors import UserError
from orchestrator import lock
from orchestrator.collecting import collect_runs
from orchestrator.grid import cells
from orchestrator.published_report import MAX_VERTICES, publish_study, report_content
from orchestrator.session import Session, open_submitted
from orchestrator.store import Store
from orchestrator.study import load_study
from orchestrator.study_summary import HEADLINES, mirror_study
from orchestrator.tracking import Description
from orchestrator.tracking.reading import read_runs
from orchestrator.tracking.summary_run import StudySummary, mirror_summary
from orchestrator.tracking.wandb_report import ReportContent, ReportRefusedError, publish
from orchestrator.wanted import wanted_files
from slurm.cluster import local_profile
from slurm.failures import Cause
from tests.orchestrator.ledger import TRAIN, Ledger
from tests.orchestrator.own_server import own_server
from tests.orchestrator.upshot_command import upshot
from tests.wandb_server import Run, WandbServer

STUDY = """
name = "limits"
[upstream]
dataset = "icons"
[grid]
family = ["vit", "mixer"]
size = "pico"
patch_size = 8
fraction = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
batch_size = 64
[train]
checkpoints = 1
[downstream]
tasks = ["mnist", "patches"]
shots = [5, 25]
draws = 2
[wandb]
mode = "offline"
"""
RUN = "study-limits"
STEP = 4
REASON = "too few images of class 7"
FILE_OF_FITS = "fits.table.json"


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server and a machine that knows no other."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    with own_server(home, monkeypatch) as started:
        yield started


# --- a study's folder, written by hand -------------------------------------------------------------------------------


class Written:
    """A study of 16 cells on a curve that saturates at 0.88 on mnist, and on one that falls on patches."""

    def __init__(self, folder: Path, text: str = STUDY) -> None:
        path = folder / "limits.toml"
        path.write_text(text)
        self.file, self.runs = load_study(path), folder / "runs"
        self.store = Store(self.runs / "limits")
        self.cells = cells(self.file.study, path)
        self.store.write_study(self.file.text, local_profile())
        self.ledger = Ledger(self.store, self.file.study, self.cells)
        self.ledger.submit_both(executor="local")

    def train(self, *which: int) -> None:
        """These cells have been trained and judged; of the third the second draw could not be made."""
        for cell in which:
            ended = {"event": "end", "stage": "train", "outcome": "done", "attempt": 1, "token": TRAIN}
            self.ledger.start(cell)
            self.store.record_attempt(self.cells[cell].cell_id, **ended, seconds=2.0, step=STEP)
            self.ledger.finalise(STEP, cell=cell)
            for (task, _), name in wanted_files(self.file.study).results.items():
                self._judge(cell, task, name)
            self._measure(cell)

    def _judge(self, cell: int, task: str, name: str) -> None:
        upstream = 0.3 + 0.6 * cell / 15
        of_task = {"mnist": 1 - (0.12 + 0.5 * (1 - upstream) ** 1.5), "patches": 0.6 - 0.2 * upstream}
        known = {"cell_id": self.cells[cell].cell_id, "step": STEP, "task": task, "protocol": "ridge", "layer": 3}
        known |= {"last_layer": True, "num_layers": 4, "upstream_accuracy": upstream, "params": 28_000}
        known |= {"upstream_num_test": 10**6, "downstream_num_test": 10**6, "method": "ridge on frozen features"}
        rows = []
        for shots in (5, 25):
            for draw in (0, 1):
                lacks = cell == 2 and draw == 1
                value = {"reason": REASON} if lacks else {"downstream_accuracy": of_task[task] + (draw - 0.5) * 1e-6}
                rows.append({**dict.fromkeys(RESULT_SCHEMA), **known, "shots": shots, "draw": draw, **value})
        folder = self.store.evals(self.cells[cell].cell_id, STEP)
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(rows, schema=RESULT_SCHEMA).write_parquet(folder / name)

    def _measure(self, cell: int) -> None:
        name = wanted_files(self.file.study).measures
        assert name is not None
        cell_id = self.cells[cell].cell_id
        row = {**dict.fromkeys(MEASURES_SCHEMA), "cell_id": cell_id, "step": STEP, "quantity": "margin", "value": 0.5}
        frame = pl.DataFrame([row], schema=MEASURES_SCHEMA)
        frame.write_parquet(self.store.evals(cell_id, STEP) / name)

    @property
    def session(self) -> Session:
        return open_submitted(self.store.root, self.runs)

    def note(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.store.root / "mirror.json").read_text())
        return found


@pytest.fixture
def study(tmp_path: Path) -> Written:
    written = Written(tmp_path)
    written.train(*range(16))
    return written


@pytest.fixture
def unfinished(tmp_path: Path) -> Written:
    return Written(tmp_path)


def table(server: WandbServer, name: str) -> pl.DataFrame:
    """A table as W&B shows it: its newest version."""
    *_, newest = server.versions(f"run-{RUN}-{name}")
    found = json.loads(newest.files[f"{name}.table.json"])
    return pl.DataFrame(found["data"], schema=found["columns"], orient="row")


def versions(server: WandbServer) -> dict[str, int]:
    return {name: len(server.versions(name)) for name in sorted({one.collection for one in server.logged})}


def collected(server: WandbServer) -> pl.DataFrame:
    return collect_runs(read_runs(server.entity, "upshot", num_retries=1, timeout_s=20.0), {}).results


# --- the study as a run ----------------------------------------------------------------------------------------------


def test_the_study_is_one_run_with_its_numbers_tables_and_files(study: Written, server: WandbServer) -> None:
    result = mirror_study(study.session)

    assert result.ok, result.error
    assert (result.num_sent, result.url) == (1, f"{server.url}/{server.entity}/upshot/runs/{RUN}")
    (run,) = server.runs.values()
    assert (run.run_id, run.group, run.job_type, run.name, run.state) == (
        RUN,
        "limits",
        "summary",
        "limits",
        "finished",
    )
    assert run.history == []
    assert run.config["grid"][0]["fraction"] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert run.config["downstream"]["tasks"] == ["mnist", "patches"]

    reduced = study.session.reduced()
    task = next(t for t in reduced["tasks"] if (t["task"], t["shots"]) == ("mnist", 25))
    assert task["identifiable"]
    expected = {
        "mnist/25shot/saturation": 1 - task["fits"]["hull"]["e_ir"],
        "mnist/25shot/saturation_low": 1 - task["fits"]["hull"]["e_ir_high"],
        "mnist/25shot/saturation_high": 1 - task["fits"]["hull"]["e_ir_low"],
        "mnist/25shot/held_out_error": task["held_out"]["rmse"][task["held_out"]["best_model"]],
        "mnist/25shot/verdict": task["verdict"],
        "patches/5shot/conflict_share": 1.0,
        "cells/total": 16,
        "cells/done": 16,
        "cells/failed": 0,
        "job_hours/used": 16 * 2.0 / 3600,
        "rows/results": 16 * 2 * 2 * 2,
        "finished": True,
        "protocol": "ridge",
    }
    assert {name: run.summary[name] for name in expected} == expected
    assert 0.87 < run.summary["mnist/25shot/saturation"] < 0.89
    assert "patches/25shot/saturation" not in run.summary
    assert "not identifiable" in run.summary["patches/25shot/verdict"]

    fits = table(server, "fits")
    assert fits.filter(task="mnist", shots=25)["saturation"].to_list() == [expected["mnist/25shot/saturation"]]
    assert fits.filter(task="patches", shots=25)["saturation"].to_list() == [None]
    hull = [vertex["cell_id"] for vertex in task["hull"]]
    assert table(server, "frontier").filter(task="mnist", shots=25)["cell_id"].to_list() == hull
    conflicts = table(server, "conflicts").filter(task="patches", shots=25)
    assert conflicts.select("pairs", "conflict_share", "significant_share").row(0) == (105, 1.0, 1.0)
    assert table(server, "points").height == 16 * 2 * 2 - 4  # the third cell has no mean
    assert {"family", "fraction"} <= set(table(server, "points").columns)
    (page,) = server.versions("limits-report")
    assert page.type == "report"
    assert b"<title>limits: Upshot report</title>" in page.files["index.html"]
    assert study.note() | {"time": 0} == {
        "time": 0, "ok": True, "mode": "online", "error": None, "digest": study.note()["digest"]
    }  # fmt: skip
    assert sorted(p.name for p in study.store.root.iterdir()) == [
        "cells", "cells.ndjson", "cluster.toml", "jobs", "mirror.json", "results", "study.toml"
    ]  # fmt: skip


def test_an_unchanged_study_is_not_told_again(study: Written, server: WandbServer) -> None:
    assert mirror_study(study.session).num_sent == 1
    there, summary = versions(server), dict(server.runs[RUN].summary)
    server.operations.clear()

    again = mirror_study(study.session)

    assert (again.ok, again.num_sent) == (True, 0)
    assert not {"UpsertBucket", "CreateArtifact", "CreateRunFiles"} & set(server.operations)
    (study.store.root / "mirror.json").unlink()  # told again, and nothing is doubled
    assert mirror_study(study.session).num_sent == 1
    assert versions(server) == there
    tables = {name for name, value in summary.items() if isinstance(value, dict)}
    numbers = summary.keys() - tables - {"_runtime"}
    assert {name: server.runs[RUN].summary[name] for name in numbers} == {name: summary[name] for name in numbers}


def test_only_what_changed_gets_a_new_version_and_what_is_not_so_goes(unfinished: Written, server: WandbServer) -> None:
    unfinished.train(*range(12))
    unfinished.ledger.start(12)
    unfinished.ledger.die(Cause.OUT_OF_MEMORY, 12)
    assert mirror_study(unfinished.session).ok
    summary = server.runs[RUN].summary
    assert (summary["cells/done"], summary["finished"]) == (12, False)
    assert "so far: 11 of 16 cells" in summary["mnist/25shot/verdict"]
    dead = [name for name in summary if name.startswith("failed/")]
    before = versions(server)
    assert set(before.values()) == {1}

    unfinished.train(12, 13, 14, 15)
    assert mirror_study(unfinished.session).ok

    assert versions(server) == dict.fromkeys(before, 2)
    summary = server.runs[RUN].summary
    assert (summary["cells/done"], summary["finished"]) == (16, True)
    assert not [name for name in dead if name in summary]
    assert len(server.runs) == 1


def test_a_study_without_results_has_a_run(unfinished: Written, server: WandbServer) -> None:
    assert mirror_study(unfinished.session).ok
    summary = server.runs[RUN].summary
    assert (summary["cells/total"], summary["rows/results"], summary["finished"]) == (16, 0, False)
    assert table(server, "fits").is_empty()
    assert sorted({one.type for one in server.logged}) == ["report", "run_table"]


def test_a_study_whose_folder_is_gone_is_collected_whole(study: Written, server: WandbServer) -> None:
    assert mirror_study(study.session).ok
    local = pl.read_parquet(study.store.results_path)
    assert local["reason"].drop_nulls().unique().to_list() == [REASON]
    shutil.rmtree(study.store.root)

    printed = upshot("collect", "--from", f"wandb:{server.entity}/upshot", "-o", "back.parquet")

    assert "study limits: the results table that it logged" in printed
    assert pl.read_parquet("back.parquet").equals(local)


def test_a_table_that_is_as_it_once_was_is_the_one_that_is_collected(study: Written, server: WandbServer) -> None:
    assert mirror_study(study.session).ok
    first = pl.read_parquet(study.store.results_path)
    changed = next(study.store.evals(study.cells[0].cell_id, STEP).glob("*.parquet"))
    kept = changed.read_bytes()
    changed.unlink()
    assert mirror_study(study.session).ok
    assert collected(server).height < first.height
    changed.write_bytes(kept)
    assert mirror_study(study.session).ok
    assert len(server.versions("limits-results")) == 2
    assert collected(server).equals(first)


def test_long_tables_lose_their_end_and_the_run_says_so(
    study: Written, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.study_summary.MAX_ROWS", 20)
    assert mirror_study(study.session).ok
    assert table(server, "points").height == 20
    left = {name: value for name, value in server.runs[RUN].summary.items() if name.startswith("rows_left_out/")}
    assert left["rows_left_out/points"] == 60 - 20
    assert "rows_left_out/fits" not in left
    assert collected(server).equals(pl.read_parquet(study.store.results_path))


def test_where_wandb_is_disabled_nothing_is_asked(tmp_path: Path, server: WandbServer) -> None:
    disabled = Written(tmp_path, STUDY.replace("offline", "disabled"))
    assert mirror_study(disabled.session).mode == "disabled"
    assert server.operations == []
    assert not (disabled.store.root / "mirror.json").exists()
    with pytest.raises(UserError, match="W&B is disabled for study limits"):
        publish_study(disabled.session)
    assert "W&B is disabled" in upshot("report", disabled.store.root, "--wandb", code=2)
    assert not disabled.store.report_folder.exists()


def test_the_page_on_tracking_names_every_number_table_and_artifact(unfinished: Written, server: WandbServer) -> None:
    unfinished.train(*range(8))
    assert mirror_study(unfinished.session).ok
    page = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text()
    section = page.partition("## The study as a run")[2].partition("## A W&B report")[0]
    named = set(re.findall(r"`/?([\w/-]+)`", section))
    assert {name for names in HEADLINES.values() for name in names} <= named
    assert {one.collection.removeprefix(f"run-{RUN}-").replace("limits", "NAME") for one in server.logged} <= named
    kinds = (
        (r"^cells/(?!total).*", "cells/STATUS"),
        (r"^failed/.*", "failed/CAUSE"),
        (r"^(gpu_hours|job_hours)/.*", "used"),
    )
    told = {name for name in server.runs[RUN].summary if not name.startswith(("_", "mnist/", "patches/"))}
    for pattern, name in kinds:
        told = {re.sub(pattern, name, one) for one in told}
    assert told <= named


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_without_a_key_it_says_so(study: Written, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    result = mirror_study(study.session)
    assert not result.ok
    assert "no W&B key for http://127" in str(result.error)
    assert study.note()["error"] == result.error
    with pytest.raises(ReportRefusedError, match="no W&B key"):
        publish_study(study.session)


@pytest.mark.parametrize(
    ("group", "config"),
    [("another", {"upstream": {"dataset": "icons"}}), ("limits", {"upstream": {"dataset": "flags"}}), ("limits", {})],
)
def test_a_run_of_another_study_is_left_as_it_is(
    unfinished: Written, server: WandbServer, group: str, config: dict[str, Any]
) -> None:
    theirs = Run(RUN, server.entity, "upshot", group=group, config=config, summary={"theirs": 1}, state="finished")
    server.runs[RUN] = theirs
    result = mirror_study(unfinished.session)
    assert not result.ok
    assert "of another study" in str(result.error)
    assert "another wandb.project" in str(result.error)
    assert (theirs.summary, theirs.num_opened, server.logged) == ({"theirs": 1}, 0, [])


def test_a_run_that_was_deleted_there_says_what_mends_it(unfinished: Written, server: WandbServer) -> None:
    server.deleted.add(RUN)
    result = mirror(unfinished.store.root)
    assert not result.ok
    assert "previously created and deleted" in str(result.error)
    assert "another wandb.project" in str(result.error)


def test_a_project_that_was_deleted_is_made_anew(unfinished: Written, server: WandbServer) -> None:
    assert publish_study(unfinished.session).how == "made"
    for kept in (server.runs, server.logged, server.views):
        kept.clear()
    assert publish_study(unfinished.session).how == "made anew"
    assert server.runs[RUN].summary["cells/total"] == 16
    assert [one.type for one in server.versions("limits-report")] == ["report"]


def test_two_at_once_do_not_mix(unfinished: Written, server: WandbServer) -> None:
    with lock.holding(unfinished.store.root / "mirror.lock"):
        result = mirror_study(unfinished.session)
    assert not result.ok
    assert "another process tells W&B of this study just now" in str(result.error)
    assert server.operations == []


def test_a_damaged_result_is_named_and_told_nobody(study: Written, server: WandbServer) -> None:
    damaged = next(study.store.evals(study.cells[0].cell_id, STEP).glob("*.parquet"))
    damaged.write_bytes(b"PAR1 torn")
    result = mirror_study(study.session)
    assert not result.ok
    assert damaged.name in str(result.error)
    assert server.operations == []


DESCRIPTION = Description(
    study="limits",
    project="upshot",
    entity=None,
    config={"upstream": {"dataset": "icons"}},
    name="limits",
    job_type="summary",
)


def told(folder: Path) -> StudySummary:
    path = folder / "results.parquet"
    pl.DataFrame({"a": [1]}).write_parquet(path)
    return StudySummary(
        numbers={"<b>odd</b> 'task' \"x\"/5shot/saturation": 0.5},
        tables={"fits": pl.DataFrame({"task": ["<script>", None], "value": [float("nan"), float("inf")]})},
        files={"results": path},
        page="<p>",
    )


def mirror(folder: Path, timeout_s: float = 1.5, digest: str = "d") -> Any:
    return mirror_summary(folder, DESCRIPTION, digest, lambda: told(folder), timeout_s=timeout_s)


def test_odd_names_and_what_is_no_number(tmp_path: Path, server: WandbServer) -> None:
    assert mirror(tmp_path, 20.0).ok
    assert server.runs[RUN].summary["<b>odd</b> 'task' \"x\"/5shot/saturation"] == 0.5
    assert table(server, "fits").rows() == [("<script>", None), (None, None)]


@pytest.mark.parametrize(
    ("fault", "path"),
    [
        (500, "/graphql"),
        ("hang", "/graphql"),
        (500, "/artifact/0/"),
        ("hang", "/artifact/0/"),
        ("hang", "/file_stream"),
    ],
)
def test_a_broken_server_is_told_later_and_nothing_twice(
    tmp_path: Path, server: WandbServer, fault: Any, path: str
) -> None:
    server.fail(fault, path)
    result = mirror(tmp_path)
    assert not result.ok
    assert "\n" not in str(result.error)
    server.recover()
    sys.modules["wandb"].teardown()  # what hangs does not come back behind us
    assert mirror(tmp_path, 30.0).ok
    committed = {name: len(server.versions(name)) for name in ("limits-results", "limits-report", f"run-{RUN}-fits")}
    assert set(committed.values()) == {1}
    assert mirror(tmp_path, 30.0).num_sent == 0


def test_a_table_that_wandb_does_not_take_is_told_again(tmp_path: Path, server: WandbServer) -> None:
    server.fail(403, FILE_OF_FITS)  # type: ignore[arg-type]  # of storage that is full; the client gives up at once
    result = mirror(tmp_path, 20.0)
    assert not result.ok
    assert "W&B has not taken the table fits" in str(result.error)
    server.recover()
    assert mirror(tmp_path, 20.0).num_sent == 1
    assert table(server, "fits").height == 2


# --- the report at W&B -----------------------------------------------------------------------------------------------


def blocks(server: WandbServer, kind: str, view: str | None = None) -> list[dict[str, Any]]:
    spec = server.spec(view or list(server.views)[-1])
    return [block for block in spec["blocks"] if block["type"] == kind]


def texts(node: Any) -> str:
    if isinstance(node, dict):
        return node.get("text", "") + texts(node.get("children", []))
    return "\n".join(map(texts, node))


def test_the_report_has_the_studys_runs_charts_and_numbers(
    study: Written, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    published = publish_study(study.session)

    ((view_id, view),) = server.views.items()
    assert published.how == "made"
    assert published.url == f"{server.url}/{server.entity}/upshot/reports/limits--{view_id}"
    assert (view["displayName"], view["type"], view["project"]["name"]) == ("limits", "runs", "upshot")
    kept = json.loads((study.store.root / "wandb-report.json").read_text())
    assert kept == {"id": view_id, "url": published.url, "project": f"{server.entity}/upshot"}
    assert capfd.readouterr().out == ""

    ((grid),) = blocks(server, "panel-grid")
    (runs,) = grid["metadata"]["runSets"]
    assert runs["project"]["name"] == "upshot"
    filters = [(f["key"], f["op"], f["value"]) for f in runs["filters"]["filters"]]
    assert filters == [
        ({"section": "run", "name": "group"}, "=", "limits"),
        ({"section": "run", "name": "jobType"}, "=", "cell"),
    ]
    panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
    scatters = [panel["config"] for panel in panels if panel["viewType"] == "Scatter Plot"]
    assert [(panel["xAxis"], panel["yAxis"]) for panel in scatters] == [
        ("summary:upstream/accuracy", f"summary:downstream/{task}/25shot/accuracy") for task in ("mnist", "patches")
    ]
    (curves,) = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert (curves["xAxis"], curves["metrics"]) == ("examples_seen", ["upstream/accuracy"])
    (parallel,) = [panel["config"] for panel in panels if panel["viewType"] == "Parallel Coordinates Plot"]
    accessors = [column["accessor"] for column in parallel["columns"]]
    assert accessors[:3] == ["config:family.value", "config:fraction.value", "summary:upstream/accuracy"]
    families = {cell.cell_id: cell.recipe.family for cell in study.cells}
    colours = grid["metadata"]["customRunColors"]
    assert {(families[cell], colour) for cell, colour in colours.items()} == {("mixer", "#0072B2"), ("vit", "#D55E00")}
    assert colours.keys() == families.keys()
    assert "Colours by family: mixer blue, vit vermilion." in texts(server.spec(view_id)["blocks"])

    fits, conflicts, frontier = (block["content"] for block in blocks(server, "markdown-block"))
    value = server.runs[RUN].summary["mnist/25shot/saturation"]
    assert f"| mnist | 25 | 15 | {value:.3f} (" in fits
    assert "| patches | 25 | 15 | not identifiable |" in fits
    assert "| patches | 5 | 105 | 100 % | 100 % |" in conflicts
    assert f"| mnist | {study.cells[15].cell_id} |" in frontier
    assert "| mnist, 25 shots: saturates at" not in texts(server.spec(view_id)["blocks"])
    assert "mnist, 25 shots: saturates at" in texts(server.spec(view_id)["blocks"])
    links = json.dumps(server.spec(view_id))
    for path in ("runs/study-limits", "artifacts/results/limits-results/v0", "artifacts/report/limits-report/v0"):
        assert f"{server.url}/{server.entity}/upshot/{path}" in links


def test_the_same_report_is_written_again_and_comments_stay(study: Written, server: WandbServer) -> None:
    first = publish_study(study.session)
    (view_id,) = server.views
    commented = server.spec(view_id) | {"discussionThreads": [{"id": "thread"}]}
    server.views[view_id]["spec"] = json.dumps(commented)

    study.ledger.start(15, attempt=2)
    study.ledger.die(Cause.OUT_OF_MEMORY, 15, attempt=2)
    again = publish_study(study.session)

    assert (again.how, again.url, list(server.views)) == ("updated", first.url, [view_id])
    assert server.spec(view_id)["discussionThreads"] == [{"id": "thread"}]
    assert len(server.spec(view_id)["blocks"]) == len(commented["blocks"])


def test_a_report_that_was_deleted_there_is_made_anew(unfinished: Written, server: WandbServer) -> None:
    first = publish_study(unfinished.session)
    server.views.clear()
    again = publish_study(unfinished.session)
    assert (again.how, len(server.views)) == ("made anew", 1)
    assert again.url != first.url
    assert publish_study(unfinished.session).how == "updated"


def test_a_study_without_results_has_a_report(unfinished: Written, server: WandbServer) -> None:
    publish_study(unfinished.session)
    assert "No checkpoint has been judged downstream yet." in texts(server.spec(next(iter(server.views)))["blocks"])
    (grid,) = blocks(server, "panel-grid")
    kinds = [panel["viewType"] for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]]
    assert kinds == ["Run History Line Plot", "Parallel Coordinates Plot"]
    assert blocks(server, "markdown-block") == []


@pytest.mark.parametrize("fault", [500, "hang"])
def test_a_report_that_wandb_does_not_take_leaves_the_old_one(
    unfinished: Written, server: WandbServer, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_study(unfinished.session)
    before = dict(next(iter(server.views.values())))
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "2")
    content = replace(report_content(unfinished.session), lead="another")
    server.fail(fault, "/graphql", after=5)  # signing in goes well
    with pytest.raises(ReportRefusedError, match=r"the report is not published: W&B at .* does not answer"):
        publish(unfinished.store.root, content, timeout_s=3.0)
    server.recover()
    assert list(server.views.values()) == [before]
    assert publish(unfinished.store.root, content).how == "updated"
    assert len(server.views) == 1


def test_without_the_library_it_says_what_to_install(unfinished: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(UserError, match=r'pip install "upshot\[reports\]"'):
        publish_study(unfinished.session)


def test_odd_characters_stay_text(tmp_path: Path, server: WandbServer) -> None:
    server.runs["any"] = Run("any", server.entity, "upshot")
    odd = "a|b <img src=x> [c](http://d) `e` $f$ *g*"
    content = ReportContent(
        study="limits",
        project="upshot",
        entity=None,
        lead=odd,
        answers=[odd],
        scatters=[(odd, f"downstream/{odd}/5shot/accuracy")],
        axes=[],
        metrics=[],
        colours={},
        legend="",
        tables={},
        notes=[odd],
    )
    assert mirror(tmp_path, 20.0).ok  # what it links to
    publish(tmp_path, content)
    assert texts(server.spec(next(iter(server.views)))["blocks"]).count(odd) == 3


def test_names_in_the_reports_tables_cannot_be_markdown(study: Written) -> None:
    from orchestrator.report.tables import markdown_lines

    (_, _, line) = markdown_lines(pl.DataFrame({"task": ["a|b <img src=x> [c](http://d) `e` $f$ *g*\\"]}))
    assert line == "| a\\|b &lt;img src=x> \\[c\\](http://d) \\`e\\` \\$f\\$ \\*g\\*\\\\ |"
    assert len(report_content(study.session).tables["Frontier, 25 shots"].splitlines()) <= MAX_VERTICES + 4


def test_the_command_prints_the_page_and_the_address(unfinished: Written, server: WandbServer) -> None:
    folder = unfinished.store.root
    address = f"{server.url}/{server.entity}/upshot/reports/limits--"
    printed = upshot("report", folder, "--wandb").splitlines()
    assert printed == [str(unfinished.store.report_folder / "index.html"), address + next(iter(server.views))]
    server.views.clear()
    (_, printed_again) = upshot("report", folder, "--wandb").splitlines()
    assert printed_again.startswith(f"{address}{next(iter(server.views))} (the one published before is gone there")
    server.fail(401)
    (_, said) = upshot("report", folder, "--wandb", code=1).splitlines()
    assert said.startswith("upshot: the report is not published")
    table = folder / "results" / "results.parquet"
    assert "is a table" in upshot("report", table, "--wandb", code=2)


def test_sync_tells_the_run_of_the_study_after_its_cells(unfinished: Written, server: WandbServer) -> None:
    unfinished.train(0, 1)
    folder = unfinished.store.root
    upshot("sync", folder)
    assert server.runs.keys() == {RUN, *(unfinished.cells[cell].cell_id for cell in (0, 1))}
    assert server.runs[RUN].summary["cells/done"] == 2
    opened = server.runs[RUN].num_opened
    upshot("sync", folder)
    assert server.runs[RUN].num_opened == opened, "an unchanged study is not told again"

    unfinished.train(2)
    server.deleted.add(RUN)
    del server.runs[RUN]
    said = upshot("sync", folder, code=1)
    assert "the run of the study: " in said
    assert "previously created and deleted" in said
    assert unfinished.cells[2].cell_id in server.runs
