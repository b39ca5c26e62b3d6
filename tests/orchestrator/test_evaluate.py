"""Small timm models, truly trained, as public ones: from files to the reduced table.

Shape suffixes: B images, C classes, D features, H and W pixels, N images.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torch.nn import functional
from typer.main import get_command

from evals.datasets import load_task
from evals.external import NO_UPSTREAM
from evals.fewshot import LAMBDAS, draw_shots
from evals.runner import Backbone, Subject, evaluate_checkpoint
from models.checkpoint import finalised_steps, read_json, step_folder
from models.data import load_images, split
from models.errors import CorruptCheckpointError, DataError, UserError
from models.prepare import recipe_architecture
from models.train import load_model, train
from orchestrator.cli import app
from orchestrator.evaluating import Published, add_rows, asked_for, evaluate_folder, evaluate_timm, summary
from orchestrator.reduce import reduce_study
from orchestrator.report import report_table
from orchestrator.results import SCHEMA, read_results
from orchestrator.study import load_study
from tests.evals.probing import probe
from tests.models.stored_images import examples, write_folder
from tests.models.test_train import recipe
from tests.orchestrator.upshot_command import upshot

ROOT = Path(__file__).parents[2]
SIZE = 32
MODELS = ("test_convnext", "test_resnet", "test_byobnet", "test_efficientnet", "test_vit")
ASKED = asked_for(["mnist", "digits"], ["ridge"], "1,5", 2, "all")
IMAGENET = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def transformed(model, images_NHWC):
    """What timm feeds this model, image by image."""
    transform = create_transform(**resolve_model_data_config(model, {"img_size": SIZE}), is_training=False)
    return torch.stack([transform(Image.fromarray(image_HWC).convert("RGB")) for image_HWC in images_NHWC[..., 0]])


def trained(name, steps, number):
    """A classifier of fashion's ten classes, for so many steps."""
    torch.manual_seed(number)
    options = {"img_size": SIZE} if "vit" in name else {}
    model = timm.create_model(name, num_classes=10, **options)
    images = load_images("fashion")
    part = np.random.default_rng(0).permutation(split(images)[0])[: 32 * steps]
    x_NCHW, y_N = transformed(model, images.images_NHWC[part]), torch.from_numpy(images.labels_N[part])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for at in range(0, len(part), 32):
        optimizer.zero_grad()
        functional.cross_entropy(model(x_NCHW[at : at + 32]), y_N[at : at + 32]).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """(models by name, files by name), some files as training programs write them."""
    folder = tmp_path_factory.mktemp("public")
    models = {name: trained(name, 4 + 6 * number, number) for number, name in enumerate(MODELS)}
    files = {}
    for number, (name, model) in enumerate(models.items()):
        files[name] = folder / f"{name}{('.safetensors', '.pth', '.pt')[number % 3]}"
        weights = model.state_dict()
        if number % 3 == 0:
            save_file(weights, files[name])
        else:
            torch.save({"state_dict_ema": weights, "state_dict": {"not": torch.ones(1)}}, files[name])
    return models, files


@pytest.fixture(scope="module")
def table(public, tmp_path_factory):
    """One table of them all."""
    path = tmp_path_factory.mktemp("table") / "public.parquet"
    for name, file in public[1].items():
        rows = evaluate_timm(name, weights=file, image_size=SIZE, cell_id=name, asked=ASKED, upstream="fashion")
        assert add_rows(rows, path, append=True) == 0
    return path


def evaluated(public, name="test_vit", asked=ASKED, upstream=None, **options):
    options = {"cell_id": name, "image_size": SIZE} | options
    return evaluate_timm(name, weights=public[1][name], asked=asked, upstream=upstream, **options)


# --- the table -----------------------------------------------------------------------------------------------------


def test_a_mean_over_fewer_draws_than_asked_for_is_not_told() -> None:
    cell = dict.fromkeys(SCHEMA) | {"cell_id": "a", "protocol": "finetune", "shots": 5, "last_layer": True}
    found = [("mnist", 0.5, NO_UPSTREAM), ("mnist", None, "diverged"), ("digits", 0.5, None), ("digits", 0.7, None)]
    rows = [cell | {"task": task, "downstream_accuracy": a, "reason": why} for task, a, why in found]
    told = summary(pl.DataFrame(rows, schema=SCHEMA))["tasks"]
    assert [(t["downstream_accuracy"], t["reason"]) for t in told] == [(None, "diverged"), (pytest.approx(0.6), None)]


