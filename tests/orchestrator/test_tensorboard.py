"""A cell's TensorBoard folder: read back with TensorBoard's own readers, and asked of a TensorBoard that runs."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from models.errors import DataError
from orchestrator import tracking
from orchestrator.tracking.journal import read_journal
from tests.orchestrator import test_tracking as tracked
from tests.orchestrator.test_tracking import (
    CELL_ID,
    CONFIG,
    DESCRIPTION,
    ROOT,
    append,
    curves,
    evaluate,
    mirror,
    training,
)
from tests.private_slurm import wait_until
from tests.wandb_server import WandbServer

_bare_machine, server, cell = tracked._bare_machine, tracked.server, tracked.cell


def write(cell: Path, *, outcome: str = "done", **changes: Any) -> Path:
    return tracking.write_tensorboard(cell, tracking.Description(**(DESCRIPTION | changes)), outcome=outcome)


def accumulator(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "tensors": 0, "images": 0, "histograms": 0, "audio": 0, "compressedHistograms": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def scalars(events: Any) -> dict[str, list[tuple[int, float]]]:
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def float32(curve: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {name: [(seen, float(np.float32(value))) for seen, value in points] for name, points in curve.items()}


def test_tensorboard_shows_exactly_the_curves(cell: Path) -> None:
    killed, resumed = training(0, 80, checkpoints=(50,)), training(50, 100, checkpoints=(100,), salt=0.25)
    append(cell, killed + resumed, torn='{"event":"tr')
    evaluate(cell, 100, {0: [0.5, 0.5], 1: [0.25, 0.5]})
    folder = write(cell)
    assert folder == cell / "tensorboard"
    expected = curves([r for r in killed if r["step"] <= 50] + resumed)
    expected["downstream/mnist/5shot/accuracy"] = [(1600, 0.375)]
    expected["downstream/mnist/5shot/best_layer"] = [(1600, 0.0)]
    events = accumulator(folder)
    assert scalars(events) == float32(expected)
    assert [event.wall_time for event in events.Scalars("train/loss")][-1] == 1e9 + 100


def test_a_tensorboard_that_is_running_goes_on_to_the_new_file(cell: Path) -> None:
    pieces = [training(0, 50), training(50, 80), training(80, 100)]
    append(cell, pieces[0])
    folder = write(cell)
    running = accumulator(folder)
    for i in (1, 2):
        append(cell, pieces[i])
        write(cell)
        whole = float32(curves([record for piece in pieces[: i + 1] for record in piece]))
        assert scalars(running.Reload()) == whole
        assert scalars(accumulator(folder)) == whole
        assert sum(path.stat().st_size > 0 for path in folder.iterdir()) == 1
        assert len(list(folder.iterdir())) == 2


def test_tensorboard_is_not_doubled_by_a_file_that_a_crash_left(cell: Path) -> None:
    append(cell, training(0, 50))
    folder = write(cell)
    (left,) = folder.iterdir()
    data = left.read_bytes()
    append(cell, training(50, 80))
    write(cell)
    left.write_bytes(data)
    assert scalars(accumulator(folder)) == float32(curves(training(0, 50) + training(50, 80)))


def test_a_repeated_tensorboard_is_the_same_file(cell: Path) -> None:
    append(cell, training(0, 50, checkpoints=(50,)))
    evaluate(cell, 50, {0: [0.5]})
    write(cell)
    (before,) = (cell / "tensorboard").iterdir()
    write(cell)
    assert list((cell / "tensorboard").iterdir()) == [before]


def test_every_checkpoint_that_was_judged_is_a_point(cell: Path) -> None:
    append(cell, training(0, 100, checkpoints=(50, 100)))
    evaluate(cell, 50, {0: [0.1, 0.3], 1: [0.2, 0.2]}, downstream_class_accuracy=0.25)
    evaluate(cell, 100, {0: [0.5]}, protocol="knn")
    found = scalars(accumulator(write(cell)))
    assert {name: points for name, points in found.items() if name.startswith("downstream")} == float32(
        {
            "downstream/mnist/5shot/accuracy": [(800, 0.2)],
            "downstream/mnist/5shot/class_accuracy": [(800, 0.25)],
            "downstream/mnist/5shot/best_layer": [(800, 0.0)],
            "downstream/mnist/5shot/knn/accuracy": [(1600, 0.5)],
        }
    )


def test_a_checkpoint_that_is_half_judged_waits_as_it_does_for_wandb(cell: Path) -> None:
    append(cell, training(0, 50, checkpoints=(50,)))
    first = evaluate(cell, 50, {0: [0.5]}).name
    both = {"wanted": frozenset([first, f"{1:012x}.parquet"])}
    assert "downstream/mnist/5shot/accuracy" not in scalars(accumulator(write(cell, **both)))
    evaluate(cell, 50, {0: [0.5]}, task="digits")
    assert {"downstream/mnist/5shot/accuracy", "downstream/digits/5shot/accuracy"} <= set(
        scalars(accumulator(write(cell, **both)))
    )


def test_the_curves_are_those_that_wandb_was_told(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 80, checkpoints=(50,)))
    evaluate(cell, 50, {0: [0.4], 1: [0.3]})
    mirror(cell, outcome="running")
    append(cell, training(50, 100, checkpoints=(100,), salt=0.25))  # of steps 60 to 80 W&B keeps what it was told
    evaluate(cell, 100, {0: [0.6]})
    write(cell)
    mirror(cell)
    evaluate(cell, 50, {0: [0.2]}, protocol="knn")
    mirror(cell)
    found = scalars(accumulator(write(cell)))
    run = server.runs[CELL_ID]
    told = {name for row in run.history for name in row} - {"step", "examples_seen"}
    by_examples = {name: sorted(run.curve(name)) for name in told}
    assert found == float32(by_examples)  # type: ignore[arg-type]  # whole numbers of examples
    assert len(found["train/loss"]) == 10
    assert len(read_journal(cell)) == len(run.lines)


def test_tensorboard_of_a_cell_without_records_has_its_hyperparameters(cell: Path) -> None:
    events = accumulator(write(cell))
    assert events.Tags()["scalars"] == []
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")


def test_writing_tensorboard_loads_neither_torch_nor_tensorflow(cell: Path) -> None:
    append(cell, training(0, 20))
    code = (
        "import sys; from pathlib import Path; from orchestrator.tracking import Description, write_tensorboard\n"
        "about = Description(study='a', project='b', entity=None, config={'a': 1}, name='c')\n"
        "write_tensorboard(Path(sys.argv[1]), about)\n"
        "print([module for module in ('torch', 'tensorflow') if module in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(cell)], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_tensorboard_names_a_damaged_evaluation(cell: Path) -> None:
    append(cell, training(0, 20, checkpoints=(20,)))
    evaluate(cell, 20, {0: [0.5]}).write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match=r"000000000000\.parquet"):
        write(cell)
    assert list((cell / "tensorboard").iterdir()) == []


# --- the HParams page, and a TensorBoard that runs -------------------------------------------------------------------


@pytest.fixture
def cells(cell: Path) -> Path:
    """A folder of cells: one failed before its first checkpoint, two were judged, one of another family."""
    for name, seed, family in (("00" * 8, 0, "vit"), (CELL_ID, 1, "vit"), ("f" * 16, 2, "resnet")):
        folder = cell.parents[1] / name[:2] / name
        changes: dict[str, Any] = {"config": {**CONFIG, "seed": seed, "family": family, "pretrained": False}}
        if seed == 0:
            append(folder, training(0, 30))
            write(folder, outcome="failed", **changes)
            continue
        append(folder, training(0, 50, checkpoints=(20, 50)))
        evaluate(folder, 20, {0: [0.125]})
        evaluate(folder, 50, {0: [seed / 4]})
        changes["config"] |= {"patch_size": 16} if family == "vit" else {}
        write(folder, **changes, summary={"gpu_hours": 1.5, "checkpoint": "somewhere"})
    return cell.parents[1]


def test_tensorboards_hparams_page_lists_every_cell_with_its_metrics(cells: Path) -> None:
    from tensorboard import context
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(cells)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(cells))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    experiment = backend.experiment_from_metadata(
        context.RequestContext(), "", True, backend.hparams_metadata(context.RequestContext(), ""), []
    )
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=10, include_metrics=True)
    request.allowed_statuses.extend([api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE])
    for info in experiment.metric_infos:
        request.col_params.add().metric.CopyFrom(info.name)
    groups = list_session_groups.Handler(context.RequestContext(), backend, "", request).run().session_groups

    shown = {
        group.hparams["seed"].number_value: (
            {key: value.string_value or value.number_value for key, value in group.hparams.items()},
            {metric.name.tag: metric.value for metric in group.metric_values},
            group.sessions[0].status,
        )
        for group in groups
    }
    assert sorted(shown) == [0, 1, 2]
    hparams, metrics, status = shown[1]
    assert (hparams["family"], hparams["fraction"], hparams["patch_size"], hparams["gpu_hours"]) == (
        "vit",
        0.3,
        16,
        1.5,
    )
    assert "checkpoint" not in hparams
    assert metrics["downstream/mnist/5shot/accuracy"] == 0.25
    assert metrics["upstream/accuracy"] == float(np.float32(0.05))
    assert status == api_pb2.STATUS_SUCCESS
    assert shown[2][1]["downstream/mnist/5shot/accuracy"] == 0.5
    assert "patch_size" not in shown[2][0]
    assert shown[0][2] == api_pb2.STATUS_FAILURE
    assert "downstream/mnist/5shot/accuracy" not in shown[0][1]
    assert {info.name for info in experiment.hparam_infos if info.differs} == {"family", "seed"}


@pytest.fixture
def running(cells: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows these cells, started by the line that `status` prints."""
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(cells), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = next(match[0] for line in process.stderr if (match := re.search(r"http://127.0.0.1:\d+", line)))
        yield address
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()


