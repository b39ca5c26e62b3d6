"""Attacks that a shared cluster makes possible: planted links, races, names that reach a shell, keys that leak."""

import json
import multiprocessing
import os
import secrets
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from submitit.slurm.slurm import _make_sbatch_string

from models.errors import StudyError
from orchestrator.files import write_atomically
from orchestrator.lock import STALE_S
from orchestrator.store import DriverBusyError, Manifest, Store
from orchestrator.study import load_study
from slurm import jobs
from slurm.cluster import Partition, Profile, ProfileError, load_profile
from slurm.resources import Resources
from slurm.submit import SAY_NODE, parameters, submit_array
from tests.orchestrator.conftest import SMALL_STUDY, SmallStudy
from tests.orchestrator.upshot_command import UPSHOT, upshot
from tests.private_slurm import wait_until

NUM_RACERS, NUM_ROUNDS = 8, 20


@pytest.fixture
def victim(tmp_path):
    """A file of the user's that no attack may change or show."""
    path = tmp_path / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"
    assert path.stat().st_nlink == 1


@pytest.fixture
def lock(small):
    small.store.root.mkdir(parents=True)
    return small.store.root / "driver.lock"


# --- the driver's lock ------------------------------------------------------------------------------------------------


def test_a_fresh_link_in_the_locks_place_is_told_and_not_read(small, lock, victim):
    lock.symlink_to(victim)
    with pytest.raises(DriverBusyError, match="is a link") as raised, small.store.driving():
        pass
    assert str(lock) in str(raised.value)
    assert "precious" not in str(raised.value)
    assert lock.is_symlink()


def test_a_stale_link_in_the_locks_place_is_removed_and_not_followed(small, lock, victim):
    lock.symlink_to(victim)
    os.utime(lock, (0, 0), follow_symlinks=False)
    with small.store.driving() as check:
        check()
        assert not lock.is_symlink()
    assert sorted(path.name for path in small.store.root.iterdir()) == []


def test_a_link_that_leads_nowhere_makes_no_file_there(small, lock, tmp_path):
    lock.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DriverBusyError), small.store.driving():
        pass
    assert not (tmp_path / "nowhere").exists()


def test_a_lock_that_is_replaced_by_a_link_is_noticed_and_the_target_left_alone(small, lock, victim):
    with small.store.driving() as check:
        lock.unlink()
        lock.symlink_to(victim)
        with pytest.raises(DriverBusyError, match="was lost"):
            check()
    assert lock.is_symlink()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.write_bytes(b"\xff\xfe" * 10_000)])
def test_what_is_no_lock_is_neither_waited_for_nor_read_whole(small, lock, make):
    make(lock)
    with pytest.raises(DriverBusyError, match=r"driver\.lock") as raised, small.store.driving():
        pass
    assert len(str(raised.value)) < 2000


def test_a_driver_that_died_while_removing_a_stale_lock_blocks_nobody(small, lock, monkeypatch):
    lock.write_text("dead")
    os.utime(lock, (0, 0))
    seen = lock.lstat()
    lock.with_name(f".driver.lock.{seen.st_ino}-{seen.st_mtime_ns}-1").hardlink_to(lock)
    with pytest.raises(DriverBusyError), small.store.driving():
        pass  # the link is a moment old, so somebody may be at it
    monkeypatch.setattr("orchestrator.lock.STALE_S", 0.0)
    with small.store.driving():
        assert "dead" not in lock.read_text()


def race(folder, start, end):
    """One of several processes that all find a stale lock, round after round; writes how often it won."""
    won = []
    for i in range(NUM_ROUNDS):
        store = Store(Path(folder) / str(i))
        start.wait()
        try:
            with store.driving() as check:
                won.append(i)
                end.wait()  # held until every other one has tried
                check()
        except DriverBusyError:
            end.wait()
    (Path(folder) / f"won-{os.getpid()}").write_text(json.dumps(won))