def test_public_models_make_a_table_that_reduces(table, public):
    rows = pl.read_parquet(table)
    assert dict(rows.schema) == SCHEMA
    assert rows["cell_id"].unique().sort().to_list() == sorted(MODELS)
    assert set(rows.select("family", "size", "image_size").rows()) == {("timm", name, SIZE) for name in MODELS}
    assert rows["flops"].is_null().all()
    params = dict(rows.select("cell_id", "params").unique().iter_rows())
    assert params == {name: sum(p.numel() for p in model.parameters()) for name, model in public[0].items()}
    reduced = reduce_study(read_results(table))
    assert [(task["task"], task["shots"], task["n"]) for task in reduced["tasks"]] == [
        (task, shots, len(MODELS)) for task in ("digits", "mnist") for shots in (1, 5)
    ]
    hull = {cell["cell_id"] for task in reduced["tasks"] for cell in task["hull"]}
    assert hull <= set(MODELS)
    assert max(cell["downstream"] for task in reduced["tasks"] for cell in task["hull"]) > 0.5


def test_the_report_of_public_models_is_written(table, tmp_path):
    shutil.copy(table, tmp_path / "public.parquet")
    page = report_table(tmp_path / "public.parquet", draws=20).read_text()
    assert all(name in page for name in MODELS)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_the_upstream_accuracy_is_that_of_the_models_own_head_on_images_as_it_wants_them(public, table, name):
    model = public[0][name]
    images = load_images("fashion")
    test = split(images)[1]
    y_N = torch.from_numpy(images.labels_N[test])
    with torch.no_grad():
        logits_NC = model(transformed(model, images.images_NHWC[test]))
    rows = pl.read_parquet(table).filter(pl.col("cell_id") == name)
    measured = rows.select("upstream_accuracy", "upstream_loss", "upstream_num_test", "upstream_num_classes").unique()
    ((accuracy, loss, num_test, num_classes),) = measured.rows()
    assert (num_test, num_classes) == (len(test), 10)
    assert accuracy == pytest.approx(float((logits_NC.argmax(1) == y_N).double().mean()), abs=1.5 / len(test))
    assert loss == pytest.approx(float(functional.cross_entropy(logits_NC, y_N)), abs=1e-4)
    assert accuracy > 0.2  # guessing gets 0.1


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet"])
def test_downstream_accuracies_are_those_of_features_of_images_as_the_model_wants_them(public, table, name):
    """Against features that timm's own transform and the model that was saved give."""
    model, data = public[0][name], load_task("digits")

    def features(images_NHWC):
        with torch.no_grad():
            return model.forward_head(model.forward_features(transformed(model, images_NHWC)), pre_logits=True).numpy()

    test_ND = features(data.test.images_NHWC)
    rows = pl.read_parquet(table).filter(pl.col("cell_id") == name, pl.col("task") == "digits", "last_layer")
    for row in rows.iter_rows(named=True):
        index_N = draw_shots("digits", data.train.labels_N, classes=data.classes, shots=row["shots"], draw=row["draw"])
        expected = probe(
            features(data.train.images_NHWC[index_N]),
            data.train.labels_N[index_N],
            test_ND,
            data.test.labels_N,
            num_classes=10,
            lambdas=LAMBDAS,
        )
        assert row["downstream_accuracy"] == pytest.approx(expected.accuracy, abs=3 / len(test_ND))


def test_the_weights_of_the_file_are_what_is_judged(public, table):
    asked = asked_for(["digits"], ["ridge"], "5", 1, "last")
    fresh = timm.create_model("test_vit", num_classes=10, img_size=SIZE).state_dict()
    file = public[1]["test_vit"].with_name("fresh.safetensors")
    save_file(fresh, file)
    other = evaluate_timm("test_vit", weights=file, image_size=SIZE, cell_id="fresh", asked=asked, upstream=None)
    same = evaluated(public, asked=asked)
    key = (
        pl.col("cell_id") == "test_vit",
        pl.col("task") == "digits",
        pl.col("shots") == 5,
        pl.col("draw") == 0,
        "last_layer",
    )
    there = pl.read_parquet(table).filter(*key)["downstream_accuracy"].item()
    assert same["downstream_accuracy"].item() == there != other["downstream_accuracy"].item()


