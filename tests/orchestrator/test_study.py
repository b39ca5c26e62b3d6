import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.protocol import PROTOCOLS
from models.errors import StudyError
from models.recipe import Axes
from orchestrator.grid import cells, num_excluded
from orchestrator.identity import canonical_json, cell_id
from orchestrator.study import AXES, load_study
from orchestrator.template import write_template
from slurm.failures import Cause

STUDY = """
name = "small"
[upstream]
dataset = "icons"
[grid]
family = ["vit", "resnet"]
size = ["pico", "nano"]
fraction = [0.1, 1.0]
[downstream]
tasks = ["mnist", "digits"]
"""


def load(tmp_path, text=STUDY, sets=()):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return load_study(path, sets)


def load_cells(tmp_path, text, sets):
    file = load(tmp_path, text, sets)
    return cells(file.study, file.path)


def refusal(tmp_path, text=STUDY, sets=()):
    with pytest.raises(StudyError) as caught:
        load_cells(tmp_path, text, sets)
    message = str(caught.value)
    assert "study.toml" in message or "--set" in message
    return message


def test_every_combination_is_one_cell(tmp_path):
    file = load(tmp_path)
    found = cells(file.study, file.path)
    assert len({cell.cell_id for cell in found}) == len(found) == 8
    assert [(c.recipe.family, c.recipe.size, c.recipe.fraction) for c in found][:3] == [
        ("vit", "pico", 0.1),
        ("vit", "pico", 1.0),
        ("vit", "nano", 0.1),
    ]


def test_a_union_of_grids_is_the_cells_of_each(tmp_path):
    text = STUDY.replace("[grid]", "[[grid]]") + '\n[[grid]]\nfamily = "mixer"\nsize = "pico"\nepochs = [1, 2]\n'
    file = load(tmp_path, text)
    assert len(cells(file.study, file.path)) == 10


def test_excluded_combinations_are_left_out_and_counted(tmp_path):
    text = STUDY + '\n[[exclude]]\nfamily = "vit"\nsize = "nano"\n\n[[exclude]]\nfraction = [0.1]\nfamily = "resnet"\n'
    file = load(tmp_path, text)
    assert len(cells(file.study, file.path)) == 4
    assert num_excluded(file.study) == 4


def test_one_number_of_images_over_more_or_fewer_classes(tmp_path):
    sets = ["grid.fraction=1.0", "grid.images=[2000]", "grid.classes=[0.1, 1.0]"]
    found = load_cells(tmp_path, STUDY, sets)
    assert len({cell.cell_id for cell in found}) == len(found) == 8
    assert {(c.recipe.classes, c.recipe.images) for c in found} == {(0.1, 2000), (1.0, 2000)}


def test_a_number_of_images_that_cannot_be_had_is_refused_before_anything_runs(tmp_path):
    fits = ["grid.fraction=1.0", "grid.classes=[0.1, 1.0]"]
    message = refusal(tmp_path, sets=[*fits, "grid.images=20000"])
    assert re.search(
        r"upstream images of cell .*classes=0.1.*: images is 20000, but must be from 69 to \d{4}:", message
    )
    assert "images is 600, but must be from 688 to 42910" in refusal(tmp_path, sets=[*fits, "grid.images=600"])
    assert "give one" in refusal(tmp_path, sets=["grid.images=2000"])
    assert "grid.images" in refusal(tmp_path, sets=["grid.images=0"])


def test_a_default_axis_can_be_excluded_on(tmp_path):
    assert "grid: is empty" in refusal(tmp_path, STUDY + "\n[[exclude]]\nseed = 0\n")


def test_a_scalar_patch_size_is_for_those_that_have_patches(tmp_path):
    file = load(tmp_path, sets=["grid.patch_size=8"])
    assert {c.recipe.family: c.recipe.patch_size for c in cells(file.study, file.path)} == {"vit": 8, "resnet": None}


@pytest.mark.parametrize(
    ("sets", "field", "value"),
    [
        (["grid.epochs=[1, 2.5]"], "epochs", {1.0, 2.5}),
        (["grid.size=pico"], "size", {"pico"}),
        (["grid.seed=3"], "seed", {3}),
        (["grid.flip=[false, true]"], "flip", {False, True}),
        (["grid.ema=[0, 0.9]"], "ema", {0.0, 0.9}),
        (["grid.clip_norm=[0, 1.5]"], "clip_norm", {0.0, 1.5}),
        (["grid.head_weight_decay=[3.0]"], "head_weight_decay", {3.0}),
    ],
)
def test_overrides(tmp_path, sets, field, value):
    file = load(tmp_path, sets=sets)
    assert {getattr(cell.recipe, field) for cell in cells(file.study, file.path)} == value


