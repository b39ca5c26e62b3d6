"""Publishers' annotations of image files: CSV and JSON files, and the label files of KITTI.

Shape suffixes: N images.
"""

import csv
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from evals.tasks.layouts.class_folders import class_folders
from evals.tasks.layouts.lists import by_class, lines
from evals.tasks.sources import Encoded
from evals.tasks.task import Definition
from models.data.listed import Listed, file_set
from models.errors import DataError

# The thresholds of VTAB (arXiv 1910.04867; task_adaptation/data/clevr.py and kitti.py): the class is the number of
# the last one that is below the distance.
CLEVR_DISTANCES: Final = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0)
CLEVR_FEWEST: Final = 3
KITTI_DISTANCES: Final = (-100.0, 8.0, 20.0, 999.0)
KITTI_VEHICLES: Final = ("Car", "Van", "Truck")
KITTI_NONE: Final = 1000.0

CAMELYON_TEST_CENTER, CAMELYON_VAL_CENTER = "2", "1"
RETINOPATHY_LEVELS: Final = ("0", "1", "2", "3", "4")


def distance_class(distance: float, thresholds: tuple[float, ...]) -> int:
    """How many thresholds are below the distance, less one."""
    return int(np.searchsorted(thresholds, distance, side="left")) - 1


def read_clevr_count(folder: Path, _: Definition) -> Encoded:
    """Scenes of 3 to 10 objects."""
    return _clevr(folder, 8, lambda objects: len(objects) - CLEVR_FEWEST)


def read_clevr_distance(folder: Path, _: Definition) -> Encoded:
    """The depth of the nearest object, in six classes."""
    return _clevr(
        folder, 6, lambda objects: distance_class(min(o["pixel_coords"][2] for o in objects), CLEVR_DISTANCES)
    )


def _clevr(folder: Path, num_classes: int, label: Any) -> Encoded:
    def part(name: str) -> list[Listed]:
        scenes = json.loads((folder / "scenes" / f"CLEVR_{name}_scenes.json").read_bytes())["scenes"]
        return [Listed(folder / "images" / name / s["image_filename"], label(s["objects"])) for s in scenes]

    classes = tuple(str(number) for number in range(num_classes))
    return Encoded(file_set(str(folder), classes, part("train"), part("val")))


def read_kitti(folder: Path, _: Definition) -> Encoded:
    """The distance of the nearest car, van or truck in four classes, the last of them none; grouped by drive.

    Frames of a drive are alike, so that a drive must not stand on both sides; the object development kit tells them.
    """
    labels = sorted((folder / "training" / "label_2").glob("*.txt"))
    classes = ("below 8 m", "8 to 20 m", "above 20 m", "no vehicle")
    files = [
        Listed(folder / "training" / "image_2" / f"{path.stem}.png", distance_class(_nearest(path), KITTI_DISTANCES))
        for path in labels
    ]
    drive_of = _kitti_drives(folder)
    drives = [drive_of[int(path.stem)] for path in labels]
    groups_N = np.unique(drives, return_inverse=True)[1].astype(np.int64)
    return Encoded(file_set(str(folder), classes, files, None), groups_N)


def _nearest(label_file: Path) -> float:
    """Depth in metres: the 14th value of a line is z of the object's place in front of the camera."""
    objects = [line.split() for line in lines(label_file)]
    return min((float(o[13]) for o in objects if o[0] in KITTI_VEHICLES), default=KITTI_NONE)


def _kitti_drives(folder: Path) -> list[str]:
    """The drive of every image: image i has line `train_rand`[i], counted from 1, of `train_mapping`."""
    places = [folder, folder / "devkit", folder / "devkit_object", folder.parent]
    mapping = next((p / "mapping" for p in places if (p / "mapping" / "train_mapping.txt").is_file()), None)
    if mapping is None:
        raise DataError(
            f"{folder}: without mapping/train_mapping.txt and mapping/train_rand.txt of the object development kit"
            " (devkit_object.zip) nothing tells which frames are of one drive, and these must not be trained and"
            " tested on"
        )
    frames = lines(mapping / "train_mapping.txt")
    order = (mapping / "train_rand.txt").read_text().replace(",", " ").split()
    return [" ".join(frames[int(number) - 1].split()[:2]) for number in order]


