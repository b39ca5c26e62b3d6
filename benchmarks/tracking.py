"""What mirroring costs a training step: with the mirror beside it, and, the rival, with tracking disabled.

A small model takes steps and leaves a record every tenth. Beside it the real mirror tells the real client, every five
seconds instead of every minute, to a server that is well, that answers 429, or that hangs. Slices of steps with the
mirror and slices with it and its client stopped, which is as if tracking were disabled, take turns.
`of a core` is the processor time that mirror and client take, were it once a minute: as training itself does nothing
for them, the most that they can take from it, and what the limit is about. The ratio is of wall time, and no better
than the machine is quiet.
"""

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn import functional

from orchestrator import tracking
from orchestrator.files import append_record
from orchestrator.grid import cells
from orchestrator.store import Store
from orchestrator.study import load_study
from orchestrator.tracking import live
from slurm.cluster import load_profile
from tests.wandb_server import Fault, WandbServer

ROUNDS = 100
SLICE_S = 0.25  # short ones, so that what else the machine does falls on both alike
PERIOD_S = 5.0
LIMIT = 0.01
STUDY = """
name = "tracked"
[upstream]
dataset = "icons"
[grid]
family = "vit"
size = "pico"
[downstream]
tasks = ["mnist"]
shots = [1]
draws = 1
[wandb]
mode = "online"
"""
FAULTS: dict[str, Fault | None] = {"well": None, "429": 429, "hanging": "hang"}


def main() -> None:
    """Prints, for each state of the server, what a step takes as a multiple of one without tracking."""
    print(f"{'server':10}{'step ms':>10}{'disabled ms':>14}{'ratio':>9}{'of a core':>12}{'rows told':>12}")
    for name, fault in FAULTS.items():
        with tempfile.TemporaryDirectory() as home, WandbServer() as server:
            os.environ.update(server.environment, HOME=home, WANDB_CONFIG_DIR=home, WANDB_CACHE_DIR=home)
            folder = _cell(Path(home))
            step = _steps(folder / "train.ndjson")
            _seconds_a_step(step)
            with tracking.following(folder, hurried=lambda: True, period_s=PERIOD_S):
                while not any(run.lines for run in server.runs.values()):
                    _seconds_a_step(step)
                if fault is not None:
                    server.fail(fault)
                used, began = _cpu_seconds(), time.perf_counter()
                ours, theirs = _in_turn(step)
                share = (_cpu_seconds() - used) / (time.perf_counter() - began) * PERIOD_S / live.PERIOD_S
            told = sum(len(run.lines) for run in server.runs.values())
        mean, disabled = statistics.fmean(ours), statistics.fmean(theirs)
        ratio = mean / disabled
        columns = f"{mean * 1e3:10.2f}{disabled * 1e3:14.2f}{ratio:9.4f}{share:12.2%}{told:12}"
        print(f"{name:10}{columns}", end="", flush=True)
        print(f"   limit {LIMIT:.0%} of a core: {'kept' if share < LIMIT else 'BROKEN'}")


def _cpu_seconds() -> float:
    """Of the mirror and its client so far."""
    ticks = [
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in _descendants(os.getpid())
    ]
    return sum(int(user) + int(system) for user, system in ticks) / os.sysconf("SC_CLK_TCK")


def _in_turn(step: Callable[[], None]) -> tuple[list[float], list[float]]:
    """Seconds a step with the mirror, and with it stopped."""
    ours, theirs = [], []
    for number in range(ROUNDS):
        for stopped in (False, True) if number % 2 else (True, False):
            if stopped:
                with _stopped():
                    theirs.append(_seconds_a_step(step))
            else:
                ours.append(_seconds_a_step(step))
    return ours, theirs


def _cell(home: Path) -> Path:
    path = home / "tracked.toml"
    path.write_text(STUDY)
    file, store = load_study(path), Store(home / "tracked")
    store.write_study(file.text, load_profile("local"))
    store.write_cells(cells(file.study, path))
    folder = store.cell_folder(store.cells()[0].cell_id)
    folder.mkdir(parents=True)
    return folder


def _steps(log: Path) -> Callable[[], None]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(8)])
    optimizer = torch.optim.AdamW(model.parameters())
    x_BD, y_BD = torch.randn(64, 512), torch.randn(64, 512)
    number = 0

    def step() -> None:
        nonlocal number
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x_BD), y_BD)
        loss.backward()
        optimizer.step()
        number += 1
        if number % 10 == 0:
            record = {"event": "train", "step": number, "examples_seen": 64 * number, "train_loss": loss.item()}
            append_record(log, {"time": time.time(), **record})

    return step


def _seconds_a_step(step: Callable[[], None]) -> float:
    began, taken = time.perf_counter(), 0
    while time.perf_counter() - began < SLICE_S:
        step()
        taken += 1
    return (time.perf_counter() - began) / taken


@contextmanager
def _stopped() -> Iterator[None]:
    """Stops the mirror and its client while the block runs."""
    family = _descendants(os.getpid())
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)


def _descendants(parent: int) -> list[int]:
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    fields = [(int(text.split()[0]), int(text.rpartition(")")[2].split()[1])) for text in stats]
    return [found for pid, its in fields if its == parent for found in (pid, *_descendants(pid))]


if __name__ == "__main__":
    main()