def test_overrides_stand_in_the_text_that_is_kept(tmp_path):
    file = load(tmp_path, sets=["train.checkpoints=4"])
    again = tmp_path / "kept.toml"
    again.write_text(file.text)
    assert load_study(again).study.train.checkpoints == 4


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name = [", ["not valid TOML"]),
        (STUDY.replace("[downstream]", "[donwstream]"), ["donwstream", "Did you mean 'downstream'"]),
        (STUDY.replace("fraction", "fractoin"), ["grid.fractoin", "unknown axis", "Did you mean 'fraction'"]),
        (STUDY.replace('"nano"', '"nanno"'), ["grid.size", "nanno", "Did you mean 'nano'", "family 'vit'"]),
        (STUDY.replace('"resnet"', '"resnt"'), ["grid.family", "Did you mean 'resnet'"]),
        (STUDY.replace("[grid]", '[grid]\nschedule = "rsqr"'), ["grid.schedule", "Did you mean 'rsqrt'"]),
        (STUDY.replace("[grid]", "[grid]\nclip_norm = -1"), ["grid.clip_norm", "greater than or equal to 0"]),
        (STUDY.replace("[grid]", "[grid]\ndropout = 1"), ["grid.dropout", "less than 1"]),
        (STUDY.replace("[grid]", "[grid]\ndrop_path = -0.1"), ["grid.drop_path", "greater than or equal to 0"]),
        (STUDY.replace("[grid]", "[grid]\nflip = 1"), ["grid.flip", "valid boolean"]),
        (STUDY.replace("[grid]", "[grid]\nmixup = true"), ["grid.mixup", "True is not a value"]),
        (STUDY.replace("[grid]", "[grid]\nmixup = -1"), ["grid.mixup", "greater than or equal to 0"]),
        (STUDY.replace("[grid]", "[grid]\nema = 1.0"), ["grid.ema", "less than 1"]),
        (STUDY.replace("[grid]", "[grid]\nwarmup = 1.5"), ["grid: warmup is 1.5", "a number of epochs", "In cell"]),
        (STUDY.replace('"mnist"', '"mnst"'), ["downstream.tasks", "Did you mean 'mnist'"]),
        (STUDY.replace('"icons"', '"icon"'), ["upstream.dataset", "Did you mean 'icons'"]),
        (STUDY + "[train]\ncheckpoint = 2\n", ["train.checkpoint", "Did you mean 'checkpoints'"]),
        (STUDY + '[wandb]\nmode = "ofline"\n', ["wandb.mode", "Did you mean 'offline'"]),
        (STUDY + "[retry]\nnode_failures = 3\n", ["retry.node_failures", "Did you mean 'node_failure'"]),
        (STUDY + "[retry]\noom = -1\n", ["retry.oom", "-1"]),
        (STUDY + '[retry]\noom = "often"\n', ["retry.oom", "often"]),
        (STUDY + "[retry]\nstop_after = 0\n", ["retry.stop_after", "0"]),
        (STUDY + "[cluster]\npack = 0\n", ["cluster.pack", "0"]),
        (STUDY + '[cluster]\npack = "all"\n', ["cluster.pack", "all"]),
        (STUDY + "[cluster]\naccelerators = 0\n", ["cluster.accelerators", "0"]),
        (STUDY + "[[cluster.place]]\npartition = 'a'\n", ["cluster.place.where", "write the cells"]),
        (
            STUDY + "[[cluster.place]]\npartition = 'a'\nwhere = {famly = 'vit'}\n",
            ["cluster.place.where.famly", "Did you mean 'family'"],
        ),
        (STUDY + "[[cluster.place]]\nwhere = {family = 'vit'}\n", ["cluster.place.0.partition", "missing"]),
        (STUDY.replace("[0.1, 1.0]", "[]"), ["grid.fraction", "the grid is empty"]),
        (STUDY.replace("[0.1, 1.0]", "[0.1, 1.5]"), ["grid.fraction", "less than or equal to 1", "1.5"]),
        (STUDY.replace("[0.1, 1.0]", "[0.1, nan]"), ["grid.fraction", "nan"]),
        (STUDY.replace("[0.1, 1.0]", '["a"]'), ["grid.fraction", "'a'"]),
        (STUDY.replace("[0.1, 1.0]", "[true]"), ["grid.fraction"]),
        (STUDY.replace("[0.1, 1.0]", "[0.1, 0.1]"), ["grid.fraction", "twice"]),
        (STUDY.replace("[grid]", "[grid]\npatch_size = 7"), ["grid.patch_size", "7", "32", "family=vit"]),
        (STUDY.replace('family = ["vit", "resnet"]\n', ""), ["grid.family", "missing"]),
        (STUDY.replace('name = "small"', 'name = "../up"'), ["name"]),
        (STUDY.replace('name = "small"', ""), ["name", "missing"]),
        (STUDY.replace("[grid]", "[other]"), ["grid: is empty"]),
        (
            STUDY.replace("[grid]", "[[grid]]") + '[[grid]]\nfamily = "vit"\nsize = "pico"\n',
            ["grid[1]", "grid[0]", "twice"],
        ),
    ],
)
def test_refusals_name_the_key_and_the_nearest_known_name(tmp_path, text, parts):
    message = refusal(tmp_path, text)
    for part in parts:
        assert part in message


