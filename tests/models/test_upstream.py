"""Images on disk as they are trained on: folders, tar shards, tables, kept in memory or not, some of them corrupt."""

import io
import json
import os
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from models.augment import draw_batch
from models.checkpoint import finalised_steps, step_folder
from models.data import load_images, open_stored
from models.data.pixels import decode
from models.device import pick_device
from models.distributed import World
from models.errors import DataError
from models.feed import needed_places, num_threads
from models.recipe import Axes, Recipe
from models.train import train
from models.upstream import load_upstream, training_images
from tests.models.killed import is_checkpoint, train_until
from tests.models.stored_images import encoded, examples, write_folder, write_shards, write_table
from tests.models.worlds import largest_difference, run_world

pytestmark = pytest.mark.xdist_group("upstream")  # what its tests share is made once

ALONE = World.alone()


def recipe(dataset, **axes):
    common = {
        "family": "vit",
        "size": "pico",
        "dataset": dataset,
        "image_size": 16,
        "patch_size": 8,
        "batch_size": 32,
        "epochs": 2,
        "head_learning_rate": 1e-3,
        "head_weight_decay": 0.03,
    }
    return Recipe.model_validate(common | axes)


def run(wanted, folder, **options):
    records = []
    train(wanted, folder, num_checkpoints=4, log=records.append, **options)
    return records


def final_bytes(folder):
    last = step_folder(folder, finalised_steps(folder)[-1])
    return {path.name: path.read_bytes() for path in last.glob("*.safetensors")}


def losses(records):
    kept = [r for r in records if r["event"] in ("train", "checkpoint")]
    return [(r["step"], r["train_loss"], r.get("upstream_loss")) for r in kept]


def batches(wanted, steps=range(4), **options):
    """[(uint8 images, labels)] of some steps, as one process gets them."""
    data = load_upstream(wanted, **options)
    with training_images(data, wanted, steps, world=ALONE, device=pick_device()) as coming:
        return [(images.inputs(all_of(images), pick_device()), images.labels(all_of(images))) for images in coming]


def all_of(images):
    return np.arange(len(images))


def equal(first, second):
    return all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def few():
    return examples(240)


@pytest.fixture(scope="module")
def places(tmp_path_factory, few):
    """The same images in every form."""
    root = tmp_path_factory.mktemp("sets")
    return {
        "folder": write_folder(root / "folder", few),
        "shards": write_shards(root / "shards", few, 7),
        "table": write_table(root / "table.parquet", few, 40),
        "one-group": write_table(root / "one.parquet", few, 1000),
    }


@pytest.fixture
def no_memory(monkeypatch):
    """A job that asked for 1 MB: nothing is kept."""
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")


# --- one set, several forms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "shards", "table"])
def test_images_that_are_kept_and_images_that_are_not_train_to_the_same_bits(places, tmp_path, monkeypatch, form):
    wanted = recipe(places[form], flip=True, mixup=0.5)
    kept = run(wanted, tmp_path / "kept")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    streamed = run(wanted, tmp_path / "streamed", micro_batch=None)
    assert final_bytes(tmp_path / "kept") == final_bytes(tmp_path / "streamed")
    assert losses(kept) == losses(streamed)


def test_a_kept_image_is_read_once(places, few, tmp_path):
    folder = write_folder(tmp_path / "gone", few)
    wanted = recipe(folder)
    data = load_upstream(wanted)
    a_epoch = len(data.train) // 32
    seen = []
    for epoch in (0, 0):
        steps = range(epoch, a_epoch)
        with training_images(data, wanted, steps, world=ALONE, device=pick_device()) as coming:
            seen.append([(images.inputs(all_of(images), pick_device()),) for images in coming])
        for path in (tmp_path / "gone").rglob("*.png"):
            path.unlink()
    assert equal(*seen)


def test_a_table_of_one_row_group_trains_like_a_folder_of_the_same_images(places, tmp_path):
    for form in ("folder", "one-group"):
        run(recipe(places[form], fraction=0.5, classes=0.5), tmp_path / form)
    assert final_bytes(tmp_path / "folder") == final_bytes(tmp_path / "one-group")


