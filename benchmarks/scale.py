"""Thousands of cells through a private real Slurm cluster: how long, and how often the controller is asked.

The cells' body is a stand-in of milliseconds (`benchmarks.stand_in`); plan, snapshot, manifests, sbatch, jobs, ledger,
locks, dependencies, watch and collect are the real ones. The rivals are submitit's own ways, in the same run.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import submitit

from benchmarks import stand_in
from orchestrator import drive
from orchestrator.observe import Observer
from orchestrator.session import Session, open_session
from tests.private_slurm import PrivateSlurm, clean_environment

COMMANDS = ("sbatch", "squeue", "sacct", "sinfo", "scontrol", "sacctmgr")
STUDY = """
name = "scale"
[upstream]
dataset = "icons"
[grid]
family = ["vit", "mixer", "resnet"]
size = ["pico", "nano"]
patch_size = 8
fraction = [0.1, 0.2, 0.5, 1.0]
head_weight_decay = [0.03, 0.3, 1.0, 3.0]
seed = {seeds}
[downstream]
tasks = ["mnist"]
shots = [1]
draws = 1
[wandb]
mode = "disabled"
[cluster]
profile = "cluster.toml"
pack = {pack}
"""
PROFILE = """
throttle = 1000
[partitions.cpu]
cpus_per_node = 4
memory_gb_per_node = 60
max_time_min = 600
"""
CELLS_A_SEED = 96


def main() -> None:
    """Prints one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=4800, help=f"a multiple of {CELLS_A_SEED}")
    parser.add_argument("--pack", type=int, default=60, help="cells a job in the run that is brought to its end")
    parser.add_argument("--loop", type=int, default=100, help="submissions of submitit's loop that are timed")
    parser.add_argument("--watched", type=int, default=200, help="jobs that submitit's watcher waits for")
    parser.add_argument("--accounting", action="store_true", help="a cluster that keeps accounts")
    options = parser.parse_args()
    cluster = PrivateSlurm(
        num_nodes=4,
        cpus_per_node=4,
        max_array_size=10_001,
        accounting=options.accounting,
        extra_conf=["MaxJobCount=50000", "MinJobAge=300"],
    )
    with cluster, tempfile.TemporaryDirectory() as folder:
        for name in clean_environment().keys() ^ os.environ.keys():
            del os.environ[name]
        os.environ.update(cluster.env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])})
        counts = Calls(Path(folder) / "bin")
        measure_submission(Path(folder), options.cells, options.loop, counts)
        measure_run(cluster, Path(folder), options.cells, options.pack, counts)
        measure_watcher(cluster, Path(folder), options.watched)


