"""What a page expects to be there before its first command, and which of its commands cannot run here, and why."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from PIL import Image

from models.data import load_images
from orchestrator.template import TEMPLATE
from tests.models.encoded import write_shards
from tests.orchestrator.pages import PAGES, ROOT
from tests.orchestrator.upshot_command import upshot
from tests.wandb_server import Run, WandbServer

STUDY = """
name = "limits-small"
[upstream]
dataset = "fashion"
[grid]
family = "resnet"
size = "pico"
fraction = [0.02, 0.6]  # of which one stays below and one comes above an upstream accuracy of 0.5, as README mixes them
batch_size = 32
learning_rate = 5e-3
seed = 143687  # which makes one of the ids begin with 3f2a, as README has it
[downstream]
tasks = ["digits", "patches"]
protocol = ["ridge", "linear"]
shots = [1, 5]
draws = 1
[wandb]
mode = "auto"
entity = "team"
project = "project"
"""


def readme(folder: Path, _server: WandbServer) -> None:
    """A small study in place of README's, which wants the cluster of README's profile, and a table to import.

    The two studies that are compared are copies of the finished one.
    """
    (folder / "study.toml").write_text(STUDY)
    finished = (folder / "runs" / "limits-small").rename(folder / "runs" / "a")
    shutil.copytree(finished, folder / "runs" / "b")
    (folder / "clip.csv").write_text("model,imagenet,pets,cars\na,.5,.6,.7\nb,.6,.7,.8\n")


def run_small_study(folder: Path) -> None:
    """Has the study file and the study folder, of one cell that one protocol has judged, in `folder`."""
    text = STUDY.replace('["ridge", "linear"]', '"ridge"').replace("[0.02, 0.6]", "0.6").replace('"auto"', '"disabled"')
    (folder / "study.toml").write_text(text)
    for command in ("submit", "watch"):
        upshot(command, cwd=folder, env={"UPSHOT_RUNS": None})


def tracking(folder: Path, server: WandbServer) -> None:
    """The study in the folder that the page calls it by, and runs of others at W&B."""
    (folder / "runs" / "NAME").symlink_to(folder / "runs" / "limits-small")
    for study in (folder / "study.toml", folder / "runs" / "limits-small" / "study.toml"):
        study.write_text(study.read_text().replace('"disabled"', '"online"'))
    for i in range(3):
        values = {"val/acc1": 50 + i, "fewshot/pets_5shot": 60.5 + i, "fewshot/cars_5shot": 40 + i}
        run = Run(f"run{i}", "team", "sweep", state="finished", summary=values)
        run.config = {"model": {"depth": "S"}, "lr": 0.1 * (i + 1)}
        server.runs[run.run_id] = run


def evaluation(folder: Path, _server: WandbServer) -> None:
    """A checkpoint where the page expects one."""
    (cell,) = (folder / "runs" / "limits-small" / "cells").glob("3f/3f2a*")
    (cell.parent / "3f2a").symlink_to(cell)
    (step,) = (cell / "checkpoints").glob("step_*")
    (cell / "checkpoints" / "step_00001000").symlink_to(step)


def tables(folder: Path, _server: WandbServer) -> None:
    for path in (ROOT / "tests" / "orchestrator" / "data" / "timm").glob("*.csv"):
        shutil.copy(path, folder)
    (folder / "clip.csv").write_text("model,imagenet,vtab_pets,cars\na,.5,.6,.7\nb,.6,.7,.8\n")
    rows = [f"{model},{data},.{i + 5},.{i + 6}" for i, model in enumerate("ab") for data in ("pets", "cars")]
    (folder / "long.csv").write_text("\n".join(["model,dataset,imagenet,accuracy", *rows]))


def two_tables(folder: Path, _server: WandbServer) -> None:
    """The same public models under two names."""
    tables(folder, _server)
    words = ["--id", "model,img_size", "--upstream", "results-imagenet:top1", "--downstream", "top1", "--percent"]
    for name in ("a", "b"):
        upshot("import", "results-imagenet.csv", "results-sketch.csv", *words, "-o", f"{name}.parquet", cwd=folder)


def imported(folder: Path, _printed: str) -> None:
    made = {path.stem: pl.read_parquet(path) for path in folder.glob("*.parquet")}
    assert set(made) == {"sketch", "timm", "clip", "long"}
    for name in ("clip", "long"):
        assert made[name]["task"].unique().sort().to_list() == ["cars", "pets"]
    assert (folder / "timm-report" / "index.html").exists()


def gallery(folder: Path, printed: str) -> None:
    """What the page shows of its reports is what they say, and it shows each."""
    page = PAGES["docs/gallery/README.md"]
    text = page.read_text()
    reports = {made.parent.name for made in folder.glob("*/index.html")}
    assert reports == {"timm-report", "larger-vs-imagenet-report", "r-vs-sketch-report"}
    pictures = re.findall(r"!\[.+\]\(([^)]+)\)", text)
    assert {f"{Path(name).stem}-report" for name in pictures} == reports
    assert all((page.parent / name).stat().st_size < 300_000 for name in pictures)
    summary = [line for line in text.splitlines() if line.startswith("|")]
    assert "\n".join(summary) in (folder / "timm-report/tables/summary.md").read_text()
    saturation = re.search(r"at (0\.\d+) \[(0\.\d+), (0\.\d+)\]", text)
    assert saturation
    assert [f"{float(cell):.3f}" for cell in summary[4].split("|")[6:9]] == list(saturation.groups())
    lies = re.search(r"its frontier lies (.*?) higher", text)
    assert lies
    assert lies[1] in printed
    for task in ("a", "real", "v2"):
        assert f"{task}: no difference can be told" in printed
    for task in ("r", "sketch"):
        assert f"{task}: the frontier of larger lies" in printed


def data(folder: Path, _server: WandbServer) -> None:
    write_shards(folder / "shards", kind="name")


def indexed(folder: Path, _printed: str) -> None:
    """What the page says of the two indices: both serve a study; a folder without a slash in its name is none."""
    for dataset in ("shards", "./index", "./shards/{00000..00009}.tar"):
        (folder / "study.toml").write_text(TEMPLATE.replace('"icons"', f'"{dataset}"'))
        expected = 2 if dataset == "shards" else 0
        told = upshot("plan", "--set", "grid.classes=[0.5,1.0]", cwd=folder, code=expected)
        assert "72 cells: 72 to submit" in told or "'./shards'" in told


def laptop(folder: Path, _server: WandbServer) -> None:
    """Photos of the reader's own: real images of three classes."""
    images = load_images("digits")
    for number, (image_HWC, label) in enumerate(zip(images.images_NHWC[:600], images.labels_N[:600], strict=True)):
        if label < 3:
            path = folder / "photos" / ("cats", "dogs", "owls")[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image_HWC.squeeze()).save(path)


