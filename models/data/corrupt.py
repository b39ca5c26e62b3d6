"""Images that cannot be read: counted, and too many of them are an error."""

import threading

from models.errors import DataError

MAX_CORRUPT = 0.01  # share of the images, where a study does not say another
ALWAYS_SEEN = 10_000  # of so many images the share is taken from the start, so that an early bad one is none too many
NAMED = 5


class Corrupt:
    """The corrupt images that were met so far. Several threads may tell of them; `told` is how many the log has.

    Args:
        name: the set's.
        num_images: that are looked at in all.
        most: the share of them that may be corrupt.
    """

    def __init__(self, name: str, num_images: int, most: float) -> None:
        self._name, self._num_images, self._most = name, num_images, most
        self._lock = threading.Lock()
        self._said: dict[int, str] = {}
        self._seen = 0
        self.told = 0

    def __contains__(self, index: int) -> bool:
        return index in self._said

    def __len__(self) -> int:
        return len(self._said)

    @property
    def first(self) -> list[str]:
        """What was said of the first few, each with its place."""
        return list(self._said.values())[:NAMED]

    def saw(self, num: int) -> None:
        """Counts images that were looked at."""
        with self._lock:
            self._seen += num

    def note(self, index: int, error: DataError) -> None:
        """Counts a corrupt image, once.

        Raises:
            DataError: there are now too many of them; the message has the first ones.
        """
        with self._lock:
            self._said.setdefault(index, str(error))
            seen = min(self._num_images, max(self._seen, ALWAYS_SEEN))
            if len(self._said) > self._most * seen:
                raise DataError(
                    f"{self._name}: {len(self._said)} of {seen:,} images cannot be read, and train.max_corrupt allows"
                    f" a share of {self._most:g}: " + "; ".join(self.first)
                ) from error
