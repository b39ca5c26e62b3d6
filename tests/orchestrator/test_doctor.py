import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import StudyError
from orchestrator.doctor import Level, examine
from orchestrator.doctor.folder import file_system, is_shared
from slurm.cluster import ProfileError
from tests.orchestrator.upshot_command import upshot, upshot_json

PROFILE = """
[partitions.cpu]
cpus_per_node = 4
memory_gb_per_node = 62.5
[partitions.tpu-v5e]
accelerator = "tpu"
gres = "tpu:v5e"
accelerators_per_node = 4
cpus_per_node = 4
"""
NO_KEY = {name: None for name in os.environ if name.startswith("WANDB_")} | {"NETRC": None}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, so that no W&B key of this machine's user is found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in NO_KEY:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "cluster.toml"
    path.write_text(PROFILE)
    return path


def study_with(small, text):
    path = small.path.with_name("other.toml")
    path.write_text(small.path.read_text().replace('mode = "disabled"', text))
    return path


def topics(findings, level):
    return [check.topic for check in findings.checks if check.level is level]


def line(findings, topic):
    (found,) = [str(check) for check in findings.checks if check.topic == topic]
    return found


# ---- Slurm


@pytest.mark.slurm
def test_a_profile_that_fits(on_slurm, profile, small, home):
    said = upshot("doctor", small.path, "--profile", profile, "--runs", small.runs).splitlines()
    for found in (
        "ok      slurm: 22.05.8 answers; cluster mini, user ",
        "ok      arrays: up to 1,001 tasks in one; the cluster holds 10,000 jobs",
        "ok      accounting: none: what became of a job is known for 300 s (MinJobAge)",
        "ok      partition tpu-v5e: UP, 1 of 1 nodes in service, up to 4 CPUs, 62.5 GB, tpu:v5e x4 each; no time limit",
        *(f"ok      {topic}: " for topic in ("sbatch cpu", "sbatch tpu-v5e", "watch --as-job", "file system", "wandb")),
    ):
        assert [line for line in said if line.startswith(found)], found
    assert " 0 to mend, " in said[-1]
    assert not small.runs.exists()
    assert list(home.glob(".upshot-doctor-*")) == []
    assert on_slurm.run("squeue", "--noheader", "--states=all", "--name=wrap") == ""


@pytest.mark.slurm
def test_a_profile_that_does_not_fit(on_slurm, profile, tmp_path):
    profile.write_text(PROFILE.replace("= 62.5", "= 63").replace("tpu-v5e]", "tpu-v6e]") + "[partitions.scavenge]\n")
    found = upshot_json("doctor", "--profile", profile, "--runs", tmp_path, code=1)
    by_level = {level: [check["topic"] for check in found["checks"] if check["level"] == level] for level in Level}
    assert by_level["mend"] == ["partitions.cpu.memory_gb_per_node", "partitions.tpu-v6e"]
    assert "partitions.scavenge" in by_level["advice"]
    assert [topic for topic in by_level["ok"] if topic.startswith("sbatch")] == ["sbatch scavenge"]
    (nearest,) = [check for check in found["checks"] if check["topic"] == "partitions.tpu-v6e"]
    assert "Did you mean 'tpu-v5e'?" in nearest["found"]
    assert found["limits"]["max_array_tasks"] == 1001
    assert found["limits"]["enforced"] == []
    assert found["limits"]["partitions"]["tpu-v5e"]["nodes"][0]["gres"] == {"tpu:v5e": 4}


@pytest.mark.slurm
def test_what_only_sbatch_knows_is_asked_of_sbatch(on_slurm, profile, tmp_path):
    profile.write_text("[partitions.cpu]\noptions = {constraint = 'big'}\n")
    findings = examine(None, str(profile), tmp_path)
    assert findings.exit_code == 1
    assert topics(findings, Level.MEND) == ["sbatch cpu"]
    assert "Invalid feature specification" in line(findings, "sbatch cpu")
    assert line(findings, "watch --as-job in cpu").startswith("advice ")


@pytest.mark.slurm
def test_without_a_profile_the_partitions_are_listed(on_slurm, tmp_path):
    findings = examine(None, None, tmp_path)
    assert {"partition cpu", "partition scavenge", "partition tpu-v5e"} <= set(topics(findings, Level.OK))
    assert "profile" in topics(findings, Level.ADVICE)
    assert findings.exit_code == 0


@pytest.mark.slurm
def test_a_cluster_that_keeps_accounts(on_accounting_slurm, profile, tmp_path):
    profile.write_text("[partitions.cpu]\n")
    findings = examine(None, str(profile), tmp_path)
    assert (
        line(findings, "accounting")
        == "ok      accounting: is kept; by default you may have any number of jobs in the queue"
    )
    assert "normal" in findings.to_json()["limits"]["accounts"]["qos"]


@pytest.mark.slurm
def test_a_cluster_that_does_not_answer(on_slurm, profile, tmp_path, monkeypatch):
    text = (on_slurm.folder / "slurm.conf").read_text()
    (tmp_path / "slurm.conf").write_text(text.replace(f"socket={on_slurm.folder}", "socket=/nowhere"))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    findings = examine(None, str(profile), tmp_path)
    assert findings.exit_code == 3
    assert line(findings, "slurm").startswith("mend    slurm: scontrol: ")
    assert line(findings, "slurm").endswith("try `scontrol ping`; if it does not answer either, ask the administrators")
    assert "file system" in topics(findings, Level.OK)


