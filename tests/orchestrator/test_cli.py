import re
import subprocess
import sys
import tomllib
from pathlib import Path

import polars as pl
import pytest
from typer.main import get_command

from orchestrator.cli import app
from orchestrator.csv_columns import TABLES
from orchestrator.files import append_record
from slurm.cluster import local_profile
from slurm.failures import Cause
from tests.orchestrator.command_page import commands, page
from tests.orchestrator.ledger import TRAIN
from tests.orchestrator.upshot_command import upshot, upshot_json

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "timm", "torchvision", "wandb", "tensorboard", "altair")


def loaded_by(*words):
    """Which heavy packages a command has imported by the time it ends."""
    program = (
        "import sys\nfrom orchestrator.cli import main\nsys.argv = ['upshot', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('LOADED', *[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("plan", "studies/quickstart.toml"),
        ("plan", "studies/quickstart.toml", "--json"),
        ("models",),
        ("tasks",),
        ("doctor", "studies/quickstart.toml", "--profile", "local"),
    ],
)
def test_the_login_node_loads_no_torch(words, tmp_path, monkeypatch):
    monkeypatch.setenv("UPSHOT_RUNS", str(tmp_path))
    assert loaded_by(*words) == []


@pytest.mark.parametrize("command", [name.split() for name, _ in commands(get_command(app).commands)], ids=" ".join)
def test_every_command_says_what_it_does(command):
    said = upshot(*command, "--help")
    assert len(said.splitlines()) > 5
    assert max(map(len, said.splitlines())) <= 80


def test_the_page_of_commands_is_what_the_code_says():
    written = (ROOT / "docs" / "commands.md").read_text()
    assert written == page(), "python -m tests.orchestrator.command_page > docs/commands.md"


def test_every_command_that_prints_a_list_prints_it_for_programs():
    told = {name for name, command in commands(get_command(app).commands) if "--json" in str(options_of(command))}
    assert {name for name, _ in commands(get_command(app).commands)} - told == {"init", "watch", "demo"}
    assert told - {"logs"} == set(TABLES) - {"reduce --submit", "comparison"}


def options_of(command):
    return [parameter.opts for parameter in command.params]


def test_init_then_plan(tmp_path):
    assert "next: upshot plan" in upshot("init", cwd=tmp_path)
    assert "36 cells: 36 to submit" in upshot("plan", cwd=tmp_path)
    assert "is there already" in upshot("init", cwd=tmp_path, code=2)
    assert list(tmp_path.iterdir()) == [tmp_path / "study.toml"]


def test_a_plan_fits_80_columns():
    assert max(map(len, upshot("plan", ROOT / "studies" / "quickstart.toml").splitlines())) <= 80


def test_the_quickstart_is_what_the_readme_promises():
    plan = upshot_json("plan", ROOT / "studies" / "quickstart.toml")
    axes = {
        axis: {cell[axis] for cell in plan["cells"]} for axis in ("family", "size", "fraction", "head_weight_decay")
    }
    assert len(plan["cells"]) >= 36
    assert [len(values) for values in axes.values()] >= [3, 3, 2, 2]
    study = tomllib.loads((ROOT / "studies" / "quickstart.toml").read_text())
    assert len(study["downstream"]["tasks"]) >= 8


def test_models_and_tasks_are_listed():
    models = upshot_json("models")["models"]
    assert {m["family"] for m in models} == {"vit", "mixer", "resnet"}
    assert max(m["params"] for m in models) > 9e9
    tasks = upshot_json("tasks")["tasks"]
    assert len(tasks) >= 8
    assert all(0 < task["chance"] < 1 and task["licence"] for task in tasks)
    assert re.search(r"vit S/16 +22\.\d M", upshot("models"))
    assert "mnist" in upshot("tasks")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", "nowhere.toml"), "there is no such study file"),
        (("status", "."), "holds no study.toml"),
        (("reduce", "nowhere.parquet"), "nowhere.parquet"),
        (("reduce", "published.csv"), "import it first: upshot import published.csv"),
        (("report", "published.TSV"), "import it first: upshot import published.TSV"),
        (("plna",), "No such command"),
        (("plan", "--sett"), "No such option"),
    ],
)
def test_usage_errors_are_exit_code_2(words, said, tmp_path):
    assert said in upshot(*words, cwd=tmp_path, code=2)


def test_an_unknown_cell_is_a_usage_error(tmp_path):
    upshot("init", cwd=tmp_path)
    assert "0 cells have an id" in upshot("why", "ffff0000", cwd=tmp_path, code=2)


# --- a study whose cells have died ---------------------------------------------------------------------------------


@pytest.fixture
def deadly(small, ledger):
    """Of four cells one died of its memory, one of a bug, one is trained and judged, one was never submitted."""
    small.store.write_study(small.file.text, local_profile())
    ledger.submit_both(small.cells[:3], executor="local", job_id=TRAIN)
    for cell, cause, detail in (
        (0, Cause.OUT_OF_MEMORY, "Slurm says OUT_OF_MEMORY"),
        (1, Cause.CODE_ERROR, "KeyError: 'x'"),
    ):
        ledger.start(cell, time=1.0)
        ledger.die(cause, cell, detail=detail)
    ledger.trained(4, cell=2)
    ledger.evaluated(4, cell=2)
    return small


