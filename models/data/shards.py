"""WebDataset tar shards: folders of `*.tar`, or a pattern such as `laion/train-{000000..012287}.tar`.

No list of all images is needed: the number of examples of each shard is known, and what a shard holds is read from its
headers when it is first used.
"""

from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from models.data import part_files
from models.data.samples import OpenShard, open_shard
from models.data.sets import BoolArray, IntArray, SetInfo
from models.data.shard_index import (
    CLASS_FILES,
    LABELS,
    SIZES,
    THREADS,
    UNLABELLED,
    class_names,
    class_number,
    known_labels,
    known_sizes,
    listed_sizes,
)
from models.data.splits import whole_shards
from models.data.stored import Recent, described, refuse_untrained_classes
from models.errors import DataError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MOST_OPEN = 256  # of each a file descriptor and what is known of its examples
EXAMPLE_BYTES = 160  # of that
MOST_COUNTED = 32  # shards whose headers are read just to count them, where no file tells the sizes


class ShardSet:
    """The examples of tar shards, as a `models.data.stored.StoredSet`.

    Args:
        name: as the study has it.
        folder: where the index and the list of classes are.
        train: the shards to train on.
        held_out: those that the source sets apart.
    """

    def __init__(self, name: str, folder: Path, train: list[Path], held_out: list[Path]) -> None:
        self.name = name
        self._folder = folder
        self._paths = [*train, *held_out]
        self.most_open, self.drawn_by_shard = MOST_OPEN, True
        self._labels_N: IntArray | None = None
        self._asked = False
        self._open = Recent(open_shard, MOST_OPEN)
        self.shard_sizes = self._sizes()
        self._ends = list(accumulate(self.shard_sizes))
        self.held_gb = EXAMPLE_BYTES * sum(sorted(self.shard_sizes)[-MOST_OPEN:]) / 1e9
        self.held_out_shards = (
            frozenset(range(len(train), len(self._paths))) if held_out else whole_shards(name, self.shard_sizes)
        )

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """As the folder's list has them, or its index.

        Raises:
            DataError: there is neither.
        """
        found = class_names(self._folder)
        if found is None:
            raise DataError(
                f"{self.name}: the classes are not known: list them in {self._folder / CLASS_FILES[0]}, a line each, in"
                " the order of their numbers, or run `upshot data index`"
            )
        return found

    @property
    def labels_N(self) -> IntArray | None:
        """From the index, read when they are first asked for; None where it does not list every shard."""
        if not self._asked:
            self._labels_N, self._asked = self._listed_labels(), True
        return self._labels_N

    def _listed_labels(self) -> IntArray | None:
        known = known_labels(self._folder)
        if any(path not in known for path in self._paths):
            return None
        for path, size in zip(self._paths, self.shard_sizes, strict=True):
            if len(known[path]) != size:
                raise DataError(f"{path}: {size} examples, but {len(known[path])} labels in {self._folder / LABELS}")
        labels_N = np.concatenate([known[path] for path in self._paths]).astype(np.int64)
        if (labels_N == UNLABELLED).any():
            return None
        refuse_untrained_classes(self.name, self.classes, labels_N, self._held_out(len(labels_N)))
        return labels_N

    @property
    def held_out_N(self) -> BoolArray | None:
        """Of every example, whether its shard is held out."""
        return None if self.labels_N is None else self._held_out(len(self.labels_N))

    def read(self, index: int) -> tuple[bytes, int]:
        """(image, label): see `StoredSet.read`."""
        shard, number = self._locate(index)
        found, numbers = self._opened(shard), self._numbers
        try:
            label = class_number(found.samples[number].label, numbers)
        except ValueError as error:
            raise DataError(f"{self.place(index)}: {error}") from error
        if self._labels_N is not None and self._labels_N[index] != label:  # a plan looks at images, never at labels
            raise DataError(
                f"{self.place(index)}: its label is {self.classes[label]!r}, not what {self._folder / LABELS} says:"
                " the shard was changed; remove that file and run `upshot data index`"
            )
        return found.image(number), label

    def place(self, index: int) -> str:
        """`train-00017.tar: 000123.jpg`; without the member where the shard cannot be read."""
        shard, number = self._locate(index)
        try:
            return f"{self._paths[shard]}: {self._opened(shard).samples[number].image.name}"
        except DataError:
            return f"{self._paths[shard]}: example {number}"

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def _held_out(self, num: int) -> BoolArray:
        held_out_N = np.zeros(num, dtype=np.bool_)
        for shard in self.held_out_shards:
            held_out_N[self._ends[shard] - self.shard_sizes[shard] : self._ends[shard]] = True
        return held_out_N

    def _locate(self, index: int) -> tuple[int, int]:
        """(shard, number of the example in it)."""
        shard = bisect_right(self._ends, index)
        return shard, index - self._ends[shard] + self.shard_sizes[shard]

    def _opened(self, shard: int) -> OpenShard:
        found = self._open(self._paths[shard])
        if len(found.samples) != self.shard_sizes[shard]:
            raise DataError(
                f"{self._paths[shard]}: holds {len(found.samples)} examples, not {self.shard_sizes[shard]} as its sizes"
                " file says: fetch it again, or remove that file's line and run `upshot data index`"
            )
        return found

    def _sizes(self) -> tuple[int, ...]:
        known = known_sizes(self._folder, self._paths)
        unknown = [path for path in self._paths if path not in known]
        if len(unknown) > MOST_COUNTED:
            raise DataError(
                f"{self.name}: how many examples {len(unknown)} of its {len(self._paths)} shards hold is not known:"
                f" `upshot data index '{self.name}'` counts them once and writes {SIZES}"
            )
        with ThreadPoolExecutor(THREADS) as pool:
            counted = pool.map(lambda path: len(self._open(path).samples), unknown)
            known |= dict(zip(unknown, counted, strict=True))
        return tuple(known[path] for path in self._paths)