def asked(address: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """What it answers; loopback is not proxied."""
    request = urllib.request.Request(f"{address}/data/plugin/{path}", json.dumps(body).encode() if body else None)
    request.add_header("Content-Type", "application/json")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return json.load(answer)


def test_a_running_tensorboard_shows_one_folder_a_cell(cells: Path, running: str) -> None:
    names = {os.path.relpath(path, cells) for path in cells.glob("*/*/tensorboard")}
    wait_until(lambda: set(asked(running, "scalars/tags")) == names, "every cell is loaded")
    tags = asked(running, "scalars/tags")
    judged = f"{CELL_ID[:2]}/{CELL_ID}/tensorboard"
    assert {"train/loss", "upstream/accuracy", "downstream/mnist/5shot/accuracy"} <= set(tags[judged])
    query = urlencode({"tag": "downstream/mnist/5shot/accuracy", "run": judged})
    points = asked(running, f"scalars/scalars?{query}")
    assert [(step, value) for _, step, value in points] == [(320, 0.125), (800, 0.25)]

    experiment = asked(running, "hparams/experiment", {"experimentName": "", "includeMetrics": True})
    metrics = [info["name"] for info in experiment["metricInfos"]]
    assert {"tag": "downstream/mnist/5shot/accuracy", "group": ""} in [{"group": "", **name} for name in metrics]
    request = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_FAILURE"],
        "colParams": [{"metric": name} for name in metrics],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = asked(running, "hparams/session_groups", request)["sessionGroups"]
    accuracies = {
        group["hparams"]["seed"]: metric["value"]
        for group in groups
        for metric in group["metricValues"]
        if metric["name"]["tag"] == "downstream/mnist/5shot/accuracy"
    }
    assert (len(groups), accuracies) == (3, {1: 0.25, 2: 0.5})