def test_a_published_upstream_accuracy_is_taken_over_and_an_unknown_one_has_a_reason(public, tmp_path):
    asked = asked_for(["digits"], ["ridge"], "1", 1, "last")
    given = evaluated(public, asked=asked, upstream=Published(accuracy=0.81, num_test=50_000))
    assert given.select("upstream_accuracy", "upstream_num_test", "reason").row(0) == (0.81, 50_000, None)
    unknown = evaluated(public, asked=asked)
    assert unknown.select("upstream_accuracy", "reason").row(0) == (
        None,
        "the upstream accuracy of this model was not given",
    )
    assert unknown["downstream_accuracy"].item() == given["downstream_accuracy"].item()
    add_rows(unknown, tmp_path / "r.parquet", append=False)
    (task,) = reduce_study(read_results(tmp_path / "r.parquet"))["tasks"]
    assert task["dropped"] == {"the upstream accuracy of this model was not given": 1}
    with pytest.raises(UserError, match="81 given; a fraction"):
        Published(accuracy=81)


def test_a_set_of_another_number_of_classes_measures_no_head(public):
    with pytest.raises(DataError, match="its head has 10 classes, icons has"):
        evaluated(public, upstream="icons")


def test_the_held_out_images_of_a_folder_are_measured_one_by_one(public, tmp_path):
    images = load_images("fashion")
    test = np.sort(np.random.default_rng(0).permutation(split(images)[1])[:60])
    for part, index_N in (("train", test), ("val", test)):
        for index in index_N:
            folder = tmp_path / part / f"{images.labels_N[index]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images_NHWC[index, ..., 0]).save(folder / f"{index}.png")
    rows = evaluated(public, asked=asked_for(["digits"], ["ridge"], "1", 1, "last"), upstream=str(tmp_path))
    with torch.no_grad():
        logits_NC = public[0]["test_vit"](transformed(public[0]["test_vit"], images.images_NHWC[test]))
    hits = int((logits_NC.argmax(1).numpy() == images.labels_N[test]).sum())
    assert rows.select("upstream_accuracy", "upstream_num_test").row(0) == (hits / 60, 60)


# --- adding --------------------------------------------------------------------------------------------------------


