"""What W&B's client wrote down of a run before it sent it: where the disk was full it goes on, and says nothing.

The file has LevelDB's log format: blocks of 32 KiB, in them records with a head of checksum, length and kind, each a
protobuf message of wandb's own; a head of 7 bytes, with a version, comes before the first.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FILE_HEAD: Final = b":W&B\xe1\xbe\x00"
BLOCK: Final = 32 * 1024
RECORD_HEAD: Final = struct.Struct("<IHB")
WHOLE, FIRST, LAST = 1, 2, 4
"""Kinds of records: not cut by the end of a block; the first and the last part of one that is."""


def num_rows_kept(path: Path) -> int | None:
    """How many rows of history the file holds of a run that was finished; None where its format is another one.

    Of a run without its end, which is the last record, none are held: what was cut off may be anything.

    Raises:
        OSError: the file cannot be read.
    """
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    if data and not data.startswith(FILE_HEAD[: len(data)]):
        return None
    parse = wandb_internal_pb2.Record.FromString  # type: ignore[attr-defined]  # protobuf makes it when it is loaded
    kinds = [parse(record).WhichOneof("record_type") for record in _records(data)]
    return kinds.count("history") if kinds[-1:] == ["exit"] else 0


def _records(data: bytes) -> Iterator[bytes]:
    """The records that are there whole, up to the first that is not."""
    at, parts = len(FILE_HEAD), b""
    while at + RECORD_HEAD.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < RECORD_HEAD.size:  # too little for a record: filled with zeros
            at += left
            continue
        _, length, kind = RECORD_HEAD.unpack_from(data, at)
        at += RECORD_HEAD.size
        part, at = data[at : at + length], at + length
        if not kind or len(part) < length:
            return
        parts = part if kind in (WHOLE, FIRST) else parts + part
        if kind in (WHOLE, LAST):
            yield parts
