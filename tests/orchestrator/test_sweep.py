"""W&B sweep definitions as study files."""

from pathlib import Path

import pytest

from models.errors import StudyError, UserError
from orchestrator.grid import cells
from orchestrator.study import AXES, load_study
from orchestrator.sweep import convert_sweep, nearest_axis
from tests.orchestrator.upshot_command import upshot

SWEEP = """
program: train.py
method: grid
name: my sweep, again
entity: team
project: vits
early_terminate: {type: hyperband}
parameters:
  family: {value: vit}
  size: {values: [pico, nano], distribution: categorical}
  lr: {values: [1e-3, 0.01]}
  patch_size: {value: 8, distribution: constant}
  flip: {values: [true, false]}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def test_a_grid_becomes_a_study_that_plans(sweep: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    printed = upshot("init", path, "--from-sweep", sweep, "--axis", "learning_rate=lr")
    assert "no place for them: program, early_terminate" in printed
    study = load_study(path).study
    assert study.grid == [
        {
            "family": ["vit"],
            "size": ["pico", "nano"],
            "learning_rate": [0.001, 0.01],  # YAML reads 1e-3 as a text
            "patch_size": [8],
            "flip": [True, False],
        }
    ]
    assert (study.name, study.wandb.entity, study.wandb.project) == ("my-sweep-again", "team", "vits")
    assert len(cells(study, path)) == 8
    assert "sweep" not in path.read_text().replace(study.name, "")
    assert "is there already" in upshot("init", path, "--from-sweep", sweep, "--axis", "learning_rate=lr", code=2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method: grid", "method: bayes", r"'bayes' given, only 'grid' can be a study.*chooses them\s+as it goes"),
        ("method: grid", "", "None given, only 'grid'"),
        ("{value: vit}", "{values: [vit, vot]}", "unknown value 'vot'.*Did you mean 'vit'"),
        ("{value: vit}", "{parameters: {a: {value: 1}}}", "parameters.family: nested parameters are no axis"),
        ("{value: vit}", "{min: 1, max: 2}", "is a range or a distribution; a grid needs `values"),
        ("{value: vit}", "{distribution: q_uniform, values: [vit]}", "is a range or a distribution"),
        ("{value: vit}", "{values: [vit], probabilities: [1]}", "probabilities: has no meaning"),
        ("{value: vit}", "{values: []}", "a list of one or more values"),
        ("{value: vit}", "{value: null}", "none of them null"),
        ("{value: vit}", "vit", "'vit' given, `value: V`"),
        ("family:", "momentum:", "parameters.momentum: no axis of a study"),
        ("  family: {value: vit}\n", "", "grid.family: is missing"),
        ("patch_size:", "learning_rate:", "two of them are the same axis"),
        ("parameters:", "parameters: {}\nothers:", "the sweep has none"),
        ("project: vits", "project: vits/1", r"wandb.project: .*'vits/1'"),
        ("program", "{", "cannot be read as YAML"),
    ],
)
def test_what_is_no_grid_of_axes_is_refused(sweep: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    sweep.write_text(SWEEP.replace(old, new))
    with pytest.raises(StudyError, match=message):
        convert_sweep(sweep, tmp_path / "study.toml", ["learning_rate=lr"])
    assert not (tmp_path / "study.toml").exists()


def test_a_parameter_of_another_name_is_told_how_to_be_mapped(sweep: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    with pytest.raises(StudyError, match=r"Did you mean 'learning_rate'. Then: --axis learning_rate=lr"):
        convert_sweep(sweep, path)
    with sweep.open("a") as file:
        file.write("  momentum: {value: 0.9}\n")
    with pytest.raises(StudyError, match=r"learning_rate=lr\n.*AXIS=momentum; if not.*\nThe axes: family"):
        convert_sweep(sweep, path)
    for renamed, message in (
        ("learning_rat=lr", "unknown axis 'learning_rat'"),
        ("learning_rate=lt", "unknown parameter 'lt' in .*Did you mean 'lr'"),
        ("lr", "write it as AXIS=PARAMETER"),
    ):
        with pytest.raises(UserError, match=message):
            convert_sweep(sweep, path, [renamed])


@pytest.mark.parametrize(
    ("name", "axis"),
    [("lr", "learning_rate"), ("WD", "weight_decay"), ("bs", "batch_size"), ("epoch", "epochs"), ("zzz", None)],
)
def test_the_nearest_axis(name: str, axis: str | None) -> None:
    assert nearest_axis(name) == axis


def test_every_axis_is_nearest_to_itself() -> None:
    assert [nearest_axis(axis) for axis in AXES] == list(AXES)


def test_a_sweep_that_is_not_there_or_no_table(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1]")
    for name, message in (("none.yaml", "there is no such sweep"), ("list.yaml", "is no sweep definition")):
        with pytest.raises(StudyError, match=message):
            convert_sweep(tmp_path / name, tmp_path / "study.toml")
    assert "cannot be written: No such file" in upshot("init", tmp_path / "no" / "s.toml", code=2)
    assert "--axis: belongs to --from-sweep" in upshot("init", tmp_path / "s.toml", "--axis", "a=b", code=2)