def test_of_eight_processes_that_find_a_stale_lock_exactly_one_wins_each_time(tmp_path):
    for i in range(NUM_ROUNDS):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "driver.lock").write_text("dead")
        os.utime(tmp_path / str(i) / "driver.lock", (0, 0))
    context = multiprocessing.get_context("spawn")
    start, end = context.Barrier(NUM_RACERS, timeout=120), context.Barrier(NUM_RACERS, timeout=120)
    racers = [context.Process(target=race, args=(str(tmp_path), start, end)) for _ in range(NUM_RACERS)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * NUM_RACERS
    won = [json.loads(path.read_text()) for path in tmp_path.glob("won-*")]
    assert len(won) == NUM_RACERS
    assert sorted(i for rounds in won for i in rounds) == list(range(NUM_ROUNDS))
    assert list(tmp_path.glob("*/.driver.lock*")) == []


def test_a_lock_in_use_is_never_found_stale(small, lock):
    lock.write_text("alive")
    fresh = lock.stat().st_mtime - STALE_S / 2
    os.utime(lock, (fresh, fresh))
    with pytest.raises(DriverBusyError, match="alive"), small.store.driving():
        pass
    assert lock.read_text() == "alive"


# --- manifests and drafts ---------------------------------------------------------------------------------------------


def manifest(token="0123456789ab"):
    return Manifest(
        token=token, study="small", stage="train", executor="slurm", tasks=[["a"]], resources={}, submitted=1.0
    )


def test_a_link_in_a_manifests_place_is_replaced(small, victim):
    path = small.store.root / "jobs" / "0123456789ab.json"
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    small.store.write_manifest(manifest())
    assert not path.is_symlink()
    assert small.store.manifest("0123456789ab") == manifest()
    assert small.store.set_job_id(manifest(), "12").job_id == "12"


def test_a_link_in_a_drafts_place_is_not_written_through(small, victim, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda num_bytes: "0" * 2 * num_bytes)  # as if it could be guessed
    path = small.store.root / "study.toml"
    path.parent.mkdir(parents=True)
    path.with_name(f".study.toml.{'0' * 16}.draft").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(path, "new")
    assert not path.exists()


def test_no_two_drafts_have_one_name(tmp_path, monkeypatch):
    seen = []
    real = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (seen.append(self.name), real(self, target))[1])
    for i in range(50):
        write_atomically(tmp_path / "file", str(i))
    assert len(set(seen)) == 50
    assert all(len(name) >= len(".file.draft") + 16 for name in seen)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../x", "..", ".", "a/b", "/tmp/x", "-rf", "", " ", "x y", "x\n", "x\n#SBATCH --wrap=id", "$(id)", "`id`", "x;id",
     "x'", 'x"', "x\\", "x\0", "~", "*", "a" * 65, "é"],
)  # fmt: skip
def test_a_study_name_that_could_leave_its_folder_or_reach_a_shell_is_refused(tmp_path, name):
    path = tmp_path / "study.toml"
    path.write_text(SMALL_STUDY.replace('"small"', json.dumps(name)))
    with pytest.raises(StudyError, match="name"):
        load_study(path)
    with pytest.raises(StudyError, match="name"):
        load_study(tmp_path / "study.toml", [f"name={json.dumps(name)}"])


NASTY = ["a;touch pwned", "$(touch${IFS}pwned)", "`touch\tpwned`", "x'$(touch pwned)'", '"|touch pwned #', "a&&b", "\\"]


def script(folder, *, partition="cpu", **profile):
    """The file that submitit hands to sbatch for one job."""
    asked = Resources(partition=partition, mem_gb=1, time_min=1, extra=(("comment", profile.pop("comment", "c")),))
    given = Profile(partitions={"cpu": Partition()}, use_srun=False, **profile)
    return _make_sbatch_string(command="true", folder=folder, **parameters("upshot-s-0", asked, given, None, 1, []))


