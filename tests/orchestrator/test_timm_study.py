"""Studies of timm models, by the installed command: planned, trained, judged, reported. Real models, real images."""

import polars as pl
import pytest
import timm

from models.errors import StudyError
from models.train import train
from orchestrator.grid import cells
from orchestrator.store import Store
from orchestrator.study import load_study
from tests.orchestrator.conftest import SMALL_STUDY
from tests.orchestrator.upshot_command import upshot, upshot_json

HEAD, TAIL = SMALL_STUDY[: SMALL_STUDY.index("[grid]")], SMALL_STUDY[SMALL_STUDY.index("[train]") :]
SHARED = "fraction = 0.01\nbatch_size = 64\nclasses = 0.2\n"


def study_of(folder, grid):
    path = folder / "small.toml"
    path.write_text(HEAD + grid + TAIL)
    return path


def cells_of(path, sets=()):
    file = load_study(path, sets)
    return cells(file.study, file.path)


def test_a_study_of_timm_models_runs_from_plan_to_report(tmp_path):
    named = 'size = ["timm:test_resnet"]'
    path = study_of(tmp_path, f'[[grid]]\n{named}\n{SHARED}[[grid]]\nfamily = "vit"\nsize = "pico"\n{SHARED}')
    planned = {cell["size"]: cell for cell in upshot_json("plan", path, "--runs", tmp_path)["cells"]}
    assert {cell["family"] for cell in planned.values()} == {"timm", "vit"}
    upshot("submit", path, "--runs", tmp_path)
    assert "2 done" in upshot("watch", path, "--runs", tmp_path)
    upshot("report", path, "--runs", tmp_path)
    table = pl.read_parquet(Store(tmp_path / "small").results_path)
    assert table["downstream_accuracy"].null_count() == 0
    assert dict(table.group_by("size").agg(pl.col("params").first()).iter_rows()) == {
        size: cell["params"] for size, cell in planned.items()
    }
    layers = dict(table.group_by("size").agg(pl.col("layer").n_unique()).iter_rows())
    assert layers == {"test_resnet": 6, "pico": 3}  # stem and stages, or blocks, and the pre-logits


def test_the_two_ways_of_naming_a_timm_model_are_the_same_cell(tmp_path):
    short = cells_of(study_of(tmp_path, f'[grid]\nsize = ["timm:test_resnet"]\n{SHARED}'))
    long = cells_of(study_of(tmp_path, f'[grid]\nfamily = "timm"\nsize = "test_resnet"\n{SHARED}'))
    assert short == long
    assert (short[0].recipe.family, short[0].recipe.size) == ("timm", "test_resnet")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ('family = "vit"\nsize = ["B", "timm:test_resnet"]', r"grid.size: .*\[\[grid\]\] table with family = \"timm\""),
        ('size = ["timm:test_resnet", "B"]', r"grid.family: is missing"),
        (
            'size = "timm:vgg11"\ndrop_path = [0, 0.1]\nimage_size = 64',
            r"grid.drop_path: .*no drop_path.*drop_path=0.1",
        ),
        ('size = "timm:test_vit"\npatch_size = 8', r"grid.patch_size: .*takes no patch_size.*patch_size=8"),
    ],
)
def test_what_no_timm_model_can_be_is_said_of_the_cell_when_it_is_planned(tmp_path, grid, message):
    with pytest.raises(StudyError, match=message):
        cells_of(study_of(tmp_path, f"[grid]\n{grid}\n"))


def test_models_are_named_at_any_size_of_image():
    words = ("models", "timm:test_resnet", "vit:S", "--image-size", "32", "--classes", "138")
    rows = {row["size"]: row for row in upshot_json(*words)["models"]}
    built = timm.create_model("test_resnet", num_classes=138)
    assert rows["test_resnet"]["params"] == sum(p.numel() for p in built.parameters())
    assert rows["S"]["patch_size"] == 4
    assert rows["S"]["source"] == "arXiv 2106.04560"
    printed = upshot("models")
    assert max(map(len, printed.splitlines())) <= 80
    assert "timm:NAME" in printed
    assert "unknown family 'vti'" in upshot("models", "vti:B", code=2)
    assert "unknown size 'C' for family 'vit'" in upshot("models", "vit:C", code=2)
    assert "name the model, such as timm:convnext_tiny" in upshot("models", "timm", code=2)


# --- a checkpoint of another model ---------------------------------------------------------------------------------

GIVEN = {
    0: ("another architecture", {"family": "resnet", "patch_size": None}, "family resnet there, vit here"),
    1: (
        "another number of classes",
        {"classes": 0.1},
        "the weights are of another model: only one of the two has head",
    ),
    2: ("another optimiser", {"optimizer": "adamw"}, "optimizer adamw there, sgd here"),
    3: ("no average", {"ema": 0.0}, "ema 0.0 there, 0.9 here"),
}


def bytes_under(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_checkpoint_of_another_cell_fails_its_cell_and_stays_as_it_is(tmp_path):
    axes = 'family = "vit"\nsize = "pico"\npatch_size = 8\nseed = [0, 1, 2, 3]\noptimizer = "sgd"\nema = 0.9'
    grid = f"[grid]\n{axes}\n{SHARED}"
    path = study_of(tmp_path, grid)
    store, before = Store(tmp_path / "small"), {}
    found = {cell.recipe.seed: cell for cell in cells_of(path)}
    for seed, (_, axes, _) in GIVEN.items():
        folder = store.checkpoints(found[seed].cell_id)
        train(found[seed].recipe.model_copy(update=axes), folder, num_checkpoints=1, log=lambda record: None)
        before[seed] = bytes_under(folder)
    upshot("submit", path, "--runs", tmp_path)
    assert "4 failed" in upshot("watch", path, "--runs", tmp_path, code=1)
    for seed, (_, _, said) in GIVEN.items():
        cell_id = found[seed].cell_id
        told = upshot("why", cell_id, path, "--runs", tmp_path)
        assert "CheckpointError" in told, told
        assert said in told
        assert {file: file.read_bytes() for file in store.checkpoints(cell_id).rglob("*") if file.is_file()} == before[
            seed
        ]