def test_a_machine_without_slurm(profile, small, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    wanted = examine(None, str(profile), small.runs)
    assert "not on PATH: sbatch, squeue" in line(wanted, "slurm")
    assert wanted.exit_code == 3
    assert line(examine(None, None, small.runs), "slurm").startswith("ok      slurm: is not here")
    local = examine(small.path, None, small.runs)
    assert topics(local, Level.OK)[:2] == ["python", "packages"]
    assert "slurm" not in topics(local, Level.OK)
    assert "nodes" not in "".join(map(str, local.checks))


# ---- what was given


def test_what_cannot_be_read_is_a_usage_error(tmp_path):
    with pytest.raises(StudyError, match="no such study file"):
        examine(tmp_path / "nowhere.toml", None, tmp_path)
    with pytest.raises(ProfileError, match="no such cluster profile"):
        examine(None, str(tmp_path / "nowhere.toml"), tmp_path)
    with pytest.raises(StudyError, match=r"holds no study\.toml"):
        examine(tmp_path, None, tmp_path)


def test_without_a_study_file_here_there_is_no_study(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    said = upshot("doctor", cwd=tmp_path)
    assert "slurm: is not here, and nothing asks for it" in said
    assert "wandb:" not in said


def test_a_study_folder_is_held_against_its_own_profile(small, profile, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    small.store.root.mkdir(parents=True)
    (small.store.root / "study.toml").write_text(small.path.read_text())
    assert examine(small.store.root, None, small.runs).exit_code == 0
    (small.store.root / "cluster.toml").write_text(profile.read_text())
    assert examine(small.store.root, None, small.runs).exit_code == 3
    assert examine(small.store.root, "local", small.runs).exit_code == 0


# ---- folders


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/u/runs", "nfs4"),
        ("/home", "nfs4"),
        ("/homes", "ext4"),
        ("/scratch/a b/c", "lustre"),
        ("/tmp/x", "tmpfs"),
        ("/work/x", "fuse.juicefs"),
    ],
)
def test_the_file_system_of_a_path(path, kind):
    mounts = (
        "/dev/sda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\nmds:/s /scratch/a\\040b lustre rw 0 0\n"
        "none /tmp ext4 rw 0 0\nnone /tmp tmpfs rw 0 0\nx /work fuse.juicefs rw 0 0\n\n"
    )
    assert file_system(Path(path), mounts) == kind


@given(st.lists(st.from_regex(r"[a-z]{1,3}", fullmatch=True), max_size=4), st.integers(0, 4))
def test_the_deepest_mount_that_covers_a_path_counts(parts, depth):
    path = Path("/", *parts)
    points = [Path("/", *parts[:n]) for n in range(min(depth, len(parts)) + 1)]
    mounts = "\n".join(f"dev {point} type{n} rw 0 0" for n, point in enumerate(points))
    assert file_system(path, mounts) == f"type{len(points) - 1}"
    assert file_system(path, "") == "unknown"


def test_which_file_systems_nodes_can_see():
    shared = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph-fuse", "wekafs", "panfs", "fuse.juicefs")
    assert all(map(is_shared, shared))
    assert not any(map(is_shared, ("ext4", "xfs", "tmpfs", "overlay", "btrfs", "zfs", "unknown", "fuse.sshfs")))


@pytest.mark.parametrize(
    ("of_study", "of_runs", "level", "remedy"),
    [
        (0o700, 0o755, Level.OK, ""),
        (0o750, 0o1777, Level.OK, ""),
        (0o770, 0o755, Level.MEND, "chmod go-w "),
        (0o707, 0o755, Level.MEND, "chmod go-w "),
        (0o700, 0o775, Level.ADVICE, "chmod +t"),
    ],
)
def test_who_may_write_where_jobs_run_from(small, of_study, of_runs, level, remedy):
    small.store.root.mkdir(parents=True)
    small.store.root.chmod(of_study)
    small.runs.chmod(of_runs)
    findings = examine(small.path, None, small.runs)
    folders = [check for check in findings.checks if check.topic == "folder"]
    assert [check.remedy for check in folders if check.level is level and remedy in check.remedy]
    assert findings.exit_code == int(level is Level.MEND)
    assert list(small.runs.iterdir()) == [small.store.root]


def test_runs_that_are_no_folder(small):
    small.runs.write_text("")
    assert line(examine(small.path, None, small.runs), "folder").startswith("mend    folder: ")


# ---- Weights & Biases


@pytest.mark.parametrize(
    ("mode", "env", "code", "said"),
    [
        ('mode = "disabled"', {}, 0, "ok      wandb: off"),
        ('mode = "online"', {}, 1, "mend    wandb: online, project upshot, but there is no key; `wandb login`"),
        ('mode = "online"', {"WANDB_API_KEY": "secret"}, 0, "with the key of WANDB_API_KEY"),
        ('mode = "auto"\nentity = "lab"', {}, 0, "advice  wandb: offline, project upshot of lab; no key here"),
        ('mode = "auto"', {"WANDB_API_KEY": "secret"}, 0, "ok      wandb: online, project upshot"),
        ('mode = "auto"', {"WANDB_MODE": "onlin"}, 1, "mend    wandb: WANDB_MODE: 'onlin' given"),
        ('mode = "offline"', {"WANDB_API_KEY": "secret"}, 0, "`upshot sync` will use the key of WANDB_API_KEY"),
    ],
)
def test_the_mode_that_cells_are_mirrored_in(small, home, monkeypatch, mode, env, code, said):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    findings = examine(study_with(small, mode), None, small.runs)
    assert said in line(findings, "wandb")
    assert findings.exit_code == code
    assert "secret" not in str(findings.to_json())


def test_a_key_in_netrc_is_found_and_not_shown(small, home):
    (home / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (home / ".netrc").chmod(0o600)
    findings = examine(study_with(small, 'mode = "auto"'), None, small.runs)
    assert f"online, project upshot, with the key of {home / '.netrc'}" in line(findings, "wandb")
    assert "secret" not in str(findings.to_json())
