import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.doctor.folder import file_system, is_shared
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


def levels(findings):
    """The topics of each level."""
    found = {"ok": [], "advice": [], "mend": []}
    for check in findings["checks"]:
        found[check["level"]].append(check["topic"])
    return found


def line_of(said, topic):
    (line,) = [line for line in said.splitlines() if line[8:].startswith(f"{topic}: ")]
    return line


# ---- Slurm


@pytest.mark.slurm
def test_a_profile_that_fits(on_slurm, profile, small, home):
    said = upshot("doctor", small.path, "--profile", profile, "--runs", small.runs)
    assert line_of(said, "slurm").startswith("ok      slurm: 22.") or "answers; cluster mini" in line_of(said, "slurm")
    assert "up to 1,001 tasks in one" in line_of(said, "arrays")
    assert "known for 300 s (MinJobAge)" in line_of(said, "accounting")
    assert "1 of 1 nodes in service, up to 4 CPUs, 62.5 GB, tpu:v5e x4 each" in line_of(said, "partition tpu-v5e")
    for topic in ("sbatch cpu", "sbatch tpu-v5e", "watch --as-job", "file system", "packages", "python", "wandb"):
        assert line_of(said, topic).startswith("ok ")
    assert said.splitlines()[-1].endswith("0 to mend, 2 with advice")
    assert not small.runs.exists()
    assert on_slurm.run("squeue", "--noheader", "--states=all", "--name=wrap") == ""
    assert list(home.glob(".upshot-doctor-*")) == []


@pytest.mark.slurm
def test_a_profile_that_does_not_fit(on_slurm, profile, tmp_path):
    profile.write_text(PROFILE.replace("= 62.5", "= 63").replace("tpu-v5e]", "tpu-v6e]") + "[partitions.scavenge]\n")
    findings = upshot_json("doctor", "--profile", profile, "--runs", tmp_path, code=1)
    found = levels(findings)
    assert found["mend"] == ["partitions.cpu.memory_gb_per_node", "partitions.tpu-v6e"]
    assert "partitions.scavenge" in found["advice"]
    assert [topic for topic in found["ok"] if topic.startswith("sbatch")] == ["sbatch scavenge"]
    (nearest,) = [check for check in findings["checks"] if check["topic"] == "partitions.tpu-v6e"]
    assert "Did you mean 'tpu-v5e'?" in nearest["found"]
    assert findings["limits"]["max_array_tasks"] == 1001
    assert findings["limits"]["partitions"]["tpu-v5e"]["nodes"][0]["gres"] == {"tpu:v5e": 4}


@pytest.mark.slurm
def test_what_only_sbatch_knows_is_asked_of_sbatch(on_slurm, profile):
    profile.write_text("[partitions.cpu]\noptions = {constraint = 'big'}\n")
    said = upshot("doctor", "--profile", profile, code=1)
    assert line_of(said, "sbatch cpu").startswith("mend ")
    assert "Invalid feature specification" in line_of(said, "sbatch cpu")
    assert line_of(said, "watch --as-job in cpu").startswith("advice ")


@pytest.mark.slurm
def test_without_a_profile_the_partitions_are_listed(on_slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = levels(upshot_json("doctor"))
    assert {"partition cpu", "partition scavenge", "partition tpu-v5e"} <= set(found["ok"])
    assert "profile" in found["advice"]
    assert found["mend"] == []


@pytest.mark.slurm
def test_a_cluster_that_keeps_accounts(on_accounting_slurm, profile):
    profile.write_text("[partitions.cpu]\n")
    findings = upshot_json("doctor", "--profile", profile)
    assert "accounting" in levels(findings)["ok"]
    assert findings["limits"]["accounting"] is True
    assert "normal" in findings["limits"]["accounts"]["qos"]
    assert isinstance(findings["limits"]["enforced"], list)


@pytest.mark.slurm
def test_a_cluster_that_does_not_answer(on_slurm, profile, tmp_path, monkeypatch):
    text = (on_slurm.folder / "slurm.conf").read_text()
    (tmp_path / "slurm.conf").write_text(text.replace(f"socket={on_slurm.folder}", "socket=/nowhere"))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    said = upshot("doctor", "--profile", profile, "--runs", tmp_path, code=3)
    assert line_of(said, "slurm").startswith("mend ")
    assert "scontrol ping" in line_of(said, "slurm")
    assert line_of(said, "folder").startswith("ok ")


def test_a_machine_without_slurm(profile, small, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "not on PATH: sbatch, squeue" in line_of(upshot("doctor", "--profile", profile, code=3), "slurm")
    assert "slurm: is not here" in upshot("doctor", cwd=small.path.parent)
    said = upshot("doctor", small.path, "--runs", small.runs)
    assert "slurm:" not in said
    assert "nodes" not in said


# ---- what was given


def test_what_cannot_be_read_is_a_usage_error(profile, tmp_path):
    assert "no such study file" in upshot("doctor", tmp_path / "nowhere.toml", code=2)
    assert "no such cluster profile" in upshot("doctor", "--profile", tmp_path / "nowhere.toml", code=2)
    assert "holds no study.toml" in upshot("doctor", tmp_path, code=2)


def test_a_study_folder_is_held_against_its_own_profile(small, profile, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    small.store.root.mkdir(parents=True)
    (small.store.root / "study.toml").write_text(small.path.read_text())
    upshot("doctor", small.store.root)
    (small.store.root / "cluster.toml").write_text(profile.read_text())
    upshot("doctor", small.store.root, code=3)
    upshot("doctor", small.store.root, "--profile", "local")


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


def test_a_study_that_others_can_write_to(small):
    small.store.root.mkdir(parents=True)
    small.store.root.chmod(0o770)
    said = upshot("doctor", small.path, "--runs", small.runs, code=1)
    assert f"chmod go-w {small.store.root}" in said
    small.store.root.chmod(0o750)
    assert "chmod" not in upshot("doctor", small.path, "--runs", small.runs)
    small.runs.chmod(0o777)
    assert "chmod +t" in upshot("doctor", small.path, "--runs", small.runs)
    small.runs.chmod(0o1777)
    assert "chmod" not in upshot("doctor", small.path, "--runs", small.runs)


def test_runs_that_are_no_folder(small):
    small.runs.write_text("")
    assert "is no folder" in upshot("doctor", small.path, "--runs", small.runs, code=1)


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
def test_the_mode_that_cells_are_mirrored_in(small, home, mode, env, code, said):
    told = upshot("doctor", study_with(small, mode), "--runs", small.runs, env=env, code=code)
    assert said in told
    assert "secret" not in told


def test_a_key_in_netrc_is_found_and_not_shown(small, home):
    (home / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (home / ".netrc").chmod(0o600)
    told = upshot("doctor", study_with(small, 'mode = "auto"'), "--runs", small.runs)
    assert f"online, project upshot, with the key of {home / '.netrc'}" in told
    assert "secret" not in told
