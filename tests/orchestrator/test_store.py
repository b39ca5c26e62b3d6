import json
import os
import threading
import time

import pytest

from models.errors import DataError, StudyError
from orchestrator.grid import cells
from orchestrator.lock import STALE_S
from orchestrator.store import DriverBusyError, Store
from slurm.cluster import local_profile


def test_a_cell_comes_back_as_it_was(small):
    small.store.write_cells(small.cells)
    assert [small.store.read_cell(cell.cell_id) for cell in small.cells] == small.cells


def test_cells_that_a_study_no_longer_has_stay_on_record(small):
    small.store.write_cells(small.cells[:1])
    small.store.write_cells(small.cells[1:])
    assert small.store.read_cell(small.cells[0].cell_id) == small.cells[0]


def test_a_damaged_cell_record_is_named_and_mended(small):
    small.store.write_cells(small.cells)
    path = small.store.root / "cells.ndjson"
    path.write_text(path.read_text()[:-50])
    with pytest.raises(DataError, match=r"cells\.ndjson"):
        small.store.read_cell(small.cells[-1].cell_id)
    small.store.write_cells(small.cells)
    assert small.store.read_cell(small.cells[-1].cell_id) == small.cells[-1]
    with pytest.raises(DataError, match="no line there"):
        small.store.read_cell("0" * 16)


def test_a_folder_without_a_study_says_so(tmp_path):
    with pytest.raises(StudyError, match="holds no study"):
        Store(tmp_path).study()


def test_the_kept_study_makes_the_same_cells(small):
    small.store.write_study(small.file.text, local_profile())
    assert cells(small.store.study(), small.store.study_path) == small.cells


def test_one_driver_at_a_time(small):
    with small.store.driving(), pytest.raises(DriverBusyError, match=f"pid {os.getpid()}"), small.store.driving():
        pass
    with small.store.driving():
        pass


def test_a_driver_that_slept_too_long_notices(small):
    with small.store.driving() as check:
        check()
        os.utime(small.store.root / "driver.lock", (0, 0))
        with small.store.driving(), pytest.raises(DriverBusyError, match="was lost"):
            check()


def test_a_dead_drivers_lock_goes_stale(small):
    small.store.root.mkdir(parents=True)
    lock = small.store.root / "driver.lock"
    lock.write_text("a driver that was killed")
    long_ago = time.time() - STALE_S - 1
    os.utime(lock, (long_ago, long_ago))
    with small.store.driving():
        assert "killed" not in lock.read_text()
    assert not lock.exists()


def test_of_many_drivers_that_find_a_stale_lock_one_drives(small):
    small.store.root.mkdir(parents=True)
    lock = small.store.root / "driver.lock"
    lock.write_text("dead")
    os.utime(lock, (0, 0))
    start, inside, most, refused = threading.Barrier(8), [], [], []

    def drive():
        start.wait()
        try:
            with small.store.driving():
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.05)  # the others come while it is held
                inside.pop()
        except DriverBusyError:
            refused.append(1)

    threads = [threading.Thread(target=drive) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) + len(refused) == 8


def test_a_link_in_the_locks_place_is_not_followed(small, tmp_path):
    small.store.root.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (small.store.root / "driver.lock").symlink_to(victim)
    with pytest.raises(DriverBusyError), small.store.driving():
        pass
    assert victim.read_text() == "precious"


def test_a_cell_s_record_that_a_power_cut_emptied_is_written_anew(small):
    cell = small.cells[0]
    small.store.keep_cell(cell)
    path = small.store.cell_folder(cell.cell_id) / "cell.json"
    before = path.read_text()
    path.write_text("")
    small.store.keep_cell(cell)
    assert path.read_text() == before
    assert json.loads(before)["cell_id"] == cell.cell_id