class Calls:
    """Counts the Slurm commands of this process and of all that it starts, by scripts in front of the real ones."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.log = folder / "calls"
        for command in COMMANDS:
            real = shutil.which(command)
            script = folder / command
            script.write_text(f'#!/bin/sh\necho {command} >> {self.log}\nexec {real} "$@"\n')
            script.chmod(0o755)
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"

    def take(self) -> Counter[str]:
        """The calls since the last take."""
        found = Counter(self.log.read_text().split()) if self.log.exists() else Counter()
        self.log.unlink(missing_ok=True)
        return found


def open_study(folder: Path, cells: int, pack: int) -> Session:
    folder.mkdir()
    (folder / "cluster.toml").write_text(PROFILE)
    path = folder / "scale.toml"
    path.write_text(STUDY.format(seeds=list(range(max(1, cells // CELLS_A_SEED))), pack=pack))
    return open_session(path, folder / "runs", [])


def measure_submission(folder: Path, cells: int, loop: int, calls: Calls) -> None:
    """One array task a cell: upshot's submission of the trainings beside submitit's loop and its own array."""
    session = open_study(folder / "unpacked", cells, pack=1)
    # The nodes are taken: only the way into the queue is measured, and hundreds of processes would disturb it.
    subprocess.run(["sbatch", "-Q", "-N4", "--exclusive", "-t60", "-o/dev/null", "--wrap=sleep 3000"], check=True)
    while b"R" not in subprocess.run(["squeue", "-ho%t"], capture_output=True, check=True).stdout:
        time.sleep(0.2)
    calls.take()
    began = time.perf_counter()
    seen = drive.submit(session.store, session.file, session.profile, function=stand_in.run_task)
    ours = time.perf_counter() - began
    num_tasks = sum(array.num_tasks for array in seen.plan.arrays)
    say("upshot submit, one job a cell", f"{ours:.1f} s for {num_tasks:,} array tasks ({calls.take()})")
    driver = drive.Driver(session.store, session.file, session.profile, function=stand_in.run_task)
    driver.tick()
    ticks = [timed(driver.tick) for _ in range(3)]
    say(f"tick, {num_tasks:,} live tasks", f"{statistics.median(ticks):.2f} s ({calls.take()} in 4 ticks)")
    drive.cancel(session.store)

    executor = executor_in(folder / "loop")
    per_task = statistics.median(timed(lambda i=i: executor.submit(stand_in.nothing, i)) for i in range(loop))
    say(f"submitit loop, median of {loop}", f"{per_task:.3f} s a task, so {per_task * num_tasks:.0f} s for as many")
    executor = executor_in(folder / "array")
    theirs = timed(lambda: executor.map_array(stand_in.nothing, list(range(num_tasks))))
    subprocess.run(["scancel", "--user", str(os.getuid())], check=True)
    say("submitit map_array", f"{theirs:.1f} s for {num_tasks:,} array tasks")
    say("ratio to the loop", f"{per_task * num_tasks / ours:.0f} x as fast (the loop is scaled from {loop})")
    say("ratio to map_array", f"{theirs / ours:.2f} x as fast")
    wait_for_empty_queue()


def measure_run(cluster: PrivateSlurm, folder: Path, cells: int, pack: int, calls: Calls) -> None:
    """The whole way, packed, to the collected results; every cell once."""
    session = open_study(folder / "packed", cells, pack)
    calls.take()
    cluster.run("sdiag", "--reset")
    began = time.perf_counter()
    drive.submit(session.store, session.file, session.profile, function=stand_in.run_task)
    say(f"upshot submit, {pack} cells a job", f"{time.perf_counter() - began:.1f} s ({calls.take()})")
    ticks = Counter()
    seen = drive.watch(
        session.store,
        session.file,
        session.profile,
        show=lambda _: ticks.update(["ticks"]),
        tick_s=5.0,
        function=stand_in.run_task,
    )
    wall = time.perf_counter() - began
    assert seen is not None
    check_once(session, len(seen.states))
    say("submit to settled", f"{wall:.0f} s for {len(seen.states):,} cells, {ticks['ticks']} ticks ({calls.take()})")
    say("controller RPCs", f"{rpcs(cluster)} for {len(seen.states):,} cells trained and evaluated")
    say("look with all done", f"{timed(Observer(session.store, session.file, session.profile).look):.2f} s, first look")
    rows = session.collect().collect().height
    assert rows == len(seen.states), rows
    say("collected", f"{rows:,} rows")


def check_once(session: Session, wanted: int) -> None:
    done = Counter(
        event["stage"]
        for cell in session.store.cells()
        for event in session.store.attempts(cell.cell_id)
        if event["event"] == "end" and event["outcome"] == "done"
    )
    assert done == {"train": wanted, "evaluate": wanted}, done


def measure_watcher(cluster: PrivateSlurm, folder: Path, jobs: int) -> None:
    """What submitit's own watcher asks of the controller for an array whose results are waited for."""
    cluster.run("sdiag", "--reset")
    executor = executor_in(folder / "watched")
    began = time.perf_counter()
    results = [job.result() for job in executor.map_array(stand_in.nothing, list(range(jobs)))]
    wall = time.perf_counter() - began
    say("submitit, map_array + result", f"{rpcs(cluster)} RPCs for {len(results)} jobs in {wall:.0f} s")


def executor_in(folder: Path) -> submitit.SlurmExecutor:
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(partition="cpu", time=10, mem="100MB", array_parallelism=1000)
    return executor


def rpcs(cluster: PrivateSlurm) -> int:
    """Requests of users that the controller has answered since its counters were reset, as sdiag has them."""
    by_user = cluster.run("sdiag").partition("Remote Procedure Call statistics by user")[2]
    return sum(int(count) for count in re.findall(r"count:(\d+)", by_user))


def wait_for_empty_queue() -> None:
    while subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout:
        time.sleep(0.5)


def timed(function: object) -> float:
    began = time.perf_counter()
    function()  # type: ignore[operator]
    return time.perf_counter() - began


def say(what: str, told: str) -> None:
    print(f"{what:34}{told}".replace("Counter(", "").replace("{", "").replace("})", ""), flush=True)


if __name__ == "__main__":
    sys.exit(main())