def test_every_shard_is_trained_on_but_those_that_are_held_out(places):
    data = load_upstream(recipe(places["shards"]))
    assert (len(data.train), len(data.test), data.num_classes) == (206, 34, 12)
    assert data.order.num_streams == 4


def test_a_killed_run_over_shards_resumes_to_the_same_bits(places, tmp_path, no_memory):
    wanted = recipe(places["shards"], flip=True, crop=0.3, augreg="medium2")
    train(wanted, tmp_path / "unbroken", num_checkpoints=8, log=lambda _: None)
    train_until(is_checkpoint, wanted, tmp_path / "killed", num_checkpoints=8)
    assert 0 < len(finalised_steps(tmp_path / "killed")) < 8
    records = []
    train(wanted, tmp_path / "killed", num_checkpoints=8, log=records.append)
    assert records[0]["step"] > 0
    assert final_bytes(tmp_path / "killed") == final_bytes(tmp_path / "unbroken")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("axes", [{}, {"mixup": 0.5, "crop": 0.3, "augreg": "none", "batch_size": 30}], ids=str)
def test_the_ranks_together_see_the_batch_of_one_process(places, size, axes):
    wanted = recipe(places["shards"], **axes)
    data, device = load_upstream(wanted), pick_device()
    whole = batches(wanted, range(2))
    parts = []
    for rank in range(size):
        world = World(rank=rank, size=size)
        with training_images(data, wanted, range(2), world=world, device=device) as coming:
            for step, images in enumerate(coming):
                place_P = np.array_split(all_of(images), size)[rank]
                parts.append((step, images.inputs(place_P, device), images.labels(place_P)))
    for step in range(2):
        mine = [part for part in parts if part[0] == step]
        assert torch.equal(torch.cat([x for _, x, _ in mine]), whole[step][0])
        assert torch.equal(torch.cat([y for _, _, y in mine]), whole[step][1])


def test_three_processes_over_two_shards_train_what_one_does(few, tmp_path, monkeypatch):
    """More ranks than shards, a batch that they do not divide, partners beyond their shares, a corrupt image."""
    found = [*few[:100], (few[0][0], b"no image"), *few[100:]]
    folder = write_shards(tmp_path / "shards", found, 3)
    sgd = {"optimizer": "sgd", "learning_rate": 0.05, "head_learning_rate": 0.05}
    wanted = recipe(folder, batch_size=32, flip=True, crop=0.3, augreg="medium2", **sgd)
    cells = {"three": {"recipe": wanted.model_dump(), "micro_batch": 5}}
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    ranks = run_world(3, cells, tmp_path)
    assert [rank["three"]["ended"][0] for rank in ranks] == ["done"] * 3
    alone = run(wanted, tmp_path / "alone")
    ours = {step: loss for step, loss, _ in losses(ranks[0]["three"]["records"])}
    assert ours == pytest.approx({step: loss for step, loss, _ in losses(alone) if step in ours}, rel=1e-6)
    assert largest_difference(tmp_path / "three", tmp_path / "alone") <= 1e-6
    told = [record["count"] for record in ranks[0]["three"]["records"] if record["event"] == "corrupt_images"]
    assert told[-1] >= 1


