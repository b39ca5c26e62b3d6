"""The slow half of the faults: what takes down a node, a daemon, or a job's time. `make soak` runs it."""

import os
import signal
from pathlib import Path

import pytest

from slurm import jobs
from tests.faults.conftest import LONG, START_S, Faulty, bring_up
from tests.orchestrator.upshot_command import upshot
from tests.private_slurm import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.soak]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_kill_9_of_the_step_s_parent(faulty: Faulty, undisturbed_long: dict[str, str]) -> None:
    faulty.submit(*LONG)
    [cell] = faulty.store.cells()
    faulty.cells = [cell.cell_id]
    victim = cell.cell_id
    start = faulty.wait_until_it_trains(victim)
    parent = parent_of(int(str(start["pid"])))
    assert "slurmstepd" in Path(f"/proc/{parent}/cmdline").read_text()
    os.kill(parent, signal.SIGKILL)
    faulty.watch()
    # A task that lives on without its parent may end well before Slurm misses the parent.
    assert set(faulty.causes(victim)) in (set(), {"killed"}, {"node-failure"}, {"requeue"})
    faulty.check(undisturbed_long)


def test_a_time_limit_met_without_warning(faulty: Faulty, undisturbed_long: dict[str, str]) -> None:
    faulty.submit(*LONG)
    [cell] = faulty.store.cells()
    faulty.cells = [cell.cell_id]
    wait_until(lambda: bool(faulty.store.finalised_steps(cell.cell_id)), "a checkpoint", timeout_s=START_S)
    faulty.cluster.run("scontrol", "update", f"JobId={faulty.job_of(cell.cell_id)}", "TimeLimit=0")
    faulty.watch()
    starts = [r["step"] for r in faulty.records(cell.cell_id) if r["event"] == "start"]
    assert starts[0] == 0 < starts[1]
    assert faulty.causes(cell.cell_id) == ["time-limit"]
    faulty.check(undisturbed_long)


def test_a_node_set_down(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    faulty.submit()
    victim = faulty.cells[0]
    node = str(faulty.wait_until_it_trains(victim)["node"])
    try:
        faulty.cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        faulty.watch()
    finally:
        bring_up(faulty.cluster, node)
    assert set(faulty.causes(victim)) == {"node-failure"}
    faulty.check(undisturbed)


def test_a_slurmd_killed_whose_task_lives_on(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    faulty.submit()
    victim = faulty.cells[0]
    node = str(faulty.wait_until_it_trains(victim)["node"])
    faulty.cluster.kill(f"slurmd.{node}")
    try:
        faulty.watch()
    finally:
        bring_back(faulty, node)
    faulty.check(undisturbed)


def test_a_node_that_loses_its_power(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    faulty.submit()
    victim = faulty.cells[0]
    start = faulty.wait_until_it_trains(victim)
    node = str(start["node"])
    faulty.cluster.kill(f"slurmd.{node}")
    for pid in (parent_of(int(str(start["pid"]))), int(str(start["pid"]))):
        os.kill(pid, signal.SIGKILL)
    try:
        faulty.watch()
    finally:
        bring_back(faulty, node)
    assert faulty.causes(victim) == ["node-failure"]
    faulty.check(undisturbed)


def bring_back(faulty: Faulty, node: str) -> None:
    faulty.cluster.start_again(f"slurmd.{node}")
    wait_until(lambda: faulty.cluster.run("sinfo", "-hn", node, "-o%t").strip() in ("idle", "mix"), f"{node} is back")


def test_the_controller_restarted_while_jobs_run(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    faulty.submit()
    for cell_id in faulty.cells:
        faulty.wait_until_it_trains(cell_id)
    faulty.cluster.kill("slurmctld")
    assert {state["status"] for state in faulty.states().values()} <= {"running", "unknown", "done"}
    faulty.cluster.start_again("slurmctld")
    faulty.watch()
    assert [faulty.causes(cell_id) for cell_id in faulty.cells] == [[], []]
    faulty.check(undisturbed)


def test_the_accounts_stopped_while_a_task_dies(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    faulty.submit()
    victim = faulty.cells[0]
    faulty.wait_until_it_trains(victim)
    faulty.cluster.kill("slurmdbd")
    try:
        faulty.kill(victim)
        faulty.watch()
    finally:
        faulty.cluster.start_again("slurmdbd")
    assert faulty.causes(victim) == ["killed"]
    faulty.check(undisturbed)


def test_a_node_on_which_no_job_starts_is_left_out(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    line = """setup = ['[ "$SLURMD_NODENAME" != cpu0 ] || exit 3']"""
    faulty.profile.write_text(line + "\n" + faulty.profile.read_text())
    faulty.submit()
    faulty.watch()
    died = [cell_id for cell_id in faulty.cells if faulty.causes(cell_id)]
    assert died, "one cell at least was to begin on cpu0"
    for cell_id in died:
        assert set(faulty.causes(cell_id)) == {"launch-failure"}
    assert ["cpu0"] in [manifest.resources["exclude"] for manifest in faulty.store.manifests()]
    faulty.check(undisturbed)


def test_set_up_lines_that_fail_everywhere_end_in_words(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    healthy = faulty.profile.read_text()
    faulty.profile.write_text('setup = ["exit 3"]\n' + healthy)
    faulty.submit()
    said = faulty.watch(code=1)
    assert "launch-failure" in said
    assert faulty.causes(faulty.cells[0]) == ["launch-failure"] * 3  # two retries
    faulty.profile.write_text(healthy)
    assert "nothing to submit" in faulty.submit()  # but the mended profile holds from now on
    assert "submitted 2 cells" in upshot("retry", faulty.store.root)
    faulty.watch()
    faulty.check(undisturbed)


def test_an_accelerator_s_memory_halves_the_micro_batch(faulty: Faulty) -> None:
    from tests.faults import bodies

    bodies.order(faulty.store.root, faulty.cells[0], "accelerator memory")
    faulty.submit_mischievous()
    faulty.watch_mischievous()
    assert faulty.causes(faulty.cells[0]) == ["accelerator-oom"]
    assert [m.micro_batch for m in faulty.store.manifests() if m.stage == "train"] == [None, 32]
    assert {state["status"] for state in faulty.states().values()} == {"done"}


def test_a_watch_that_runs_as_a_job(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    faulty.submit()
    said = upshot("watch", faulty.store.root, "--as-job", "--every", "1")
    assert "watches faults" in said
    assert said == upshot("watch", faulty.store.root, "--as-job", "--every", "1")
    [job] = jobs.query_live("upshot-faults-watch").values()
    wait_until(lambda: (faulty.store.root / "driver.lock").exists(), "the job drives", timeout_s=START_S)
    victim = faulty.cells[0]
    faulty.wait_until_it_trains(victim)
    faulty.kill(victim)
    wait_until(lambda: len(faulty.events(victim, event="start")) == 2, "it is started again", timeout_s=START_S)
    faulty.cluster.run("scancel", "--signal=USR2", job.job_id)  # as near the time limit
    wait_until(lambda: not jobs.query_live("upshot-faults-"), "all has ended, the watch too", timeout_s=4 * START_S)
    faulty.check(undisturbed)
