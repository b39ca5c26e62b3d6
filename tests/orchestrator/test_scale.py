"""Hundreds of cells on a private Slurm cluster: how often the scheduler is asked, whatever their number.

The benchmark (`benchmarks.scale`) does the same with thousands, and measures times.
"""

from pathlib import Path

import pytest

from benchmarks import stand_in
from benchmarks.scale import Calls, check_once, open_study
from orchestrator import drive

ROOT = Path(__file__).parents[2]
NUM_CELLS = 288

pytestmark = pytest.mark.slurm


def test_a_look_is_one_squeue_and_an_array_one_sbatch(tmp_path, on_slurm, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the stand-in; the snapshot comes before it
    session = open_study(tmp_path / "scale", NUM_CELLS, pack=24)
    calls = Calls(tmp_path / "bin")
    planned = drive.submit(session.store, session.file, session.profile, function=stand_in.run_task).plan
    asked = calls.take()
    assert asked["sbatch"] == planned.sbatch_calls == 2
    assert asked["squeue"] == 2  # before the lock is taken, and with it
    looks = []
    last = drive.watch(
        session.store,
        session.file,
        session.profile,
        show=looks.append,
        tick_s=1.0,
        function=stand_in.run_task,
    )
    asked = calls.take()
    assert asked["squeue"] == len(looks)
    assert (asked["sbatch"], asked["sacct"]) == (0, 0)
    assert asked["scontrol"] + asked["sinfo"] <= 3  # the cluster's limits, once
    assert {state.status for state in last.states} == {"done"}
    check_once(session, NUM_CELLS)
    assert session.collect().collect().height == NUM_CELLS
