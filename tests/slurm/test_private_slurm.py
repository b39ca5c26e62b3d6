import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.private_slurm import (
    PrivateSlurm,
    PrivateSlurmError,
    Recorded,
    available,
    recorded_daemons,
    shut_down,
    sweep_abandoned,
    wait_until,
)

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[2]
# Ignores SIGTERM and leaves a child behind: the hardest job to be rid of.
STUBBORN_JOB = "trap '' TERM; sleep 1000 & echo $! > {pid_file}; wait; sleep 1000"
OWNER = """
import sys
from tests.private_slurm import PrivateSlurm
cluster = PrivateSlurm(num_nodes=1)
cluster.start()
print(cluster.folder, flush=True)
sys.stdin.read()
"""


def pids_of(folder: Path) -> dict[str, int]:
    return {process.name: process.pid for process in recorded_daemons(folder)}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def start_stubborn_job(cluster: PrivateSlurm, pid_file: Path) -> int:
    cluster.run("sbatch", "--output=/dev/null", f"--wrap={STUBBORN_JOB.format(pid_file=pid_file)}")
    wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), "the job has started")
    return int(pid_file.read_text())


def guard_of(folder: Path) -> int:
    (line,) = [line for line in (folder / "pids").read_text().splitlines() if '"guard"' in line]
    return int(line.split(",")[1])


def test_it_comes_up_with_every_node_idle(private_slurm: PrivateSlurm) -> None:
    nodes = private_slurm.run("sinfo", "-hN", "-o", "%N").split()
    assert sorted(set(nodes)) == sorted(private_slurm.nodes)
    assert {"cpu0", "cpu1", "tpu0"} <= set(nodes)


def test_a_step_spans_two_nodes(private_slurm: PrivateSlurm) -> None:
    said = private_slurm.run("srun", "--nodes=2", "--ntasks=2", "printenv", "SLURMD_NODENAME")
    assert sorted(said.split()) == ["cpu0", "cpu1"]


def test_accelerators_are_scheduled(private_slurm: PrivateSlurm) -> None:
    said = private_slurm.run("srun", "--partition=tpu-v5e", "--gres=tpu:v5e:4", "printenv", "SLURMD_NODENAME")
    assert said.split() == ["tpu0"]
    if private_slurm.gpu:
        command = ("srun", "--partition=gpu-h100", "--gres=gpu:h100:3", "printenv", "CUDA_VISIBLE_DEVICES")
        assert private_slurm.run(*command).split() == ["0,1,2"]


def test_a_failing_command_says_what_slurm_said(private_slurm: PrivateSlurm) -> None:
    with pytest.raises(PrivateSlurmError, match=r"sbatch --partition=nowhere .*exit code 1\n.*invalid partition"):
        private_slurm.run("sbatch", "--partition=nowhere", "--wrap=true")


def test_the_layout_and_further_lines_reach_the_configuration(private_slurm: PrivateSlurm) -> None:
    extra = ["KillWait=7", "PartitionName=other Nodes=cpu0"]
    with PrivateSlurm(num_nodes=1, cpus_per_node=64, max_array_size=55, extra_conf=extra) as cluster:
        config = cluster.run("scontrol", "show", "config")
        nodes = cluster.run("sinfo", "-h", "-o", "%P %D %c").splitlines()
        assert cluster.folder != private_slurm.folder
    assert {"MaxArraySize = 55", "KillWait = 7 sec"} <= {" ".join(line.split()) for line in config.splitlines()}
    assert sorted(nodes) == ["cpu* 1 64", "other 1 64", "scavenge 1 64"]


def test_stop_leaves_nothing_behind(private_slurm: PrivateSlurm, tmp_path: Path) -> None:
    cluster = PrivateSlurm(num_nodes=1)
    cluster.start()
    folder, pids = cluster.folder, pids_of(cluster.folder)
    assert set(pids) == {"munged", "slurmctld", "slurmd.cpu0"}
    watched = [*pids.values(), guard_of(folder), start_stubborn_job(cluster, tmp_path / "pid")]
    assert all(is_running(pid) for pid in watched)
    cluster.stop()
    cluster.stop()
    assert [pid for pid in watched if is_running(pid)] == []
    assert not folder.exists()


@pytest.mark.parametrize("is_guarded", [True, False], ids=["by its guard", "by the next session"])
def test_a_killed_owner_leaves_nothing_behind(private_slurm: PrivateSlurm, tmp_path: Path, is_guarded: bool) -> None:
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        cluster = PrivateSlurm(num_nodes=1)
        cluster._folder = folder
        watched = [*pids_of(folder).values(), start_stubborn_job(cluster, tmp_path / "pid")]
        if not is_guarded:
            os.kill(guard_of(folder), signal.SIGKILL)
        owner.kill()
    if not is_guarded:
        # Without the controller and slurmd nothing but the process table tells of the job.
        for daemon in ("slurmctld", "slurmd.cpu0"):
            os.kill(pids_of(folder)[daemon], signal.SIGKILL)
        wait_until(lambda: not is_running(guard_of(folder)), "the guard is gone")
        sweep_abandoned()
    wait_until(lambda: not any(is_running(pid) for pid in watched), f"gone: {watched}")
    wait_until(lambda: not folder.exists(), f"{folder} is removed")


def test_a_daemon_that_ends_is_reported_with_its_log(private_slurm: PrivateSlurm) -> None:
    before = set(Path("/tmp").glob("private-slurm-*"))
    # All of them end, in an order that depends on the machine.
    with pytest.raises(PrivateSlurmError, match=r"(?s)waiting for slurmctld: .*slurm.* ended\n.*select/nonsense"):
        PrivateSlurm(extra_conf=["SelectType=select/nonsense"]).start()
    assert set(Path("/tmp").glob("private-slurm-*")) <= before


def test_a_node_that_never_comes_is_reported(private_slurm: PrivateSlurm) -> None:
    extra = ["DownNodes=cpu0 State=DRAIN Reason=absent"]
    with pytest.raises(PrivateSlurmError, match=r"(?s)waiting for idle nodes: not there after 1 s\n.*slurmctld.log"):
        PrivateSlurm(num_nodes=1, extra_conf=extra, timeout_s=1).start()


def test_available_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.private_slurm.SEARCH_PATH", "/nonexistent")
    is_available, reason = available(accounting=True)
    assert not is_available
    assert "slurmctld" in reason
    assert "tests/install_packages.sh --accounting" in reason


def test_a_recycled_pid_is_not_taken_for_a_daemon() -> None:
    assert not Recorded("slurmctld", os.getpid(), 1).is_alive()


def test_only_a_private_clusters_folder_is_ever_removed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not the folder of a private cluster"):
        shut_down(tmp_path)
    assert tmp_path.exists()
