"""Faults provoked for real: what kills a task, a job, a driver or a file. `make test` runs those not marked soak."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from slurm import jobs
from tests.faults import bodies
from tests.faults.conftest import ROOT, START_S, Faulty, with_sbatch
from tests.orchestrator.upshot_command import UPSHOT, upshot
from tests.private_slurm import wait_until

pytestmark = pytest.mark.slurm


def test_kill_9_of_the_task(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    faulty.submit()
    victim = faulty.cells[0]
    faulty.wait_until_it_trains(victim)
    faulty.kill(victim)
    faulty.watch()
    assert faulty.causes(victim) == ["killed"]
    assert "killed" in faulty.why(victim)
    faulty.check(undisturbed)


def test_an_exception_and_the_host_s_memory(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    buggy, hungry = faulty.cells
    bodies.order(faulty.store.root, buggy, "bug")
    bodies.order(faulty.store.root, hungry, "memory")
    faulty.submit_mischievous()
    assert faulty.watch_mischievous().num_failed == 1
    assert faulty.causes(buggy) == ["code-error"]
    assert "ZeroDivisionError: a bug in the training code" in faulty.why(buggy)
    assert faulty.causes(hungry) == ["oom"]
    asked = [m.resources["mem_gb"] for m in faulty.store.manifests() if m.stage == "train" and m.tasks == [[hungry]]]
    first = next(m for m in faulty.store.manifests() if m.stage == "train")
    assert asked == [2 * first.resources["mem_gb"]]
    assert "submitted 1 cells" in upshot("retry", faulty.store.root, "--cause", "code-error")
    faulty.watch()
    faulty.check(undisturbed)


def test_scontrol_requeue(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    faulty.submit()
    victim = faulty.cells[0]
    faulty.wait_until_it_trains(victim)
    faulty.cluster.run("scontrol", "requeue", faulty.job_of(victim))
    faulty.watch()
    assert faulty.causes(victim) == ["requeue"]
    assert len(faulty.store.manifests()) == 2
    faulty.check(undisturbed)


def test_preemption_by_a_higher_partition(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    faulty.submit("--set", "cluster.partition=scavenge")
    for cell_id in faulty.cells:
        faulty.wait_until_it_trains(cell_id)
    faulty.cluster.run("sbatch", "-Q", "-p", "cpu", "-N3", "--exclusive", "-o/dev/null", "--wrap=sleep 8")
    faulty.watch()
    for cell_id in faulty.cells:
        assert set(faulty.causes(cell_id)) == {"preemption"}
        assert "preemption" in faulty.why(cell_id)
    assert len(faulty.store.manifests()) == 2
    faulty.check(undisturbed)


def test_a_job_cancelled_by_hand(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    faulty.submit()
    victim = faulty.cells[0]
    faulty.wait_until_it_trains(victim)
    faulty.cluster.run("scancel", faulty.job_of(victim))
    faulty.watch(code=1)
    assert faulty.causes(victim) == ["cancelled"]
    assert "submitted 1 cells" in upshot("retry", faulty.store.root)
    faulty.watch()
    faulty.check(undisturbed)


@pytest.mark.soak
def test_without_accounts_files_tell(faulty_without_accounts: Faulty, undisturbed: dict[str, str]) -> None:
    faulty = faulty_without_accounts
    faulty.submit()
    killed, requeued = faulty.cells
    faulty.wait_until_it_trains(killed)
    faulty.wait_until_it_trains(requeued)
    faulty.kill(killed)
    faulty.cluster.run("scontrol", "requeue", faulty.job_of(requeued))
    faulty.watch()
    assert faulty.causes(killed) == ["killed"]
    assert faulty.causes(requeued) == ["requeue"]
    faulty.check(undisturbed)


def test_a_corrupt_newest_checkpoint(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    faulty.submit()
    victim = faulty.cells[0]
    wait_until(lambda: len(faulty.store.finalised_steps(victim)) >= 2, "two checkpoints", timeout_s=START_S)
    faulty.kill(victim)
    newest = faulty.store.checkpoints(victim) / f"step_{faulty.store.finalised_steps(victim)[-1]:08d}"
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    faulty.watch()
    assert list(faulty.store.checkpoints(victim).glob("corrupt-*"))
    faulty.check(undisturbed)


def test_sbatch_that_times_out_after_the_job_was_taken(
    faulty: Faulty, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    with_sbatch(tmp_path / "bin", f'"$SBATCH" "$@" >/dev/null; echo "{said}" >&2; exit 1', monkeypatch)
    assert "the next look tells" in faulty.submit()
    (tmp_path / "bin" / "sbatch").unlink()
    assert faulty.store.manifests()[0].job_id is None
    faulty.watch()
    faulty.check(undisturbed)


def test_a_driver_killed_between_sbatch_and_recording(
    faulty: Faulty, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_sbatch(tmp_path / "bin", '"$SBATCH" "$@"; kill -9 $PPID', monkeypatch)
    faulty.submit(code=-signal.SIGKILL)
    (tmp_path / "bin" / "sbatch").unlink()
    [manifest] = faulty.store.manifests()
    assert manifest.job_id is None
    faulty.watch()
    assert faulty.store.manifest(manifest.token).job_id is not None
    faulty.check(undisturbed)


def test_two_drivers_at_once(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    command = [UPSHOT, "submit", faulty.path, "--runs", faulty.folder / "runs", "-y"]
    drivers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    codes = [(driver.wait(), driver.communicate()) for driver in drivers]
    assert {code for code, _ in codes} <= {0, 2}, codes
    assert all("drives this study" in said[1] for code, said in codes if code == 2)
    faulty.watch()
    assert len(faulty.store.manifests()) == 2
    faulty.check(undisturbed)


@pytest.mark.soak
def test_a_submit_limit(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    user = faulty.cluster.run("id", "-un").strip()
    faulty.cluster.run("sacctmgr", "-iQ", "modify", "user", user, "set", "MaxSubmitJobs=2")
    try:
        assert "submitted 1 cells; 1 wait for room" in faulty.submit()
        most = 0
        with subprocess.Popen([UPSHOT, "watch", faulty.store.root, "--every", "0.5"]) as watching:
            while watching.poll() is None:
                most = max(most, len(jobs.query_live("upshot-faults-")))
                try:
                    watching.wait(0.5)
                except subprocess.TimeoutExpired:
                    continue
        assert watching.returncode == 0
        assert 0 < most <= 2
    finally:
        faulty.cluster.run("sacctmgr", "-iQ", "modify", "user", user, "set", "MaxSubmitJobs=-1")
    faulty.check(undisturbed)


@pytest.mark.soak
def test_a_full_disk_in_the_cell_folder(faulty: Faulty, undisturbed: dict[str, str]) -> None:
    if os.geteuid():
        pytest.skip("mounting a small file system takes root")
    victim = faulty.cells[0]
    folder = faulty.store.cell_folder(victim)
    folder.mkdir(parents=True, mode=0o700)
    faulty.store.root.chmod(0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k,mode=0700", "tmpfs", folder], check=True)
    try:
        faulty.submit()
        faulty.watch(code=1)
        assert set(faulty.causes(victim)) == {"file-system"}
        subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
        assert "submitted 1 cells" in upshot("retry", faulty.store.root, "--cause", "file-system")
        faulty.watch()
        faulty.check(undisturbed)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.soak
def test_edited_code_does_not_reach_queued_jobs(
    faulty: Faulty, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    for room in ("orchestrator", "models", "evals", "slurm", "studies"):
        shutil.copytree(ROOT / room, tree / room)
    monkeypatch.setenv("PYTHONPATH", str(tree))
    blocker = faulty.cluster.run("sbatch", "--parsable", "-N3", "--exclusive", "-o/dev/null", "--wrap=sleep 600")
    faulty.submit()
    for edited in (tree / "orchestrator" / "node" / "work.py", tree / "models" / "train.py"):
        edited.write_text("raise SystemExit('the edited tree was run')")
    faulty.cluster.run("scancel", blocker.strip())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    faulty.watch()
    assert [faulty.causes(cell_id) for cell_id in faulty.cells] == [[], []]
    faulty.check(undisturbed)
