"""Publishers' lists of image files: a text file a part, a line an image."""

from collections.abc import Callable, Sequence
from pathlib import Path

from evals.tasks.sources import Encoded
from evals.tasks.task import Definition
from models.data.listed import Listed, file_set

ClassOf = Callable[[str], str]


def lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def by_class(
    folder: Path,
    classes: Sequence[str],
    train: Sequence[tuple[Path, str]],
    test: Sequence[tuple[Path, str]],
) -> Encoded:
    """Files with the names of their classes."""
    number = {name: label for label, name in enumerate(classes)}
    parts = [[Listed(path, number[name]) for path, name in part] for part in (train, test)]
    return Encoded(file_set(str(folder), tuple(classes), *parts))


def read_pets(folder: Path, _: Definition) -> Encoded:
    """`Abyssinian_100 1 1 1` a line, the class before the last underscore."""

    def part(name: str) -> list[tuple[Path, str]]:
        images = [line.split()[0] for line in lines(folder / "annotations" / name)]
        return [(folder / "images" / f"{image}.jpg", image.rpartition("_")[0]) for image in images]

    train, test = part("trainval.txt"), part("test.txt")
    return by_class(folder, sorted({name for _, name in train}), train, test)


def read_dtd(folder: Path, _: Definition) -> Encoded:
    """`banded/banded_0002.jpg` a line, of the first of ten splits."""

    def part(name: str) -> list[tuple[Path, str]]:
        images = lines(folder / "labels" / name)
        return [(folder / "images" / image, image.partition("/")[0]) for image in images]

    train, test = part("train1.txt") + part("val1.txt"), part("test1.txt")
    return by_class(folder, sorted({name for _, name in train}), train, test)


def read_sun397(folder: Path, _: Definition) -> Encoded:
    """`/a/abbey/sun_aaalbzqrimafwbiv.jpg` a line, of the first of ten partitions; the lists may lie in Partitions/."""
    lists = folder / "Partitions" if (folder / "Partitions").is_dir() else folder

    def part(name: str) -> list[tuple[Path, str]]:
        return [(folder / line[1:], line.rpartition("/")[0]) for line in lines(lists / name)]

    return by_class(folder, lines(lists / "ClassName.txt"), part("Training_01.txt"), part("Testing_01.txt"))


def has_sun397(folder: Path) -> bool:
    """Whether its lists are there, in the folder or in Partitions/."""
    return any((lists / "Training_01.txt").is_file() for lists in (folder, folder / "Partitions"))


def read_birds(folder: Path, _: Definition) -> Encoded:
    """Four lists of `NUMBER VALUE` lines that share the number of the image or of the class."""

    def column(name: str) -> dict[str, str]:
        return dict(line.split(maxsplit=1) for line in lines(folder / name))

    paths, labels, is_train = (
        column(name) for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    classes = column("classes.txt")
    parts: dict[str, list[tuple[Path, str]]] = {"0": [], "1": []}
    for image, path in paths.items():
        parts[is_train[image]].append((folder / "images" / path, classes[labels[image]]))
    return by_class(folder, list(classes.values()), parts["1"], parts["0"])


def read_aircraft(folder: Path, _: Definition) -> Encoded:
    """`1025794 707-320` a line."""

    def part(name: str) -> list[tuple[Path, str]]:
        pairs = [line.split(maxsplit=1) for line in lines(folder / "data" / name)]
        return [(folder / "data" / "images" / f"{image}.jpg", variant) for image, variant in pairs]

    train, test = part("images_variant_trainval.txt"), part("images_variant_test.txt")
    return by_class(folder, lines(folder / "data" / "variants.txt"), train, test)


def read_food101(folder: Path, _: Definition) -> Encoded:
    """`apple_pie/1005649` a line."""

    def part(name: str) -> list[tuple[Path, str]]:
        images = lines(folder / "meta" / name)
        return [(folder / "images" / f"{image}.jpg", image.partition("/")[0]) for image in images]

    return by_class(folder, lines(folder / "meta" / "classes.txt"), part("train.txt"), part("test.txt"))


def read_vtab(folder: Path, definition: Definition) -> Encoded:
    """`images/train800val200/000001.jpg 57` a line: the 1,000 images of VTAB-1k in their order, and its test images."""

    def part(name: str) -> list[Listed]:
        pairs = [line.rsplit(maxsplit=1) for line in lines(folder / name)]
        return [Listed(folder / image, int(label)) for image, label in pairs]

    classes = tuple(str(label) for label in range(definition.num_classes))
    return Encoded(file_set(str(folder), classes, part("train800val200.txt"), part("test.txt")))