def test_a_cell_is_placed_by_the_first_place_that_fits_it(tmp_path):
    text = (
        STUDY
        + """
[cluster]
partition = "rest"
[[cluster.place]]
partition = "tpu"
where = {family = "vit", fraction = [1.0]}
[[cluster.place]]
partition = "large"
where = {fraction = [0.1, 1.0], size = "nano"}
"""
    )
    file = load(tmp_path, text)
    placed = {
        (cell.recipe.family, cell.recipe.size, cell.recipe.fraction): file.study.cluster.partition_of(cell.recipe)
        for cell in cells(file.study, file.path)
    }
    assert placed == {
        ("vit", "pico", 0.1): "rest",
        ("vit", "pico", 1.0): "tpu",
        ("vit", "nano", 0.1): "large",
        ("vit", "nano", 1.0): "tpu",
        ("resnet", "pico", 0.1): "rest",
        ("resnet", "pico", 1.0): "rest",
        ("resnet", "nano", 0.1): "large",
        ("resnet", "nano", 1.0): "large",
    }


def test_where_and_how_cells_run_does_not_change_them(tmp_path):
    more = "[retry]\noom = 0\n[cluster]\npack = 7\naccelerators = 4\nevaluate_partition = 'cpu'\n"
    assert load_cells(tmp_path, STUDY + more, ()) == load_cells(tmp_path, STUDY, ())


def test_a_budget_is_a_number_or_free(tmp_path):
    budgets = load(tmp_path, STUDY + '[retry]\noom = 0\nkilled = "free"\nlaunch_failure = 7\n').study.retry.budgets
    assert (budgets[Cause.OUT_OF_MEMORY], budgets[Cause.KILLED], budgets[Cause.LAUNCH_FAILURE]) == (0, None, 7)
    assert budgets[Cause.CODE_ERROR] == budgets[Cause.DEPENDENCY] == 0


@pytest.mark.parametrize("override", ["grid", "=3", "grid.size.x=1"])
def test_malformed_overrides(tmp_path, override):
    assert "--set" in refusal(tmp_path, sets=[override])


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(StudyError, match="upshot init"):
        load_study(tmp_path / "none.toml")


def test_a_path_of_a_user_that_is_not_there_is_an_error_in_words(tmp_path):
    message = refusal(tmp_path, STUDY.replace('"icons"', '"~nobody-of-this-name/photos"'))
    assert "study.toml: ~nobody-of-this-name/photos: there is no such user" in message


def test_relative_paths_are_seen_from_the_study_file(tmp_path):
    text = STUDY.replace('"icons"', '"./pictures"') + '[cluster]\nprofile = "mini.toml"\n'
    study = load(tmp_path, text).study
    assert study.upstream.dataset == str(tmp_path / "pictures")
    assert study.cluster.profile == str(tmp_path / "mini.toml")


