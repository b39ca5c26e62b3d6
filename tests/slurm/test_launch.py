import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from slurm.launch import EPHEMERAL_RANGE, MeetingPoint, Rank, listen, meet, meeting_file, own_rank, reachable_name
from tests.private_slurm import PrivateSlurm, wait_until

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")

# Every rank tells the others, through rank 0, what it was told to say; each prints what it heard.
TALK = """
import json, os, socket, sys
from pathlib import Path
from slurm.launch import meet, own_rank

rank = own_rank()
with meet(rank, Path(sys.argv[1]), deadline_s=60) as point:
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == (point.host, str(point.port))
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == (str(rank.rank), str(rank.size))
    if point.listener is None:
        with socket.create_connection((point.host, point.port)) as peer, peer.makefile("rw") as line:
            print(sys.argv[2], file=line, flush=True)
            heard = json.loads(line.readline())
    else:
        peers = [point.listener.accept()[0].makefile("rw") for _ in range(rank.size - 1)]
        heard = sorted([sys.argv[2], *(line.readline().strip() for line in peers)])
        for line in peers:
            print(json.dumps(heard), file=line, flush=True)
print(json.dumps(heard))
"""


def step(rank=0, size=1, **variables):
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_NTASKS": str(size),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    } | variables


@pytest.fixture
def in_step(monkeypatch):
    def enter(rank, size, **variables):
        for name, value in step(rank, size, **variables).items():
            monkeypatch.setenv(name, value)
        return own_rank()

    return enter


def talk(stack, folder, says, rank, size, **variables):
    command = [sys.executable, "-c", TALK, str(folder), says]
    env = {**os.environ, "PYTHONPATH": str(ROOT)} | step(rank, size, **variables)
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    return stack.enter_context(process)


def heard(process):
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(said)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Rank()),
        (step(1, 3, SLURM_LOCALID="0"), Rank(rank=1, size=3, local_rank=0)),
        (step(0, 1), Rank()),
        # A batch script without srun: the job has two tasks, and this is its only process.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Rank()),
        ({k: v for k, v in step(1, 2).items() if k != "SLURM_STEP_NUM_TASKS"}, Rank(rank=1, size=2, local_rank=1)),
    ],
)
def test_a_rank_is_what_srun_says(environ, expected):
    assert own_rank(environ) == expected


def test_the_processes_of_two_array_tasks_on_one_host_meet_their_own(tmp_path):
    with ExitStack() as stack:
        # The others first: they wait for a file that is not there, in a folder that is not there.
        order = [(index, rank) for rank in (2, 1, 0) for index in "45"]
        tasks = {
            (index, rank): talk(stack, tmp_path / "study", f"{index}.{rank}", rank, 3, SLURM_ARRAY_TASK_ID=index)
            for index, rank in order
        }
        for (index, _), process in tasks.items():
            assert heard(process) == [f"{index}.{rank}" for rank in range(3)]
    assert list((tmp_path / "study").iterdir()) == []


def test_the_file_of_an_earlier_start_is_not_used(tmp_path):
    with listen([0]) as dead:
        address = json.dumps({"host": socket.gethostname(), "port": dead.getsockname()[1]})
    for earlier in (step(0, 2), step(0, 2, SLURM_RESTART_COUNT="1"), step(0, 2, SLURM_STEP_ID="1")):
        (tmp_path / meeting_file(earlier)).write_text(address)
    with ExitStack() as stack:
        both = [talk(stack, tmp_path, str(rank), rank, 2, SLURM_RESTART_COUNT="2") for rank in (1, 0)]
        assert [heard(process) for process in both] == [["0", "1"]] * 2
    assert len(list(tmp_path.iterdir())) == 3


def test_who_waits_in_vain_is_told_for_which_file(tmp_path, in_step):
    rank = in_step(1, 2, SLURM_ARRAY_TASK_ID="9")
    with (
        pytest.raises(TimeoutError, match=r"meeting-job7-index9-restart0-step0\.json: rank 0 .* within 0\.2 s"),
        meet(rank, tmp_path, deadline_s=0.2),
    ):
        raise AssertionError("nobody published an address")


def test_rank_0_hands_on_its_open_socket_and_cleans_up(tmp_path, in_step, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "set by another")
    for name in set(VARIABLES) - {"MASTER_PORT"}:
        monkeypatch.delenv(name, raising=False)
    with meet(in_step(0, 2), tmp_path) as point:
        assert MeetingPoint(**json.loads((tmp_path / meeting_file()).read_text())).port == point.port
        assert point.port < int(EPHEMERAL_RANGE.read_text().split()[0])
        socket.create_connection((point.host, point.port)).close()
        with pytest.raises(OSError, match="in use"):
            listen([point.port])
    assert list(tmp_path.iterdir()) == []
    assert {name: os.environ.get(name) for name in VARIABLES} == dict.fromkeys(VARIABLES) | {
        "MASTER_PORT": "set by another"
    }
    assert point.listener.fileno() == -1


def test_a_port_in_use_is_passed_over():
    with listen([0]) as taken, listen([taken.getsockname()[1], 0]) as other:
        assert other.getsockname()[1] not in (0, taken.getsockname()[1])


@pytest.mark.parametrize(("node", "expected"), [("localhost", "localhost"), ("no-such-node.invalid", None)])
def test_the_published_name_is_one_that_resolves(node, expected):
    assert reachable_name({"SLURMD_NODENAME": node}) == (expected or socket.gethostname())
    assert reachable_name({}) == socket.gethostname()


@pytest.mark.slurm
def test_slurm_sets_what_a_rank_is_read_from(private_slurm: PrivateSlurm, tmp_path):
    script = f"{sys.executable} -c 'from slurm.launch import *; print(own_rank(), meeting_file())'"
    said = private_slurm.run("srun", "--nodes=2", "--ntasks=2", f"--chdir={ROOT}", "sh", "-c", script)
    ranks = [line.split(" meeting-")[0] for line in said.splitlines()]
    assert sorted(ranks) == [str(Rank(rank=rank, size=2)) for rank in (0, 1)]
    assert len({line.split(" meeting-")[1] for line in said.splitlines()}) == 1
    out = tmp_path / "batch"
    wrap = f"--wrap={script}; echo end"
    private_slurm.run("sbatch", "--nodes=2", "--ntasks=2", f"--chdir={ROOT}", f"--output={out}", wrap)
    wait_until(lambda: out.exists() and "end" in out.read_text(), "the batch script has run")
    assert out.read_text().startswith(f"{Rank()} ")