def test_a_cell_that_is_there_is_replaced_and_others_stay(table, public, tmp_path):
    path = tmp_path / "t.parquet"
    shutil.copy(table, path)
    rows = evaluated(public, asked=asked_for(["digits"], ["ridge"], "1", 1, "last"), upstream=Published(accuracy=0.5))
    before = pl.read_parquet(table)
    assert add_rows(rows, path, append=True) == before.filter(pl.col("cell_id") == "test_vit").height
    after = pl.read_parquet(path)
    assert after.filter(pl.col("cell_id") == "test_vit").equals(rows)
    assert after.filter(pl.col("cell_id") != "test_vit").equals(before.filter(pl.col("cell_id") != "test_vit"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"]


def test_nothing_is_written_over_unasked(table, tmp_path):
    rows = pl.read_parquet(table)
    with pytest.raises(UserError, match="is there already: --append adds to it"):
        add_rows(rows, table, append=False)
    with pytest.raises(UserError, match=r"a results table is a \.parquet file"):
        add_rows(rows, tmp_path / "t.csv", append=False)
    published = tmp_path / "published.parquet"
    rows.select("cell_id", "task", "upstream_accuracy", "downstream_accuracy").write_parquet(published)
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(table.read_bytes()[:1000])
    other = tmp_path / "other.parquet"
    rows.with_columns(step=pl.lit("the last")).write_parquet(other)
    for path, message in (
        (published, "no column protocol, layer"),
        (torn, "no results table"),
        (other, "another kind"),
    ):
        content = path.read_bytes()
        with pytest.raises(DataError, match=message):
            add_rows(rows.filter(pl.col("cell_id") == "test_vit"), path, append=True)
        assert path.read_bytes() == content


def test_a_table_of_fewer_columns_gets_the_new_ones(table, tmp_path):
    rows = pl.read_parquet(table)
    path = tmp_path / "old.parquet"
    rows.drop("method", "ema").write_parquet(path)
    new = rows.filter(pl.col("cell_id") == "test_vit").with_columns(cell_id=pl.lit("new"))
    assert add_rows(new, path, append=True) == 0
    joined = pl.read_parquet(path)
    assert joined.filter(pl.col("cell_id") == "new")["method"].null_count() == 0
    assert joined.filter(pl.col("cell_id") != "new")["method"].null_count() == rows.height


ADD = """
import sys
from pathlib import Path
import polars as pl
from orchestrator.evaluating import add_rows
for number in range(3):
    rows = pl.read_parquet("one.parquet").with_columns(cell_id=pl.lit(f"cell {sys.argv[1]} {number}"))
    add_rows(rows, Path("t.parquet"), append=True)
"""


def test_several_processes_add_to_one_table(table, tmp_path):
    pl.read_parquet(table).filter(pl.col("cell_id") == "test_vit").write_parquet(tmp_path / "one.parquet")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([sys.executable, "-c", ADD, str(number)], cwd=tmp_path, env=environment) for number in range(3)
    ]
    assert [process.wait() for process in started] == [0, 0, 0]
    cells = pl.read_parquet(tmp_path / "t.parquet")["cell_id"].unique().sort().to_list()
    assert cells == [f"cell {process} {number}" for process in range(3) for number in range(3)]


# --- a checkpoint of a study ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """(recipe, the newest checkpoint, below a cell's folder)."""
    folder = tmp_path_factory.mktemp("cells") / "ab" / "ab12"
    wanted = recipe(fraction=0.05)
    train(wanted, folder / "checkpoints", num_checkpoints=1, log=lambda _: None)
    (folder / "cell.json").write_text(json.dumps({"cell_id": "ab12", **wanted.model_dump()}))
    return wanted, step_folder(folder / "checkpoints", finalised_steps(folder / "checkpoints")[-1])


def test_a_checkpoint_of_a_study_is_judged_as_in_it(cell, tmp_path):
    wanted, folder = cell
    rows = evaluate_folder(folder, cell_id=None, asked=ASKED)
    metrics = read_json(folder / "metrics.json")
    arch = recipe_architecture(wanted, metrics["upstream_num_classes"])
    written = evaluate_checkpoint(
        folder,
        tmp_path,
        Subject(cell_id="ab12", backbone=Backbone.of(arch), checkpoint=metrics),
        tasks=ASKED.tasks,
        protocols=ASKED.protocols,
        load_model=load_model(arch),
    )
    expected = pl.concat(pl.read_parquet(path) for path in written)
    assert rows.select(expected.columns).equals(expected)
    assert rows.select("family", "size", "fraction", "epochs", "seed").unique().rows() == [
        ("vit", "pico", 0.05, wanted.epochs, wanted.seed)
    ]
    assert rows["last_checkpoint"].all()


def test_away_from_its_study_it_needs_a_name_and_tells_what_it_is(cell, tmp_path):
    folder = shutil.copytree(cell[1], tmp_path / "elsewhere")
    asked = asked_for(["digits"], ["ridge"], "1", 1, "last")
    with pytest.raises(UserError, match="lies outside its study, so that its cell is not known: give it a --name"):
        evaluate_folder(folder, cell_id=None, asked=asked)
    rows = evaluate_folder(folder, cell_id="mine", asked=asked)
    assert rows.select("cell_id", "family", "size", "image_size", "fraction").row(0) == (
        "mine",
        "vit",
        "pico",
        32,
        None,
    )
    here = evaluate_folder(cell[1], cell_id=None, asked=asked)
    assert rows["downstream_accuracy"].item() == here["downstream_accuracy"].item()
    (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CorruptCheckpointError, match="missing or torn"):
        evaluate_folder(folder, cell_id="mine", asked=asked)
    (folder / "DONE").unlink()
    with pytest.raises(CorruptCheckpointError, match="no checkpoint: there is no DONE in it"):
        evaluate_folder(folder, cell_id="mine", asked=asked)


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_evaluates_and_adds(public, cell, tmp_path):
    file = public[1]["test_convnext"]
    common = ("--task", "digits", "--shots", "1,5", "--draws", "1", "--layers", "last", "-o", "r.parquet")
    said = upshot(
        "evaluate", "--timm", "test_convnext", "--checkpoint", file, "--image-size", SIZE, "--upstream-accuracy", "0.4",
        "--upstream-num-test", "1000", *common, cwd=tmp_path,
    )  # fmt: skip
    assert "2 rows of test_convnext in r.parquet\nupstream accuracy: 0.4000\ndigits, ridge, 1 shot: 0." in said
    assert "next: upshot reduce r.parquet" in said
    told = json.loads(upshot("evaluate", cell[1], *common, "--append", "--json", cwd=tmp_path))
    assert (told["cell_id"], told["rows"], told["replaced"]) == ("ab12", 2, 0)
    rows = pl.read_parquet(tmp_path / "r.parquet")
    assert [task["downstream_accuracy"] for task in told["tasks"]] == rows.filter(pl.col("cell_id") == "ab12")[
        "downstream_accuracy"
    ].to_list()
    assert rows["cell_id"].unique().sort().to_list() == ["ab12", "test_convnext"]


REFUSED = [
    (("--timm", "test_vit"), "give one of the two"),
    (("--timm", "test_vit", "--checkpoint", "a.pth", "--pretrained"), "give one of the two"),
    ((), "give either --timm NAME or the checkpoint folder"),
    (("folder", "--timm", "test_vit"), "give either --timm NAME or the checkpoint folder"),
    (("folder", "--pretrained"), "has its own: leave --pretrained out"),
    (("folder", "--upstream-accuracy", "0"), "has its own: leave --upstream-accuracy out"),
    (("--timm", "test_vit", "--checkpoint", "a.pth"), "a.pth: cannot be read"),
    (("--timm", "test_vit", "--pretrained", "--upstream-num-test", "5"), "no --upstream-accuracy is given"),
    (
        ("--timm", "test_vit", "--pretrained", "--upstream", "icons", "--upstream-accuracy", "1"),
        "measures the accuracy",
    ),
    (("--timm", "test_vit", "--pretrained", "--upstream-accuracy", "76"), "76 given; a fraction"),
    (("--timm", "test_vit", "--pretrained", "--shots", "1;5"), "whole numbers separated by commas"),
    (("--timm", "test_vit", "--pretrained", "--layers", "first"), "all or last is wanted"),
    (("--timm", "test_vit", "--pretrained", "--protocol", "rigde"), "Did you mean 'ridge'?"),
    (("--timm", "test_vit", "--pretrained", "-o", "a.csv"), "a results table is a .parquet file"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_makes_no_sense_is_refused(words, message, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["evaluate", *words, "--task", "digits"])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_tasks_are_asked_for_by_known_names():
    with pytest.raises(UserError, match="--task: none given"):
        asked_for([], ["ridge"], "1", 1, "all")
    with pytest.raises(UserError, match="unknown task 'mnits'"):
        asked_for(["mnits"], ["ridge"], "1", 1, "all")


def test_tasks_that_are_paths_have_the_names_that_a_study_gives_them(tmp_path, monkeypatch):
    """Rows of both are of one task, and their draws are the same."""
    write_folder(tmp_path / "photos", examples(100))
    monkeypatch.chdir(tmp_path)
    asked = asked_for(["./photos", "digits", "photos/../photos"], ["ridge"], "1", 1, "all")
    study = tmp_path / "study.toml"
    study.write_text(
        'name = "s"\nupstream = {dataset = "icons"}\ngrid = {family = "vit", size = "pico"}\n'
        '[downstream]\ntasks = ["./photos", "digits", "photos/../photos"]\n'
    )
    assert list(asked.tasks) == load_study(study).study.downstream.tasks


def test_every_option_is_on_the_page_on_evaluation():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    options = {option for parameter in get_command(app).commands["evaluate"].params for option in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= set(re.findall(r"--[a-z-]+", page))
