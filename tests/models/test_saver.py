"""Checkpoints that are written while training goes on."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file

from models import saver
from models.build import build_model
from models.checkpoint import finalised_steps, load_checkpoint, save_checkpoint, step_folder
from models.distributed import World
from models.optim import make_optimizer
from models.prepare import recipe_architecture
from models.recipe import Recipe
from models.saver import Saver
from models.train import train
from tests.models.worlds import recipe


@pytest.fixture
def kept():
    """A small model with its optimiser, after one step."""
    wanted = Recipe.model_validate(recipe())
    model = build_model(recipe_architecture(wanted, 10))
    optimizer = make_optimizer(model, wanted)
    model(torch.zeros(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "state": {}, "metrics": {}}


@pytest.fixture
def held_up(monkeypatch):
    """Writing waits until it is let go on."""
    go_on = threading.Event()

    def waiting(snapshot):
        go_on.wait(60)
        return save_checkpoint(snapshot)

    monkeypatch.setattr(saver, "save_checkpoint", waiting)
    return go_on


def saving(folder, log=lambda _: None):
    return Saver(folder, World.alone(), log, sharded=False)


def test_what_is_written_is_what_was_there_when_it_was_asked_for(tmp_path, kept, held_up):
    before = {name: tensor.clone() for name, tensor in kept["model"].state_dict().items()}
    logged = []
    with saving(tmp_path, logged.append) as now:
        now.save(1, {"event": "checkpoint", "step": 1}, **kept)
        with torch.no_grad():
            for parameter in kept["model"].parameters():
                parameter.fill_(7.0)
        now.log({"event": "train", "step": 2})
        assert (now.is_writing, logged, finalised_steps(tmp_path)) == (True, [], [])
        held_up.set()
        now.settle()
        assert (now.is_writing, finalised_steps(tmp_path)) == (False, [1])
        assert [record["event"] for record in logged] == ["checkpoint", "train"]
        written = load_file(step_folder(tmp_path, 1) / "weights.safetensors")
        assert all(torch.equal(written[name], tensor) for name, tensor in before.items())
        now.save(2, {"event": "checkpoint", "step": 2}, **kept)
    assert finalised_steps(tmp_path) == [1, 2]
    assert all((t == 7).all() for n, t in load_file(step_folder(tmp_path, 2) / "weights.safetensors").items())
    assert not list(tmp_path.glob(".draft-*"))


def test_an_error_of_the_loop_waits_for_what_is_being_written(tmp_path, kept, held_up):
    logged = []

    def fail():
        with saving(tmp_path, logged.append) as now:
            now.save(1, {"event": "checkpoint", "step": 1}, **kept)
            threading.Timer(0.1, held_up.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert finalised_steps(tmp_path) == [1]
    assert logged == [{"event": "checkpoint", "step": 1}]


def test_only_the_newest_to_resume_from_is_kept_and_a_numbered_one_takes_its_place(tmp_path, kept):
    with saving(tmp_path) as now:
        for step in (1, 2):
            now.save_to_resume(step, **kept)
        now.settle()
        assert finalised_steps(tmp_path / "resume") == [2]
        now.save(3, {}, **kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003"]


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of so many bytes."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()

    def made(size):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this machine does not let a tmpfs be mounted")
        return disk

    yield made
    subprocess.run(["umount", str(disk)], check=False)


def test_a_full_disk_ends_training_in_words_and_leaves_the_earlier_checkpoint(tmp_path, small_disk):
    wanted = Recipe.model_validate(recipe())
    train(wanted, tmp_path / "elsewhere", num_checkpoints=2, log=lambda _: None)
    first, second = finalised_steps(tmp_path / "elsewhere")
    size = sum(path.stat().st_size for path in step_folder(tmp_path / "elsewhere", first).iterdir())
    disk, records = small_disk(int(size * 1.6)), []
    with pytest.raises(OSError, match=rf"step {second} not written: No space left") as caught:
        train(wanted, disk, num_checkpoints=2, log=records.append)
    assert caught.value.errno == 28
    assert [path.name for path in disk.iterdir()] == [f"step_{first:08d}"]
    assert [r["step"] for r in records if r["event"] == "checkpoint"] == [first]
    model = build_model(recipe_architecture(wanted, records[0]["num_classes"]))
    load_checkpoint(step_folder(disk, first), model=model, optimizer=make_optimizer(model, wanted))