def read_gtsrb(folder: Path, _: Definition) -> Encoded:
    """Class folders 00000 to 00042 to train on; for the test the list with classes, `GT-final_test.csv`."""
    final = folder / "Final_Training" / "Images"
    train = class_folders(final if final.is_dir() else folder / "Training")
    places = (folder, folder.parent, folder / "Final_Test" / "Images")
    table = next((p / "GT-final_test.csv" for p in places if (p / "GT-final_test.csv").is_file()), None)
    if table is None:
        raise DataError(f"{folder}: GT-final_test.csv of GTSRB_Final_Test_GT.zip is not there, nor beside it")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";", skipinitialspace=True))
    test = [(folder / "Final_Test" / "Images" / row["Filename"], f"{int(row['ClassId']):05}") for row in rows]
    return by_class(folder, sorted({name for _, name in train}), train, test)


def read_retinopathy(folder: Path, _: Definition) -> Encoded:
    """`trainLabels.csv` and the public test images to train on, the private ones for the test, as in VTAB."""
    train = pl.read_csv(folder / "trainLabels.csv", infer_schema=False)
    solution = pl.read_csv(folder / "retinopathy_solution.csv", infer_schema=False)

    def part(table: pl.DataFrame, images: str) -> list[tuple[Path, str]]:
        pairs = table.select("image", "level").iter_rows()
        return [(folder / images / f"{image}.jpeg", level) for image, level in pairs]

    public, private = (solution.filter(pl.col("Usage") == usage) for usage in ("Public", "Private"))
    trained = part(train, "train") + part(public, "test")
    return by_class(folder, RETINOPATHY_LEVELS, trained, part(private, "test"))


def read_fungi(folder: Path, _: Definition) -> Encoded:
    """`train.json` and `val.json` in the form of COCO; classes in the order of their ids."""

    def part(name: str) -> tuple[dict[int, str], list[tuple[Path, str]]]:
        found = json.loads((folder / name).read_bytes())
        names = {c["id"]: c["name"] for c in sorted(found["categories"], key=lambda c: c["id"])}
        class_of = {a["image_id"]: names[a["category_id"]] for a in found["annotations"]}
        return names, [(folder / image["file_name"], class_of[image["id"]]) for image in found["images"]]

    names, train = part("train.json")
    return by_class(folder, list(names.values()), train, part("val.json")[1])


def read_camelyon17(folder: Path, _: Definition) -> Encoded:
    """`metadata.csv` of WILDS: three hospitals to train on, without what is kept of them for validation."""
    table = pl.read_csv(folder / "metadata.csv", infer_schema=False)
    patch = pl.format("patient_{}_node_{}", "patient", "node")
    path = pl.format("patches/{}/patch_{}_x_{}_y_{}.png", patch, patch, "x_coord", "y_coord")
    others = pl.col("center").is_in([CAMELYON_TEST_CENTER, CAMELYON_VAL_CENTER])
    train = table.filter(~others & (pl.col("split").cast(pl.Float64) == 0))
    test = table.filter(pl.col("center") == CAMELYON_TEST_CENTER)
    parts = [[(folder / p, y) for p, y in t.select(path, "tumor").iter_rows()] for t in (train, test)]
    return by_class(folder, ("0", "1"), *parts)


def read_iwildcam(folder: Path, definition: Definition) -> Encoded:
    """`metadata.csv` of WILDS; all images lie in train/."""
    table = pl.read_csv(folder / "metadata.csv", infer_schema=False)
    parts = [
        [(folder / "train" / name, y) for name, y in rows.select("filename", "y").iter_rows()]
        for rows in (table.filter(pl.col("split") == part) for part in ("train", "test"))
    ]
    return by_class(folder, [str(label) for label in range(definition.num_classes)], *parts)


def read_fmow(folder: Path, _: Definition) -> Encoded:
    """`rgb_metadata.csv` of WILDS: before 2013 to train on, from 2016 for the test; row i is rgb_img_i.png."""
    table = pl.read_csv(folder / "rgb_metadata.csv", infer_schema=False).with_row_index("row")
    year = pl.col("timestamp").str.slice(0, 4).cast(pl.Int64)
    train = table.filter((pl.col("split") == "train") & (year < 2013))
    test = table.filter((pl.col("split") == "test") & (year >= 2016))
    parts = [
        [(folder / "images" / f"rgb_img_{row}.png", name) for row, name in t.select("row", "category").iter_rows()]
        for t in (train, test)
    ]
    return by_class(folder, sorted(table["category"].unique()), *parts)
