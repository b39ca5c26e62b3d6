"""Folders of class folders, with or without folders of parts above them."""

from collections import Counter
from pathlib import Path
from typing import Final

from evals.tasks.draws import fixed_order
from evals.tasks.sources import Encoded
from evals.tasks.task import Definition
from models.data import hugging_face
from models.data.folders import SUFFIXES
from models.data.listed import Listed, scanned_set
from models.errors import DataError

IMAGES: Final = (*SUFFIXES, ".tif", ".tiff", ".ppm", ".pgm", ".gif")
PARTS: Final = ("train", "val", "test")
CALTECH_TRAIN: Final = 30


def read_folders(folder: Path, definition: Definition) -> Encoded:
    """`CLASS/*`, or `train/` and the part that is tested on above the classes."""
    held_out = definition.test_part
    if not (folder / "train").is_dir():
        if definition.test_share is None:
            raise DataError(
                f"{folder}: has class folders without a test part, but task {definition.name!r} has a published one"
                f" ({definition.split}): put the images below train/ and {held_out}/. To draw another test part, name"
                " the folder itself as the task"
            )
        return _whole(folder, class_folders(folder))
    if not (folder / held_out).is_dir():
        raise DataError(f"{folder}: has train/, but no {held_out}/ with the test images ({definition.split})")
    trained = ("train", "val") if held_out == "test" and (folder / "val").is_dir() else ("train",)
    train, test = [_found(folder / part) for part in trained], _found(folder / held_out)
    classes = sorted({name for found in (*train, test) for _, name in found})
    number = {name: label for label, name in enumerate(classes)}
    parts = [[Listed(path, number[name]) for found in part for path, name in found] for part in (train, [test])]
    return Encoded(scanned_set(str(folder), tuple(classes), *parts))


def read_plain(folder: Path, _: Definition) -> Encoded:
    """`CLASS/*`; its test part is drawn."""
    return _whole(folder, class_folders(folder))


def read_caltech(folder: Path, definition: Definition) -> Encoded:
    """As `read_plain`; for training 30 images of each class, in a fixed random order, and the others for the test."""
    found = class_folders(folder)
    order_N = fixed_order(definition.name, len(found))
    taken: Counter[str] = Counter()
    parts: tuple[list[int], list[int]] = ([], [])
    for index in order_N.tolist():
        name = found[index][1]
        parts[taken[name] >= CALTECH_TRAIN].append(index)
        taken[name] += 1
    number = {name: label for label, name in enumerate(sorted(taken))}
    train, test = ([Listed(found[i][0], number[found[i][1]]) for i in sorted(part)] for part in parts)
    return Encoded(scanned_set(str(folder), tuple(number), train, test))


def read_omniglot(folder: Path, _: Definition) -> Encoded:
    """`images_background/ALPHABET/characterNN/*.png` and `images_evaluation`; a character is a class."""
    alphabets = [
        alphabet
        for part in ("images_background", "images_evaluation")
        for alphabet in sorted(entry for entry in (folder / part).iterdir() if entry.is_dir())
    ]
    found = [(path, f"{alphabet.name}/{name}") for alphabet in alphabets for path, name in class_folders(alphabet)]
    return _whole(folder, found)


def read_tables(folder: Path, definition: Definition) -> Encoded:
    """Parquet files as on the hub, or what `save_to_disk` writes."""
    trained = frozenset({"train", "val"} if definition.test_part == "test" else {"train"})
    stored = hugging_face.open_parts(str(folder), trained, definition.test_part)
    if stored.held_out_N is None and definition.test_share is None:
        raise DataError(
            f"{folder}: no table is named {definition.test_part}, but task {definition.name!r} has a published test"
            f" part ({definition.split})"
        )
    return Encoded(stored)


def has_folders(folder: Path) -> bool:
    """Whether there are folders in it, so that it may be one of class folders."""
    return sum(entry.is_dir() for entry in folder.iterdir()) >= 2


def class_folders(folder: Path) -> list[tuple[Path, str]]:
    """(image file, name of its folder), sorted; raises DataError where a folder has no image."""
    found = _found(folder)
    empty = {entry.name for entry in _folders(folder)} - {name for _, name in found}
    if empty or not found:
        raise DataError(
            f"{folder}: "
            + (f"{min(empty)} is a class folder without images" if empty else "has no class folders")
            + f" ({', '.join(IMAGES)})"
        )
    return found


def _found(folder: Path) -> list[tuple[Path, str]]:
    return [
        (path, entry.name)
        for entry in _folders(folder)
        for path in sorted(entry.iterdir())
        if path.suffix.lower() in IMAGES and not path.name.startswith(".")
    ]


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))


def _whole(folder: Path, found: list[tuple[Path, str]]) -> Encoded:
    """Files whose test part is drawn."""
    classes = tuple(dict.fromkeys(name for _, name in found))
    number = {name: label for label, name in enumerate(classes)}
    return Encoded(scanned_set(str(folder), classes, [Listed(path, number[name]) for path, name in found], None))
