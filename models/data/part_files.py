"""Which files make up a stored set, and which of them are held out: told by the names of files and folders."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from models.errors import DataError

Part = Literal["train", "val", "test"]

WORDS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
NUMBERED = re.compile(r"(.*)-\d+-of-(\d+)\.\w+")
LISTED = 3  # names in a message


def part(path: Path) -> Part | None:
    """What a word of the file's name says, such as `imagenet-train-000017.tar`, or else the name of its folder."""
    found = {WORDS[word] for word in re.split(r"[^a-z]+", path.stem.lower()) if word in WORDS}
    return found.pop() if len(found) == 1 else WORDS.get(path.parent.name.lower())


def parted(paths: Iterable[Path], where: str) -> tuple[list[Path], list[Path]]:
    """(files to train on, files held out), each sorted: val before test, and none held out where no name tells a part.

    Raises:
        DataError: some names tell a part and others none, or none of them is for training.
    """
    by_part: dict[Part | None, list[Path]] = {}
    for path in sorted(paths):
        by_part.setdefault(part(path), []).append(path)
    if len(by_part) == 1:
        return next(iter(by_part.values())), []
    if None in by_part:
        other = next(paths[0] for name, paths in by_part.items() if name is not None)
        raise DataError(
            f"{where}: {by_part[None][0].name} does not say whether it is for training, as {other.name} does:"
            " name all files alike (train-, val- or test-), or name those to use by a pattern"
        )
    if "train" not in by_part:
        raise DataError(f"{where}: only files of {' and '.join(map(str, by_part))}, none to train on")
    return by_part["train"], by_part.get("val") or by_part["test"]


def files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of a folder with one of the suffixes; where it has none, those in its `data/` or its part folders."""
    found = _listed(folder, suffixes) or _listed(folder / "data", suffixes)
    if found:
        return found
    parts = sorted(entry for entry in folder.iterdir() if entry.name.lower() in WORDS) if folder.is_dir() else ()
    return [path for entry in parts for path in _listed(entry, suffixes)]


def refuse_gaps(paths: list[Path]) -> None:
    """Raises DataError where a name such as `train-00000-of-00005` says that there are more files than are there."""
    found = Counter(match[1] for path in paths if (match := NUMBERED.fullmatch(str(path))))
    for path in paths:
        match = NUMBERED.fullmatch(str(path))
        if match and found[match[1]] < int(match[2]):
            raise DataError(f"{path}: is one of {int(match[2])} files, of which {found[match[1]]} are there")


def _listed(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.endswith(tuple(suffixes)) and not p.name.startswith("."))


# --- patterns ---------------------------------------------------------------------------------------------------------


def is_pattern(name: str) -> bool:
    """Whether a name stands for several files: `train-{000000..000127}.tar`, `train-*.tar`."""
    return any(sign in name for sign in "{*?[")


def pattern_folder(pattern: str) -> Path:
    """The folder above a pattern's first sign."""
    return Path(re.split(r"[{*?\[]", pattern, maxsplit=1)[0] + "x").expanduser().parent


def matching(pattern: str) -> list[Path]:
    """The files that a pattern stands for, sorted.

    Raises:
        DataError: a brace that lists nothing, files of a brace that are not there, or no file at all.
    """
    found: list[Path] = []
    for name in expand_braces(pattern):
        path = Path(name).expanduser()
        found += _globbed(path) if is_pattern(name) else [path]
    if not found:
        raise DataError(f"{pattern}: no file has a name like this")
    _refuse_missing(pattern, found)
    twice = [path for path, times in Counter(found).items() if times > 1]
    if twice:
        raise DataError(f"{pattern}: names {twice[0]} twice")
    return sorted(found)


def expand_braces(pattern: str) -> list[str]:
    """`a-{08..10}-{x,y}` to its six names, in order.

    Raises:
        DataError: a brace with neither a range upwards nor a list.
    """
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace is None:
        return [pattern]
    limits = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    if limits is None and "," not in brace[1]:
        raise DataError(f"{pattern}: {brace[0]} is neither a range such as {{000..127}} nor a list such as {{a,b}}")
    if limits is None:
        options = brace[1].split(",")
    else:
        first, last = int(limits[1]), int(limits[2])
        options = [str(number).zfill(len(limits[1])) for number in range(first, last + 1)]
    if not options:
        raise DataError(f"{pattern}: {brace[0]} counts downwards: give the smaller number first")
    tails = expand_braces(pattern[brace.end() :])
    return [pattern[: brace.start()] + option + tail for option in options for tail in tails]


def _globbed(path: Path) -> list[Path]:
    anchor = Path(path.anchor) if path.anchor else Path()
    return sorted(anchor.glob(str(path.relative_to(anchor))))


def _refuse_missing(pattern: str, paths: list[Path]) -> None:
    """Each folder is listed once: asking for tens of thousands of files one by one takes minutes on some disks."""
    there = {folder: _names(folder) for folder in {path.parent for path in paths}}
    missing = [path for path in paths if path.name not in there[path.parent]]
    if missing:
        listed = ", ".join(str(path) for path in missing[:LISTED]) + (", ..." if len(missing) > LISTED else "")
        raise DataError(f"{pattern}: {len(missing)} of its {len(paths)} files are not there: {listed}")


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
