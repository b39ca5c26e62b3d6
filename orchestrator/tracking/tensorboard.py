"""A cell as a TensorBoard folder, written with tensorboard's own messages and record framing.

`torch.utils.tensorboard` would do, but loads torch, which the login node must not.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.files import write_atomically
from orchestrator.tracking.client import Description
from orchestrator.tracking.curves import COSTS, Metrics, final_metrics, is_number, read_curve
from orchestrator.tracking.journal import new_rows, read_journal

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

Scalar = int | float | str  # a truth value is a whole number to Python


def write_tensorboard(cell_dir: Path, description: Description, *, outcome: str = "done") -> Path:
    """The folder `cell_dir/tensorboard`, with one event file: the curves over `examples_seen`, and the hyperparameters.

    The curves are W&B's, under the same names: what its journal holds, and what would be told next. Their values are
    float32, as TensorBoard's scalars are. The file is written whole under a new name whenever something changed, so a
    repeat never doubles a point. A running TensorBoard goes on to the new file and forgets the old points (SessionLog
    START at step 0).

    Args:
        cell_dir: the cell's folder.
        description: its axes and resources, what it cost, and which evaluations a checkpoint must have.
        outcome: done, failed, diverged or running.

    Raises:
        DataError: an evaluation's file cannot be read.
        OSError: the file cannot be written.
    """
    folder = cell_dir / "tensorboard"
    folder.mkdir(parents=True, exist_ok=True)
    data = _event_file(_events(cell_dir, description, outcome))
    earlier = sorted(path for path in folder.iterdir() if "tfevents" in path.name)
    if earlier and earlier[-1].read_bytes() == data:
        return folder
    write_atomically(folder / f"events.out.tfevents.{_stamp(earlier)}", data)
    for path in earlier[:-1]:
        path.unlink(missing_ok=True)
    for path in earlier[-1:]:
        os.truncate(path, 0)  # a TensorBoard that reads it would wait forever for one that is removed
    return folder


def _stamp(earlier: list[Path]) -> int:
    """Later than every earlier file's, even where clocks differ: TensorBoard reads files in order of name."""
    stamps = [path.name.rpartition(".")[2] for path in earlier]
    return max([time.time_ns(), *(int(stamp) + 1 for stamp in stamps if stamp.isdigit())])


def _event_file(events: "Iterable[Event]") -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def _events(cell_dir: Path, description: Description, outcome: str) -> "Iterator[Event]":
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary

    curve, told = read_curve(cell_dir), read_journal(cell_dir)
    rows = sorted([*told, *new_rows(cell_dir, told, curve, description.wanted)], key=lambda row: row.examples_seen)
    ended, began = (max(row.time for row in rows), rows[0].time) if rows else (0.0, 0.0)
    yield Event(wall_time=ended, file_version="brain.Event:2")
    yield Event(wall_time=ended, step=0, session_log=SessionLog(status=SessionLog.START))
    hyperparameters = _hyperparameters(final_metrics(cell_dir, curve), description)
    for summary in _hparams(hyperparameters, began, ended, outcome):
        yield Event(wall_time=ended, summary=summary)
    for row in rows:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in row.values.items()]
        yield Event(wall_time=row.time, step=row.examples_seen, summary=Summary(value=values))


def _hyperparameters(final: Metrics, description: Description) -> dict[str, Scalar]:
    """Axes, resources and costs, by name."""
    costs = {key: final[key] for key in COSTS if key in final}
    spent = {key: value for key, value in description.summary.items() if is_number(value)}
    everything = {**costs, **spent, **description.config}
    return {key: value for key, value in everything.items() if isinstance(value, Scalar)}


def _hparams(values: Mapping[str, Scalar], began: float, ended: float, outcome: str) -> "Iterator[Summary]":
    """What makes this folder a session of the HParams page.

    No experiment is described: the page would take the first cell's for all of them, and show the others without what
    that one lacks. Without one it gathers hyperparameters and metrics from every cell.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

    start = SessionStartInfo(start_time_secs=began)
    for key, value in values.items():
        kind = "bool" if isinstance(value, bool) else "number" if is_number(value) else "string"
        setattr(start.hparams[key], f"{kind}_value", value)
    status = {"done": "SUCCESS", "diverged": "SUCCESS", "failed": "FAILURE"}.get(outcome, "RUNNING")
    end = SessionEndInfo(status=api_pb2.Status.Value(f"STATUS_{status}"), end_time_secs=ended)
    for tag, data in (
        (metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
        (metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
    ):
        # Deterministic, or the order of a map would make the same cell another file.
        plugin = SummaryMetadata.PluginData(
            plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString(deterministic=True)
        )
        yield Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])