def nothing(_folder: Path, _server: WandbServer) -> None:
    pass


OWN_INSTALLATION = "it makes an installation, and the tests run in one"
LARGE = "it judges a large model on 224 pixels; test_evaluate.py runs the same options with small ones"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a page is run: what is prepared, which lines are not run and why, which end with an exit code of their own.

    And whether a finished study is there, and a Slurm cluster.
    """

    prepare: Callable[[Path, WandbServer], None] = nothing
    not_run: Mapping[str, str] = field(default_factory=dict)
    exit_codes: Mapping[str, int] = field(default_factory=dict)
    of_a_finished_study: bool = False
    left_behind: Callable[[Path, str], None] = lambda _folder, _printed: None
    on_slurm: bool = False


WAYS: Mapping[str, Way] = {
    "README.md": Way(
        prepare=readme,
        of_a_finished_study=True,
        not_run={
            "make demo": OWN_INSTALLATION,
            "make test": OWN_INSTALLATION,
            "upshot doctor --profile cluster.toml": "it is about the cluster of the reader; "
            "docs/tutorial-cluster.md runs it on one",
        },
    ),
    "docs/clusters.md": Way(
        not_run={"python3 -m venv ~/envs/upshot-xla && ~/envs/upshot-xla/bin/pip install -e '.[xla]'": OWN_INSTALLATION}
    ),
    "docs/data.md": Way(prepare=data, left_behind=indexed),
    "docs/evaluation.md": Way(
        prepare=evaluation,
        of_a_finished_study=True,
        not_run={
            "upshot evaluate --timm vit_small_patch16_224.augreg_in21k --checkpoint vit_small.safetensors --task mnist "
            "--task digits --shots 1,5 --upstream-accuracy 0.81 --upstream-num-test 50000 "
            "--output public.parquet": LARGE,
            "upshot evaluate --timm convnext_tiny.fb_in1k --pretrained --task mnist --task digits --shots 1,5 "
            "--upstream imagenet/val --output public.parquet --append": LARGE,
        },
    ),
    "docs/comparing.md": Way(prepare=two_tables),
    "docs/gallery/README.md": Way(prepare=tables, left_behind=gallery),
    "docs/tables.md": Way(prepare=tables, left_behind=imported),
    "docs/tutorial-laptop.md": Way(
        prepare=laptop,
        not_run=dict.fromkeys(
            (
                "python3 -m venv ~/upshot-env",
                "~/upshot-env/bin/pip install .",
                ". ~/upshot-env/bin/activate",
            ),
            OWN_INSTALLATION,
        ),
    ),
    "docs/tutorial-cluster.md": Way(
        on_slurm=True,
        not_run={
            "python3 -m venv ~/envs/upshot": OWN_INSTALLATION,
            "~/envs/upshot/bin/pip install .": OWN_INSTALLATION,
            ". ~/envs/upshot/bin/activate": OWN_INSTALLATION,
            "upshot doctor --profile gpu.toml": "the private cluster has a GPU node on some machines alone",
        },
        exit_codes={"upshot doctor --profile tpu.toml": 1},
    ),
    "docs/tracking.md": Way(
        prepare=tracking, of_a_finished_study=True, not_run={'pip install "upshot[reports]"': OWN_INSTALLATION}
    ),
}