def test_status_tells_failures_by_cause_and_selects_by_it(deadly):
    said = upshot("status", deadly.store.root, code=1)
    assert "1 done, 0 running, 1 pending, 2 failed" in said
    assert "1 failed: oom: Slurm says OUT_OF_MEMORY" in said
    assert "1 failed: code-error: KeyError: 'x'" in said
    [cell] = upshot_json("status", deadly.store.root, "--cause", "oom", code=1)["cells"]
    assert (cell["cell_id"], cell["cause_name"], cell["train"]) == (deadly.cells[0].cell_id, "oom", "failed")
    assert upshot_json("status", deadly.store.root, "--cause", "preemption")["cells"] == []
    assert "Did you mean 'oom'" in upshot("status", deadly.store.root, "--cause", "oomm", code=2)


def test_a_plan_retries_what_has_budget_left_and_leaves_the_rest_to_a_person(deadly):
    plan = upshot_json("plan", deadly.store.root)["cells"]
    assert [cell["action"] for cell in plan] == ["retry", "skip", "skip", "submit"]
    assert "oom: retry 1 of 3" in plan[0]["reason"]
    assert "`upshot retry` starts it again" in plan[1]["reason"]


def test_why_tells_a_cells_deaths_and_what_comes_next(deadly):
    said = upshot("why", deadly.cells[1].cell_id, deadly.store.root)
    assert "code-error" in said
    assert "KeyError: 'x'" in said
    assert "upshot retry" in said
    events = upshot_json("why", deadly.cells[1].cell_id[:8], deadly.store.root)["attempts"]
    assert [event["event"] for event in events] == ["start", "death"]


def test_why_names_images_that_could_not_be_read(deadly):
    record = {"event": "corrupt_images", "step": 5, "count": 7, "first": ["photos/cat/3.jpg: not a readable image"]}
    append_record(deadly.store.train_log(deadly.cells[2].cell_id), record)
    said = upshot("why", deadly.cells[2].cell_id, deadly.store.root, env={"COLUMNS": None})
    assert "images that could not be read: 7, the first: photos/cat/3.jpg: not a readable image" in said
    assert "could not be read" not in upshot("why", deadly.cells[1].cell_id, deadly.store.root)


def test_looking_records_nothing(deadly):
    before = {path: path.read_bytes() for path in deadly.store.root.rglob("*") if path.is_file()}
    for words, code in ((("status",), 1), (("plan",), 0), (("why", deadly.cells[0].cell_id), 0)):
        upshot(*words, deadly.store.root, code=code)
    assert {path: path.read_bytes() for path in deadly.store.root.rglob("*") if path.is_file()} == before


@pytest.fixture
def imported(tmp_path):
    rows = [
        {"cell_id": f"m{i}", "task": "real", "upstream_accuracy": us, "downstream_accuracy": 0.8 - 0.5 * (1 - us) ** 3}
        for i, us in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))
    ]
    path = tmp_path / "results.parquet"
    pl.DataFrame(rows).write_parquet(path)
    return path


def test_reduce_says_which_cells_reach_an_upstream_accuracy(imported):
    said = upshot("reduce", imported, "--at", "upstream=0.8", "--draws", "20")
    assert "real: m3 (p = 0.500) and m4 (p = 0.500) reach 0.793" in said
    assert "not identifiable" in said
    assert "what predicts the cells best upstream" in said
    (task,) = upshot_json("reduce", imported, "--at", "upstream=0.8", "--draws", "20")["tasks"]
    assert [cell["cell_id"] for cell in task["recipe"]["cells"]] == ["m3", "m4"]


def test_reduce_stores_loss_and_points(imported):
    (task,) = upshot_json("reduce", imported, "--loss", "huber", "--points", "dense", "--draws", "5")["tasks"]
    assert {(fit["loss"], fit["points"]) for fit in task["fits"].values()} == {("huber", "dense")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--at", "upstream=0.95"), "it reaches from 0.1 to 0.9"),
        (("--at", "0.8"), "such as --at upstream=0.8"),
        (("--loss", "l1"), "choose squared or huber"),
        (("--points", "edges"), "choose vertices or dense"),
        (("--seed", "-1"), "seed: -1 given"),
    ],
)
def test_reduce_refuses_what_makes_no_sense(imported, words, message):
    assert message in upshot("reduce", imported, *words, code=2)
    if words[0] != "--at":
        assert message in upshot("report", imported, *words, code=2)


def test_reduce_lists_the_pairs_behind_the_conflicts(imported):
    table = pl.read_parquet(imported)
    worse = table.filter(cell_id="m4").with_columns(cell_id=pl.lit("m5"), downstream_accuracy=pl.lit(0.1))
    pl.concat([table, worse]).write_parquet(imported)
    found = upshot_json("reduce", imported, "--draws", "5")
    (task,), pairs = found["tasks"], found["conflicts"]
    assert task["conflicts"] == len(pairs["strongest"]) == 4
    assert {pair["cell_id_upstream"] for pair in pairs["strongest"]} == {"m5"}
    assert pairs["controlled"] == []


def test_a_report_is_reduced_as_it_is_told(imported):
    words = ("--seed", "3", "--draws", "7", "--loss", "huber", "--points", "dense")
    page = Path(upshot("report", imported, *words).strip())
    assert "7 bootstrap draws, seed 3" in page.read_text()
    fits = pl.read_parquet(page.parent / "tables" / "fits.parquet").filter(pl.col("k").is_not_null())
    assert set(fits.select("loss", "points").iter_rows()) == {("huber", "dense")}
