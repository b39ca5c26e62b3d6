"""What the README and the pages tell is true: its files parse, its tables are whole, its links lead somewhere.

Its commands run in test_pages.py.
"""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from models.recipe import Axes, Recipe
from orchestrator.cli import app
from orchestrator.study import Retry, parse_study
from orchestrator.study_reference import PROFILE_SECTIONS, SECTIONS, reference, table
from slurm.cluster import load_profile
from tests.orchestrator.pages import PAGES
from tests.orchestrator.upshot_command import upshot

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = {kind: re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL) for kind in ("toml",)}


def test_the_readmes_study_and_profile_make_a_plan(tmp_path):
    study, profile = BLOCKS["toml"]
    parse_study(tomllib.loads(study), Path("README.md"))
    (tmp_path / "study.toml").write_text(study)
    (tmp_path / "cluster.toml").write_text(profile)
    assert "gpu-h100" in load_profile(str(tmp_path / "cluster.toml")).partitions
    said = upshot("plan", cwd=tmp_path)
    assert "108 cells: 108 to submit" in said
    assert "GPU-hours expected" in said


def test_the_cluster_pages_examples_make_a_plan(tmp_path):
    page = (ROOT / "docs" / "clusters.md").read_text()
    profile, places = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (budgets,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
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


def test_every_cause_of_death_is_on_the_page_on_operations_with_its_budget():
    page = (ROOT / "docs" / "operations.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z-]+)` \|.*\| ([^|]+) \|$", page, re.MULTILINE))
    budgets = {cause.value: "free" if number is None else str(number) for cause, number in Retry().budgets.items()}
    assert {cause: told.split()[0] for cause, told in rows.items()} == budgets
    done = page.partition("What you should do")[2].partition("## ")[0]
    assert set(re.findall(r"`([a-z-]+)`", done)) >= set(budgets) - {"dependency"}


def test_the_reference_is_what_the_models_say():
    assert (ROOT / "docs" / "study-file.md").read_text() == reference(), (
        "run: python -m orchestrator.study_reference > docs/study-file.md"
    )


@pytest.mark.parametrize("model", [model for _, _, model in SECTIONS] + [model for _, model in PROFILE_SECTIONS])
def test_every_key_has_a_meaning(model):
    rows = [line.split(" | ") for line in table(model).splitlines()[2:]]
    assert rows
    assert all(len(row) == 4 and row[3].removesuffix(" |").endswith((".", ")")) for row in rows)


def test_the_reference_names_what_a_cells_id_is_made_of():
    assert set(Recipe.model_fields) == {*Axes.model_fields, "dataset"}


def test_every_table_of_a_page_has_as_many_fields_in_each_row():
    for name, path in PAGES.items():
        for rows in re.findall(r"(?:^\|.*\|$\n?)+", path.read_text(), re.MULTILINE):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in rows.splitlines()}
            assert len(counts) == 1, f"{name}: {rows}"


def test_the_index_lists_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    listed = set(re.findall(r"\]\(([\w./-]+\.md)\)", index))
    pages = {str(path.relative_to(ROOT / "docs")) for path in PAGES.values() if path.is_relative_to(ROOT / "docs")}
    assert {page for page in pages if "/" not in page} - {"README.md"} <= listed


def test_the_citation_is_one_and_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert all(cited[key] for key in ("message", "title", "authors"))
    (paper,) = cited["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Abnar", "Dehghani", "Neyshabur", "Sedghi"]
    assert paper["url"] == "https://arxiv.org/abs/2110.02095"


def test_every_command_is_in_the_readme_or_lists_things():
    named = set(re.findall(r"upshot ([a-z]+)", README))
    assert set(get_command(app).commands) - named <= {"cancel", "collect", "logs"}


LINKS = [
    (name, target)
    for name, path in PAGES.items()
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", path.read_text())
]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_links_lead_somewhere(page, target):
    file, _, section = target.partition("#")
    there = (PAGES[page].parent / file) if file else PAGES[page]
    assert there.exists()
    headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE) if section else []
    assert section in ("", *(re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings))


def test_every_option_of_import_is_on_the_page_on_tables():
    page = (ROOT / "docs" / "tables.md").read_text()
    options = {option for parameter in get_command(app).commands["import"].params for option in parameter.opts}
    assert {option for option in options if option.startswith("--")} - set(re.findall(r"--[a-z-]+", page)) == {
        "--output"
    }