def open_set(dataset: str) -> ShardSet:
    """The shards of a folder or of a pattern.

    Raises:
        DataError: there are none, some are compressed or missing, their sizes or classes are not known.
    """
    folder, paths = found_shards(dataset)
    return ShardSet(dataset, folder, *part_files.parted(paths, dataset))


def info(dataset: str) -> SetInfo:
    """The numbers of the set; cached until something beside the shards changes."""
    folder, _ = place_of(dataset)
    beside = (folder, *(folder / name for name in (SIZES, LABELS, *CLASS_FILES)))
    return _info(dataset, tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in beside))


@lru_cache
def _info(dataset: str, changed_ns: tuple[int, ...]) -> SetInfo:  # noqa: ARG001 - a part of the cache's key
    return described(open_set(dataset))


def is_shards(dataset: str) -> bool:
    """Whether a path is that of tar shards or of their index."""
    folder, pattern = place_of(dataset)
    if pattern:
        return pattern.endswith((".tar", *COMPRESSED))
    return (folder / SIZES).is_file() or bool(part_files.files_in(folder, (".tar", *COMPRESSED)))


def place_of(dataset: str) -> tuple[Path, str | None]:
    """(the folder of the index, the pattern or the name of a single shard where it is not a folder)."""
    path = Path(dataset).expanduser()
    if part_files.is_pattern(dataset) and not path.exists():
        return part_files.pattern_folder(dataset), dataset
    return (path, None) if path.is_dir() else (path.parent, dataset)


def found_shards(dataset: str) -> tuple[Path, list[Path]]:
    """(the folder of the index, all shards).

    Raises:
        DataError: there are none, some are compressed, or some that the pattern or `sizes.json` names are missing.
    """
    folder, pattern = place_of(dataset)
    if pattern and not part_files.is_pattern(dataset) and not Path(dataset).expanduser().exists():
        raise DataError(f"{dataset}: no such file or folder")
    if pattern and not is_shards(dataset):
        raise DataError(f"{dataset}: is no tar shard, nor a pattern of some: it should end in .tar")
    found = part_files.matching(dataset) if pattern else part_files.files_in(folder, (".tar", *COMPRESSED))
    packed = [path for path in found if path.name.endswith(COMPRESSED)]
    if packed:
        raise DataError(
            f"{packed[0]}: is compressed as a whole, so that no image can be read alone: decompress it (gunzip);"
            " images are compressed themselves"
        )
    if not pattern:
        part_files.refuse_gaps(found)
    listed = [] if pattern else list(listed_sizes(folder))
    missing = sorted(set(listed) - set(found)) if found else [path for path in listed if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: is not there, but {folder / SIZES} lists it ({len(missing)} such shards):"
            " fetch it, or remove its line there"
        )
    if not found and not listed:
        raise DataError(f"{dataset}: no tar shards there")
    return folder, found or listed
