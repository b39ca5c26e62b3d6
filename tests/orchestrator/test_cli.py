import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from orchestrator.cli import app
from tests.orchestrator.upshot_command import upshot, upshot_json

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(get_command(app).commands)
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


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does(command):
    said = upshot(command, "--help")
    assert len(said.splitlines()) > 5
    assert get_command(app).commands[command].help


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
        (("plna",), "No such command"),
        (("plan", "--sett"), "No such option"),
    ],
)
def test_usage_errors_are_exit_code_2(words, said, tmp_path):
    assert said in upshot(*words, cwd=tmp_path, code=2)


def test_an_unknown_cell_is_a_usage_error(tmp_path):
    upshot("init", cwd=tmp_path)
    assert "0 cells have an id" in upshot("why", "ffff0000", cwd=tmp_path, code=2)