def test_the_template_is_a_study(tmp_path):
    file = load_study(write_template(tmp_path / "new.toml"))
    assert len(cells(file.study, file.path)) == 36
    with pytest.raises(StudyError, match="is there already"):
        write_template(tmp_path / "new.toml")


def test_every_protocol_can_be_asked_for(tmp_path):
    for name in PROTOCOLS:
        (protocol,) = load(tmp_path, sets=[f"downstream.protocol={name}"]).study.protocols
        assert protocol.name == name


def test_protocols_stand_in_the_order_of_the_file_with_the_shots_that_they_have(tmp_path):
    sets = ['downstream.protocol=["linear","ridge","scenic"]', "downstream.shots=[5,1]", "downstream.draws=2"]
    linear, ridge, scenic = load(tmp_path, sets=sets).study.protocols
    assert (linear.name, linear.shots, linear.draws, linear.layers) == ("linear", (), 1, "last")
    assert (ridge.name, ridge.shots, ridge.draws, ridge.layers) == ("ridge", (1, 5), 2, "all")
    assert (scenic.name, scenic.shots, scenic.draws) == ("scenic", (1, 5), 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('downstream.protocol=["ridge","logistik"]', "downstream.protocol: unknown protocol 'logistik'.*'logistic'"),
        ("downstream.protocol=rigde", "downstream.protocol: unknown protocol 'rigde'.*Did you mean 'ridge'"),
        ('downstream.protocol=["knn","ridge","knn"]', "downstream.protocol: 'knn' stands there twice"),
        ("downstream.protocol=[]", "downstream.protocol: .*at least 1 item"),
        ("downstream.protocol=[3]", "downstream.protocol.0: "),
        (
            "downstream.upstream=by_clas",
            r"^\S+: downstream.upstream: .*: by_class, true, false\).*'by_class'\?$",
        ),
        ("downstream.upstream=7", r"downstream.upstream: unknown value 7 \(known: by_class, true, false\)"),
    ],
)
def test_a_wrong_choice_of_evaluations_says_what_there_is(tmp_path, given, said):
    with pytest.raises(StudyError, match=said):
        load(tmp_path, sets=[given])


def test_cell_ids_never_change(tmp_path):
    # These ids name folders of studies that people have: a change here loses their results.
    file = load(tmp_path)
    assert [cell.cell_id for cell in cells(file.study, file.path)][:2] == PINNED


PINNED = ["5a9ba3c855dd1fec", "c393a7cb38da840c"]


def test_cell_id_covers_every_axis(tmp_path):
    file = load(tmp_path)
    recipe = cells(file.study, file.path)[0].recipe
    other = {
        "family": "mixer", "size": "nano", "fraction": 0.5, "classes": 0.5, "images": 500, "epochs": 2.0,
        "batch_size": 64, "image_size": 64, "patch_size": 8, "optimizer": "sgd", "learning_rate": 0.5,
        "weight_decay": 0.5,
        "head_learning_rate": 0.5, "head_weight_decay": 0.5, "warmup": 0.5, "schedule": "linear",
        "clip_norm": 1.0,
        "label_smoothing": 0.5, "dropout": 0.5, "drop_path": 0.5,
        "flip": True, "mixup": 0.5, "crop": 0.5, "augreg": "light1", "ema": 0.5, "precision": "bfloat16", "seed": 1,
    }  # fmt: skip
    assert set(other) == set(AXES)
    ids = {cell_id(recipe.model_copy(update={axis: value})) for axis, value in other.items()}
    assert len(ids | {cell_id(recipe)}) == len(AXES) + 1


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()))
def test_canonical_json_ignores_order(values):
    assert canonical_json(values) == canonical_json(dict(reversed(values.items())))


@pytest.mark.parametrize("value", [{1.0, 2.0}, object(), float("nan"), float("inf")])
def test_values_without_stable_bytes_are_refused(value):
    with pytest.raises((TypeError, ValueError)):
        canonical_json({"axis": value})


def test_integers_and_floats_make_the_same_cell(tmp_path):
    one, same = (load(tmp_path, sets=[f"grid.epochs={text}"]) for text in ("1", "1.0"))
    assert [c.cell_id for c in cells(one.study, one.path)] == [c.cell_id for c in cells(same.study, same.path)]


def test_every_axis_is_described_by_its_model():
    assert set(AXES) == set(Axes.model_fields)
