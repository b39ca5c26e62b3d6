"""What the README and the pages tell is true: its files parse, its commands exist, its links lead somewhere."""

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import polars as pl
import pytest
from typer.main import get_command

from orchestrator.cli import app
from orchestrator.study import parse_study
from orchestrator.template import TEMPLATE
from slurm.cluster import load_profile
from slurm.failures import Cause
from tests.models.encoded import write_shards
from tests.orchestrator.upshot_command import UPSHOT, upshot

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = {kind: re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL) for kind in ("toml", "sh")}
COMMANDS = [line.split("#")[0].split() for block in BLOCKS["sh"] for line in block.splitlines()]


def test_the_readmes_study_and_profile_make_a_plan(tmp_path):
    study, profile = BLOCKS["toml"]
    parse_study(tomllib.loads(study), Path("README.md"))
    (tmp_path / "study.toml").write_text(study)
    (tmp_path / "cluster.toml").write_text(profile)
    assert "gpu-h100" in load_profile(str(tmp_path / "cluster.toml")).partitions
    said = upshot("plan", cwd=tmp_path)
    assert "108 cells: 108 to submit" in said
    assert "GPU-hours expected" in said


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "upshot"], ids=" ".join)
def test_every_command_of_the_readme_exists(words):
    command = get_command(app).commands[words[1]]
    assert command.help


def test_the_cluster_pages_examples_make_a_plan(tmp_path):
    page = (ROOT / "docs" / "clusters.md").read_text()
    profile, places, budgets = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    study, _ = BLOCKS["toml"]
    (tmp_path / "cluster.toml").write_text(profile)
    (tmp_path / "study.toml").write_text(study.partition("[cluster]")[0] + places + budgets)
    said = upshot("plan", "--set", 'grid.size=["S","L"]', cwd=tmp_path)
    assert "EUR expected" in said
    assert load_profile(str(tmp_path / "cluster.toml")).driver.partition == "cpu"


def test_the_cluster_page_shows_what_the_plan_says_of_a_large_cell(tmp_path):
    page = (ROOT / "docs" / "clusters.md").read_text()
    profile, *_ = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (shown,) = re.findall(r"```\n(vit 10B .*?)```", page, re.DOTALL)
    (tmp_path / "cluster.toml").write_text(profile)
    grid = 'family = "vit"\nsize = "10B"\npatch_size = 14\nimage_size = 224\nbatch_size = 256\n'
    cluster = '[cluster]\nprofile = "cluster.toml"\npartition = "gpu-h100"\n'
    (tmp_path / "study.toml").write_text(
        f'name = "large"\n[upstream]\ndataset = "icons"\n[grid]\n{grid}[downstream]\ntasks = ["mnist"]\n{cluster}'
    )
    assert shown in upshot("plan", cwd=tmp_path)


def test_the_model_pages_study_names_a_timm_model():
    (study,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL)
    parsed = parse_study(tomllib.loads(study), Path("models.md"))
    assert parsed.grid[1]["family"] == ["timm"]
    assert parsed.grid[1]["size"] == ["convnext_tiny", "swin_tiny_patch4_window7_224"]


def test_the_training_pages_study_has_cells_that_share_their_steps(tmp_path):
    (study,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)
    (tmp_path / "lengths.toml").write_text(study)
    assert "4 cells go on from the state of a shorter one" in upshot("plan", "lengths.toml", cwd=tmp_path)


def test_every_cause_of_death_is_on_the_cluster_page():
    page = (ROOT / "docs" / "clusters.md").read_text()
    assert {cause.value for cause in Cause} - set(re.findall(r"`([a-z-]+)`", page)) == {"dependency"}


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for words in COMMANDS:
        if words[0] == "make":
            assert f"\n{words[1]}: " in makefile


