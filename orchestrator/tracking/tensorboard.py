"""A cell as a TensorBoard folder, written with tensorboard's own messages and record framing.

`torch.utils.tensorboard` would do, but loads torch, which the login node must not.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.files import write_atomically
from orchestrator.tracking.curves import COSTS, current_points, final_metrics, is_number, read_curve

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary


def write_tensorboard(cell_dir: Path, *, config: Mapping[str, Any]) -> Path:
    """The folder `cell_dir/tensorboard`, with one event file: the curves over `examples_seen`, and the hyperparameters.

    The file is written whole under a new name whenever something changed, so a repeat never doubles a point. A running
    TensorBoard goes on to the new file and forgets the old points (SessionLog START at step 0). The metrics are those
    of the W&B summary, in float32 as TensorBoard's scalars are.

    Raises:
        DataError: an evaluation's file cannot be read.
        OSError: the file cannot be written.
    """
    folder = cell_dir / "tensorboard"
    folder.mkdir(parents=True, exist_ok=True)
    data = _event_file(_events(cell_dir, config))
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


def _events(cell_dir: Path, config: Mapping[str, Any]) -> "Iterator[Event]":
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary

    curve = read_curve(cell_dir)
    points = sorted(current_points(curve.points), key=lambda point: (point.examples_seen, point.index))
    final = {key: value for key, value in final_metrics(cell_dir, curve).items() if is_number(value)}
    metrics = {key: value for key, value in final.items() if key.startswith(("upstream/", "downstream/"))}
    costs = {key: final[key] for key in COSTS if key in final}
    when = points[-1].time if points else 0.0
    yield Event(wall_time=when, file_version="brain.Event:2")
    yield Event(wall_time=when, step=0, session_log=SessionLog(status=SessionLog.START))
    for summary in _hparams({**costs, **config}, metrics, points[0].time if points else when, when):
        yield Event(wall_time=when, summary=summary)
    for point in points:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in point.values.items()]
        yield Event(wall_time=point.time, step=point.examples_seen, summary=Summary(value=values))
    # The upstream metrics are the last points of their curves already.
    down = [
        Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items() if tag.startswith("downstream/")
    ]
    if down:
        yield Event(wall_time=when, step=int(final["examples_seen"]), summary=Summary(value=down))


def _hparams(config: Mapping[str, Any], metrics: Iterable[str], began: float, ended: float) -> "Iterator[Summary]":
    """What `SummaryWriter.add_hparams(config, metrics, run_name=".")` writes, without a second folder."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

    start = SessionStartInfo(start_time_secs=began)
    infos = []
    for key, value in config.items():
        if value is None:
            continue
        kind = "bool" if isinstance(value, bool) else "number" if is_number(value) else "string"
        setattr(start.hparams[key], f"{kind}_value", value if kind != "string" else str(value))
        types = {"bool": "DATA_TYPE_BOOL", "number": "DATA_TYPE_FLOAT64", "string": "DATA_TYPE_STRING"}
        infos.append(api_pb2.HParamInfo(name=key, type=api_pb2.DataType.Value(types[kind])))
    named = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=named, time_created_secs=began)
    end = SessionEndInfo(status=api_pb2.Status.Value("STATUS_SUCCESS"), end_time_secs=ended)
    for tag, data in (
        (metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)),
        (metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
        (metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
    ):
        # Deterministic, or the order of a map would make the same cell another file.
        plugin = SummaryMetadata.PluginData(
            plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString(deterministic=True)
        )
        yield Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])