def test_partners_of_other_streams_are_not_read():
    batch = draw_batch(np.arange(64), Axes(family="vit", size="pico", mixup=0.5), 0, num_streams=8)
    assert np.array_equal(batch.partner_B // 8, np.arange(64) // 8)
    assert sorted(batch.partner_B) == list(range(64))
    for rank in range(4):
        needed = needed_places(batch, World(rank=rank, size=4))
        assert list(needed) == list(range(16 * rank, 16 * rank + 16))


# --- threads ----------------------------------------------------------------------------------------------------------


def image_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_no_thread_is_left_when_training_ends_or_fails(places, tmp_path, no_memory):
    met = []

    def log(record):
        if record["event"] == "train":
            met.extend(image_threads())
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        train(recipe(places["shards"]), tmp_path, num_checkpoints=1, log=log)
    assert met
    assert image_threads() == []
    run(recipe(places["shards"]), tmp_path)
    assert image_threads() == []


def test_an_error_comes_out_at_its_own_step(few, tmp_path):
    """Of a file system that fails, not of a corrupt image: no other one stands for it."""
    wanted = recipe(write_folder(tmp_path / "photos", few), batch_size=8)
    data = load_upstream(wanted)
    index = data.train._part.index(int(data.order.batch(3)[4]))
    path = data.train._stored.paths[index]
    path.unlink()
    path.symlink_to(path)
    done = []
    feed = training_images(data, wanted, range(9), world=ALONE, device=pick_device())
    with pytest.raises(OSError, match="Too many levels of symbolic links"), feed as coming:
        done.extend(len(images) for images in coming)
    assert done == [8, 8, 8]


def test_a_job_decodes_with_all_its_cpus_but_one(monkeypatch):
    cpus = len(os.sched_getaffinity(0))
    assert num_threads() == max(1, cpus - 1)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert num_threads() == 1


# --- corrupt images ---------------------------------------------------------------------------------------------------


def break_some(folder, num):
    paths = sorted((folder).rglob("*.png"))[:: 200 // num][:num]
    for number, path in enumerate(paths):
        path.write_bytes([b"", path.read_bytes()[:60], b"no image"][number % 3])
    return [str(path) for path in paths]


@pytest.mark.parametrize("memory", ["1", "100000"])
def test_corrupt_images_are_counted_named_and_replaced(few, tmp_path, monkeypatch, memory):
    folder = write_folder(tmp_path / "photos", few)
    broken = break_some(tmp_path / "photos", 5)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", memory)
    records = run(recipe(folder, epochs=3), tmp_path / "run", max_corrupt=0.05)
    told = [record for record in records if record["event"] == "corrupt_images"]
    assert told[-1]["count"] == 5
    assert {said.split(": ")[0] for said in told[-1]["first"]} == set(broken)
    assert [record["event"] for record in records].count("checkpoint") == 4


def test_corrupt_images_do_not_move_the_others(few, tmp_path):
    folder, healthy = write_folder(tmp_path / "photos", few), write_folder(tmp_path / "healthy", few)
    break_some(tmp_path / "photos", 5)
    found, expected = batches(recipe(folder), range(6), max_corrupt=0.05), batches(recipe(healthy), range(6))
    differing = [
        (step, int(place))
        for step, (ours, theirs) in enumerate(zip(found, expected, strict=True))
        for place in (ours[0] != theirs[0]).flatten(1).any(1).nonzero().flatten()
    ]
    assert 0 < len(differing) <= 5
    assert equal(found, batches(recipe(folder), range(6), max_corrupt=0.05))


def test_where_no_image_of_a_shard_can_be_read_others_of_the_next_stand_for_them(few, tmp_path):
    """As where a small fraction leaves one image of a shard, and that one is corrupt."""
    damaged = [(label, b"torn" if 40 <= number < 48 else png) for number, (label, png) in enumerate(few)]
    table = write_table(tmp_path / "damaged.parquet", damaged, 8)
    wanted = recipe(table)
    found = batches(wanted, range(6), max_corrupt=0.05)
    healthy = batches(recipe(write_table(tmp_path / "healthy.parquet", few, 8)), range(6))
    differing = [
        image.numpy().tobytes()
        for (ours, _), (theirs, _) in zip(found, healthy, strict=True)
        for image in ours[(ours != theirs).flatten(1).any(1)]
    ]
    assert 1 < len(set(differing)) == len(differing) <= 8
    assert equal(found, batches(wanted, range(6), max_corrupt=0.05))


def test_too_many_corrupt_images_are_an_error_that_names_them(few, tmp_path):
    folder = write_folder(tmp_path / "photos", few)
    broken = break_some(tmp_path / "photos", 5)
    with pytest.raises(DataError, match=r"3 of 240 images cannot be read, and train\.max_corrupt allows") as caught:
        run(recipe(folder), tmp_path / "run")
    assert sum(path in str(caught.value) for path in broken) == 3
    with pytest.raises(DataError, match="allows a share of 0:"):
        run(recipe(folder), tmp_path / "none", max_corrupt=0)


def test_a_shard_that_was_cut_short_is_an_error_that_names_it(few, tmp_path):
    folder = write_shards(tmp_path / "shards", few, 7)
    sizes = open_stored(folder).shard_sizes
    names = sorted(path.name for path in (tmp_path / "shards").glob("*.tar"))
    (tmp_path / "shards" / "sizes.json").write_text(json.dumps(dict(zip(names, sizes, strict=True))))
    path = tmp_path / "shards" / "train-000003.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"train-000003\.tar: is cut short"):
        run(recipe(folder), tmp_path / "run")


# --- kinds of images --------------------------------------------------------------------------------------------------

COLOUR_HWC = np.random.RandomState(0).randint(0, 256, (20, 20, 3), np.uint8)


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_gray_image_is_seen_in_three_equal_channels():
    gray_HW = COLOUR_HWC[..., 0]
    assert np.array_equal(decode(encoded(gray_HW), 20), np.repeat(gray_HW[..., None], 3, axis=2))


def test_16_bits_are_scaled_not_clipped():
    deep_HW = (np.arange(400).reshape(20, 20) * 164).astype(np.uint16)
    assert np.array_equal(decode(encoded(deep_HW), 20)[..., 0], deep_HW >> 8)
    assert np.array_equal(decode(saved(Image.fromarray(deep_HW), "TIFF"), 20)[..., 0], deep_HW >> 8)
    with pytest.raises(DataError, match="more than 16 bits"):
        decode(saved(Image.fromarray(deep_HW.astype(np.int32) * 10), "TIFF"), 20)
    with pytest.raises(DataError, match="more than 16 bits"):
        decode(saved(Image.fromarray(deep_HW.astype(np.float32)), "TIFF"), 20)


def test_palettes_alpha_and_cmyk_are_seen_in_their_colours():
    colour = Image.fromarray(np.full((20, 20, 3), (200, 100, 50), np.uint8))
    palette = colour.convert("P", palette=Image.Palette.ADAPTIVE)
    for data in (saved(palette), saved(palette, transparency=0), saved(colour.convert("RGBA"))):
        assert np.abs(decode(data, 20).astype(int) - (200, 100, 50)).max() <= 1
    cmyk = decode(saved(colour.convert("CMYK"), "JPEG", quality=95), 20)
    assert np.abs(cmyk.astype(int) - (200, 100, 50)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_seen_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    ours = decode(saved(Image.fromarray(COLOUR_HWC), exif=exif), 20)
    turned = {1: COLOUR_HWC, 2: COLOUR_HWC[:, ::-1], 3: COLOUR_HWC[::-1, ::-1], 4: COLOUR_HWC[::-1]}
    turned |= {k + 4: np.swapaxes(v, 0, 1) for k, v in {1: turned[1], 2: turned[4], 3: turned[3], 4: turned[2]}.items()}
    assert np.array_equal(ours, turned[orientation])


def test_an_image_with_broken_exif_is_seen_as_it_lies():
    data = saved(Image.fromarray(COLOUR_HWC), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert np.array_equal(decode(data, 20), COLOUR_HWC)


def test_of_an_animation_the_first_picture_is_seen():
    pictures = [Image.fromarray(np.full((20, 20, 3), level, np.uint8)) for level in (10, 200)]
    for kind in ("PNG", "WEBP"):
        data = saved(pictures[0], kind, save_all=True, append_images=pictures[1:], lossless=True)
        assert np.array_equal(decode(data, 20), np.full((20, 20, 3), 10))


def test_what_is_no_image_or_too_large_to_be_one_is_an_error():
    huge = saved(Image.new("1", (20_000, 20_000)))
    for data in (b"", b"no image", encoded(COLOUR_HWC)[:100], encoded(COLOUR_HWC, "JPEG")[:-200], huge):
        with pytest.raises(DataError, match="not a readable image"):
            decode(data, 20)


def test_gray_sets_with_an_image_in_colour_are_trained_on_though_no_task_can_be(tmp_path):
    folder = write_folder(tmp_path / "gray", examples(60, "digits"))
    sorted((tmp_path / "gray").rglob("*.png"))[-1].write_bytes(encoded(COLOUR_HWC))
    with pytest.raises(DataError, match="colour"):
        load_images(folder, 16)
    assert run(recipe(folder, epochs=0.5), tmp_path / "run", max_corrupt=0)[-1]["event"] == "checkpoint"