def options(text):
    """By name, what the #SBATCH lines come to once the quotes are read."""
    lines = [shlex.split(line.removeprefix("#SBATCH ")) for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all(len(words) == 1 for words in lines)
    return dict(words[0].removeprefix("--").split("=", 1) for words in lines if "=" in words[0])


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("where", ["partition", "account", "qos", "comment"])
def test_names_reach_no_shell_unquoted(tmp_path, nasty, where):
    nasty = nasty if where == "comment" and nasty.isprintable() else "".join(nasty.split())
    text = script(tmp_path / "a b;$(touch pwned)", **{where: nasty})
    assert options(text)[where] == nasty
    (tmp_path / "job.sh").write_text(text)
    for flags in (["-n"], []):
        done = subprocess.run(["bash", *flags, tmp_path / "job.sh"], cwd=tmp_path, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["job.sh"]
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert commands == [SAY_NODE, "export SUBMITIT_EXECUTOR=slurm", "true"]


@pytest.mark.parametrize("where", ["partition", "account", "qos", "comment"])
@pytest.mark.parametrize("nasty", ["x\ntouch pwned", "x\rtouch pwned", "x\u2028y"])
def test_a_value_with_a_line_break_is_refused(tmp_path, where, nasty):
    with pytest.raises(ValueError, match=where):
        script(tmp_path, **{where: nasty})
    if where in ("account", "qos"):
        (tmp_path / "cluster.toml").write_text(f"{where} = {json.dumps(nasty)}\n[partitions.cpu]\n")
        with pytest.raises(ProfileError, match=where):
            load_profile(str(tmp_path / "cluster.toml"))


@pytest.mark.slurm
def test_a_real_job_runs_nothing_of_a_nasty_account(tmp_path, on_slurm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "it's $(touch pwned); a folder"
    profile = Profile(
        partitions={"cpu": Partition()}, account="a;touch${IFS}pwned;$(touch${IFS}pwned)'", use_srun=False
    )
    asked = Resources(partition="cpu", mem_gb=0.5, time_min=5)
    submit_array(print, [("ran",)], folder=folder, job_name="upshot-nasty-0", resources=asked, profile=profile)
    wait_until(lambda: not jobs.query_live("upshot-nasty-"), "the job has ended")
    wait_until(lambda: list(folder.glob("*_result.pkl")), "its result is there")
    assert [path.name for path in tmp_path.rglob("pwned")] == []


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_is_in_no_file_and_no_process_list(tmp_path):
    """W&B's own client runs here (offline), as it would on a node without internet."""
    small, key = SmallStudy(tmp_path), secrets.token_hex(20)
    env = {"WANDB_API_KEY": key, "MY_TOKEN": key, "HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path / "wandb")}
    one = ["--set", "grid.family=vit", "--set", "grid.fraction=[0.01]", "--set", "wandb.mode=offline"]
    said = upshot("submit", small.path, "--runs", small.runs, *one, env=env)
    watching = subprocess.Popen([UPSHOT, "watch", small.store.root], env={**os.environ, **env})
    listed = set()
    while watching.poll() is None:
        listed |= {line for line in map(_command_line, Path("/proc").glob("[0-9]*")) if line}
    assert watching.returncode == 0
    said += upshot("report", small.store.root, env=env) + upshot("status", small.store.root, env=env)
    assert any(b"submitit.core._submit" in line for line in listed)
    assert not [line for line in listed if key.encode() in line]
    assert key not in said
    [cell] = small.store.cells()
    files = [path for path in small.runs.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert small.store.log_path(cell.cell_id, "train", 1) in files
    assert [path for path in files if key.encode() in path.read_bytes()] == []


def _command_line(process):
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_manifest_holds_nothing_of_the_environment(small, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    small.store.write_manifest(manifest())
    path = small.store.root / "jobs" / "0123456789ab.json"
    assert json.loads(path.read_text()) == asdict(manifest())
