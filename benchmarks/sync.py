"""Offline runs to W&B: `upshot sync` of a study's cells beside `wandb sync` called for each run, to a loopback server.

The cells are short: 100 steps, two checkpoints, one evaluation; their jobs have left an offline run each. wandb is
called for a sample of them, half before and half after, and scaled; what it is told goes to a server of its own. Both
are real commands with the real client. Then the time of a repeat with nothing new.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orchestrator import tracking
from tests.orchestrator.ran_study import RanStudy
from tests.orchestrator.upshot_command import UPSHOT
from tests.wandb_server import WandbServer


def main() -> None:
    """Prints one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=20, help="runs that wandb is called for")
    parser.add_argument("--jobs", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, WandbServer() as server, WandbServer() as other:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            del os.environ[name]
        os.environ.update(HOME=home, WANDB_CONFIG_DIR=home, WANDB_CACHE_DIR=home, WANDB_DATA_DIR=home)
        study = RanStudy(Path(home), options.cells)
        for cell_id in study.ids:
            study.run(cell_id)
        sample = study.ids[: options.sample]
        runs = [offline_run(study, cell_id, Path(home) / "offline") for cell_id in sample]

        half = len(runs) // 2
        theirs = [wandb_sync(other, run) for run in runs[:half]]
        ours = upshot_sync(server, study, options.jobs)
        theirs += [wandb_sync(other, run) for run in runs[half:]]
        again = upshot_sync(server, study, options.jobs)
        assert study.differing(server) == []
        assert all(study.is_told(cell_id, other.runs.get(cell_id)) for cell_id in sample)
    each, number = statistics.fmean(theirs), len(study.ids)
    say("upshot sync", f"{ours:.1f} s for {number:,} runs, {options.jobs} at once: {number / ours:.1f} a second")
    say("wandb sync, each", f"{each:.2f} s a run (mean of {len(runs)}), so {each * number:.0f} s for as many")
    say("ratio", f"{each * number / ours:.1f} x as fast (wandb's time is scaled from {len(runs)} runs)")
    say("upshot sync, nothing new", f"{again:.2f} s")


def offline_run(study: RanStudy, cell_id: str, aside: Path) -> Path:
    """The cell's offline run, as its job leaves it, put aside: once `upshot sync` was there wandb would skip it."""
    description = tracking.describe(study.store, cell_id)
    made = tracking.mirror_cell(study.folder(cell_id), description, mode="offline", outcome="done")
    assert made.folder is not None, made.error
    aside.mkdir(exist_ok=True)
    return made.folder.rename(aside / made.folder.name)


def wandb_sync(server: WandbServer, run: Path) -> float:
    """The seconds of `wandb sync` of one run."""
    return seconds(server, [sys.executable, "-m", "wandb", "sync", str(run)])


def upshot_sync(server: WandbServer, study: RanStudy, jobs: int) -> float:
    """The seconds of `upshot sync` of the whole study."""
    return seconds(server, [str(UPSHOT), "sync", str(study.root), "--jobs", str(jobs)])


def seconds(server: WandbServer, command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env={**os.environ, **server.environment}, check=True, capture_output=True)
    return time.perf_counter() - began


def say(what: str, told: str) -> None:
    print(f"{what:28}{told}", flush=True)


if __name__ == "__main__":
    main()