def test_every_command_is_in_the_readme_or_lists_things():
    named = set(re.findall(r"upshot ([a-z]+)", README))
    assert set(get_command(app).commands) - named <= {"cancel", "collect", "logs"}


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_the_commands_of_the_page_on_tables_run_as_they_stand(tmp_path):
    page = (ROOT / "docs" / "tables.md").read_text()
    for path in (ROOT / "tests" / "orchestrator" / "data" / "timm").glob("*.csv"):
        shutil.copy(path, tmp_path)
    (tmp_path / "clip.csv").write_text("model,imagenet,vtab_pets,cars\na,.5,.6,.7\nb,.6,.7,.8\n")
    rows = [f"{model},{data},.{i + 5},.{i + 6}" for i, model in enumerate("ab") for data in ("pets", "cars")]
    (tmp_path / "long.csv").write_text("\n".join(["model,dataset,imagenet,accuracy", *rows]))
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    for line in commands:
        words = shlex.split(line, comments=True)
        files = [path.name for word in words[1:] if "*" in word for path in sorted(tmp_path.glob(word))]
        upshot(*[file for word in words[1:] for file in (files if "*" in word else [word])], cwd=tmp_path)
    made = {path.stem: path for path in tmp_path.glob("*.parquet")}
    assert set(made) == {"sketch", "timm", "clip", "long"}
    for name in ("clip", "long"):
        assert pl.read_parquet(made[name])["task"].unique().sort().to_list() == ["cars", "pets"]
    assert (tmp_path / "timm-report" / "index.html").exists()


def test_the_commands_of_the_gallery_make_what_it_shows(tmp_path):
    gallery = ROOT / "docs" / "gallery"
    page = (gallery / "README.md").read_text()
    for path in (ROOT / "tests" / "orchestrator" / "data" / "timm").glob("*.csv"):
        shutil.copy(path, tmp_path)
    path = f"{UPSHOT.parent}{os.pathsep}{os.environ['PATH']}"
    said = ""
    for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL):
        done = subprocess.run(
            ["sh", "-e", "-c", block],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said += " ".join(done.stdout.split())
    reports = {made.parent.name for made in tmp_path.glob("*/index.html")}
    assert reports == {"timm-report", "larger-vs-imagenet-report", "r-vs-sketch-report"}
    pictures = re.findall(r"!\[.+\]\(([^)]+)\)", page)
    assert {f"{Path(name).stem}-report" for name in pictures} == reports
    assert all((gallery / name).stat().st_size < 300_000 for name in pictures)
    summary = [line for line in page.splitlines() if line.startswith("|")]
    assert "\n".join(summary) in (tmp_path / "timm-report/tables/summary.md").read_text()
    saturation = re.search(r"at (0\.\d+) \[(0\.\d+), (0\.\d+)\]", page)
    assert saturation
    assert [f"{float(cell):.3f}" for cell in summary[4].split("|")[6:9]] == list(saturation.groups())
    assert re.search(r"its frontier lies (.*?) higher", page)[1] in said
    for task in ("real", "v2"):
        assert f"{task}: no difference can be told" in said
    for task in ("a", "r", "sketch"):
        assert f"{task}: the frontier of larger lies" in said


def test_the_commands_and_the_study_of_the_page_on_data_run_as_they_stand(tmp_path):
    page = (ROOT / "docs" / "data.md").read_text()
    write_shards(tmp_path / "shards", kind="name")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    said = [upshot(*shlex.split(line, comments=True)[1:], cwd=tmp_path) for line in commands]
    assert said[0].startswith("240 examples of 6 classes in 12 shards; 12 shards were read\n")
    assert f"the index is in {tmp_path}/index: name that folder as upstream.dataset" in said[1]
    for dataset in ("shards", "./index", "./shards/{00000..00009}.tar"):
        (tmp_path / "study.toml").write_text(TEMPLATE.replace('"icons"', f'"{dataset}"'))
        expected = 2 if dataset == "shards" else 0
        told = upshot("plan", "--set", "grid.classes=[0.5,1.0]", cwd=tmp_path, code=expected)
        assert "72 cells: 72 to submit" in told or "'./shards'" in told


def test_every_option_of_import_is_on_the_page_on_tables():
    page = (ROOT / "docs" / "tables.md").read_text()
    options = {option for parameter in get_command(app).commands["import"].params for option in parameter.opts}
    assert {option for option in options if option.startswith("--")} - set(re.findall(r"--[a-z-]+", page)) == {
        "--output"
    }
