"""The members of a tar file, by its headers alone: the data between them is passed over.

Python's own `tarfile` ends in silence where a file was cut between two members or in a header, and takes several times
as long; training must not lose images unnoticed, and reads the headers of every shard while a GPU waits.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from models.errors import DataError

BLOCK = 512
END = bytes(BLOCK)
WINDOW = 16 * 1024  # what is read at a header: the small members after it, a label and a caption, are had with it
REGULAR = (b"0", b"\0", b"7")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A regular file inside a tar: where its data begins, and how long it is."""

    name: str
    offset: int
    size: int


class TarFile:
    """A tar file that is open for reading, by several threads at once; it closes when nothing refers to it any more.

    Raises:
        DataError: it is not there, or may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(f"{path}: {'no such file' if isinstance(error, FileNotFoundError) else error}") from error
        about = os.fstat(self._descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise DataError(f"{path}: is no file")
        self.size = about.st_size
        self._window, self._window_start = b"", 0

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end of the file."""
        try:
            data = os.pread(self._descriptor, size, offset)
            while len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
                data += more  # a single call gives 2 GiB at most
        except OSError as error:
            error.filename = str(self.path)
            raise
        return data

    def near(self, offset: int, size: int) -> bytes:
        """As `read`, through a window that moves on: for one thread that goes from header to header."""
        start = offset - self._window_start
        if start < 0 or start + size > len(self._window):
            self._window, self._window_start, start = self.read(offset, max(size, WINDOW)), offset, 0
        return self._window[start : start + size]

    def members(self) -> Iterator[Member]:
        """Every regular file, in order; to be asked for by one thread.

        Raises:
            DataError: the file is empty, compressed, no tar file, or cut short.
        """
        offset, long_name, last = 0, None, "the beginning"
        while (block := self._header(offset, last)) != END:
            kind, size = block[156:157], self._size_of(block, offset)
            data, offset = offset + BLOCK, offset + BLOCK + -(-size // BLOCK) * BLOCK
            if offset > self.size:
                raise DataError(f"{self.path}: is cut short in the data of {long_name or _name(block)}")
            if kind == b"L":
                long_name = _text(self.near(data, size).rstrip(b"\0"))
            elif kind == b"x":
                long_name = self._pax_path(data, size) or long_name
            elif kind in REGULAR:
                last = long_name or _name(block)
                yield Member(last, data, size)
                long_name = None
            elif kind == b"S":
                raise DataError(f"{self.path}: {_name(block)} is stored as a sparse file: make the tar without -S")
            elif kind not in (b"g", b"K"):  # folders and links
                long_name = None

    def _header(self, offset: int, last: str) -> bytes:
        block = self.near(offset, BLOCK)
        if offset == 0:
            self._refuse_others(block)
        if len(block) < BLOCK:
            where = "in a header" if block else "before its end mark"
            raise DataError(f"{self.path}: is cut short {where}, after {last}")
        if block != END and _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
            what = "is no tar file" if offset == 0 else f"is damaged after {last}: no tar header at byte {offset}"
            raise DataError(f"{self.path}: {what}")
        return block

    def _refuse_others(self, block: bytes) -> None:
        if not block:
            raise DataError(f"{self.path}: is an empty file, no tar file")
        for magic, kind in COMPRESSED.items():
            if block.startswith(magic):
                raise DataError(
                    f"{self.path}: is compressed with {kind}, so that nothing in it can be found without reading all of"
                    " it: decompress it; images are compressed themselves"
                )

    def _size_of(self, block: bytes, offset: int) -> int:
        if block[124] & 0x80:  # GNU's way to write what is too large for 11 octal digits
            return int.from_bytes(block[125:136], "big")
        size = _number(block[124:136])
        if size is None:
            raise DataError(f"{self.path}: is damaged: no size in the tar header at byte {offset}")
        return size

    def _pax_path(self, offset: int, size: int) -> str | None:
        """The path in a POSIX extended header, whose records are `LENGTH KEY=VALUE`."""
        records, found = self.near(offset, size), None
        while records:
            length = _decimal(records.partition(b" ")[0])
            if not 0 < length <= len(records):
                raise DataError(f"{self.path}: is damaged: a malformed extended header at byte {offset}")
            key, _, value = records[:length].partition(b" ")[2].partition(b"=")
            if key == b"path":
                found = _text(value.removesuffix(b"\n"))
            elif key == b"size" or key.startswith(b"GNU.sparse"):
                raise DataError(f"{self.path}: has a sparse member, or one of 8 GiB and more, at byte {offset}")
            records = records[length:]
        return found


def _name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int | None:
    """An octal number; None where it is none."""
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def _decimal(digits: bytes) -> int:
    return int(digits) if digits.isdigit() else 0
