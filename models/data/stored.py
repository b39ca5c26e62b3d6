"""Sets whose images stay where they lie, encoded, until they are asked for.

What readers of folders, of tar shards and of tables have in common.
"""

from typing import Protocol

from models.data.sets import BoolArray, IntArray


class StoredSet(Protocol):
    """Encoded images by index, from 0 to the sum of `shard_sizes`.

    Attributes:
        name: as the study has it.
        classes: their names.
        shard_sizes: examples by shard, in the order of their indices; one number where any image is as near as any
            other (a folder of files). Images of one shard are best read together.
        labels_N: of every example, or None where a label is known only once its image is read: sets of hundreds of
            millions have no index of them.
        held_out_N: the test part that the source itself defines, where `labels_N` is known.
        held_out_shards: the shards that the source itself sets apart for tests; empty where it does not.
    """

    name: str
    classes: tuple[str, ...]
    shard_sizes: tuple[int, ...]
    labels_N: IntArray | None
    held_out_N: BoolArray | None
    held_out_shards: frozenset[int]

    def read(self, index: int) -> tuple[bytes, int]:
        """(the image as it was stored: JPEG, PNG, WebP; its label). May be called by several threads at once.

        Raises:
            DataError: it cannot be read, or its label is none of `classes`; the message has its `place`.
        """
        ...

    def place(self, index: int) -> str:
        """Where an example lies, as a user would look for it: `photos/cat/3.jpg`, `train-00017.tar: 000123.jpg`."""
        ...
