"""The examples of one tar shard: consecutive members that share a key, `000123.jpg` beside `000123.cls`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from models.data.tar import Member, TarFile
from models.errors import DataError

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff", "gif")
LABEL_KEYS = ("label", "cls")
RawLabel = int | str | None


class Sample(NamedTuple):
    """One example: its image member and its label as it is written there, None where there is none."""

    image: Member
    label: RawLabel


@dataclass(frozen=True, slots=True, eq=False)
class OpenShard:
    """A shard whose members are known."""

    file: TarFile
    samples: tuple[Sample, ...]

    def image(self, number: int) -> bytes:
        """The image of an example, as it was stored.

        Raises:
            DataError: the file has become shorter since it was opened.
        """
        name, offset, size = self.samples[number].image
        data = self.file.read(offset, size)
        if len(data) < size:
            raise DataError(f"{self.file.path}: {name}: the file was cut short while it was in use")
        return data


def open_shard(path: Path) -> OpenShard:
    """The shard, all of its headers read.

    Raises:
        DataError: it cannot be read, is cut short, holds no example, or one without an image or with two, a label that
            cannot be read, or a key twice; the message names the shard and the key.
    """
    file = TarFile(path)
    samples = tuple(_samples(file))
    if not samples:
        raise DataError(f"{path}: holds no examples")
    return OpenShard(file, samples)


def _samples(file: TarFile) -> Iterator[Sample]:
    seen = set()
    for key, members in groupby(_keyed(file), key=lambda keyed: keyed[0]):
        if key in seen:
            raise DataError(f"{file.path}: {key}: two examples have this key, or its members do not lie together")
        seen.add(key)
        yield _sample(file, key, [(extension, member) for _, extension, member in members])


def _keyed(file: TarFile) -> Iterator[tuple[str, str, Member]]:
    """(key, extension, member): the extension begins at the first dot of the file's name; hidden files are left out."""
    for member in file.members():
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if stem and not stem.startswith("__"):
            yield f"{folder}/{stem}" if folder else stem, extension.lower(), member


def _sample(file: TarFile, key: str, members: list[tuple[str, Member]]) -> Sample:
    by_extension = dict(members)
    if len(by_extension) < len(members):
        raise DataError(f"{file.path}: {key}: has two members of one name: {', '.join(m.name for _, m in members)}")
    images = [member for extension, member in members if extension in IMAGES]
    if len(images) != 1:
        found = ", ".join(extension or "none" for extension, _ in members)
        what = "has two images or more" if images else f"has no image (.{', .'.join(IMAGES[:4])})"
        raise DataError(f"{file.path}: {key}: {what}; its extensions are: {found}")
    return Sample(images[0], _label(file, key, by_extension))


def _label(file: TarFile, key: str, members: dict[str, Member]) -> RawLabel:
    if "cls" in members:
        return _parsed(file.near(members["cls"].offset, members["cls"].size).strip().decode(errors="replace"))
    if "json" not in members:
        return None
    try:
        fields = json.loads(file.near(members["json"].offset, members["json"].size))
    except ValueError as error:
        raise DataError(f"{file.path}: {key}.json: no JSON ({error})") from error
    value = next((fields[name] for name in LABEL_KEYS if name in fields), None) if isinstance(fields, dict) else None
    if isinstance(value, int | str) and not isinstance(value, bool):
        return _parsed(str(value).strip())
    if value is not None:
        raise DataError(f"{file.path}: {key}.json: a label is a number or a name, not {value!r}")
    return None


def _parsed(text: str) -> RawLabel:
    """A class number where it is one, else a class name; None for an empty text."""
    return int(text) if text.removeprefix("-").isdecimal() else text or None
