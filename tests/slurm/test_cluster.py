import pytest

from slurm.cluster import ProfileError, choose_partition, load_profile, local_profile


def test_a_profile_comes_from_a_file(tmp_path):
    path = tmp_path / "cluster.toml"
    text = '[partitions.a]\n[partitions.b]\naccelerator = "tpu"\ngres = "tpu:v5e"\naccelerators_per_node = 4\n'
    path.write_text('account = "vision"\n' + text)
    profile = load_profile(str(path))
    assert (profile.scheduler, profile.account) == ("slurm", "vision")
    assert choose_partition(profile, None)[0] == "a"
    assert choose_partition(profile, "b")[1].accelerator == "tpu"


def test_an_interpreter_may_be_under_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    path = tmp_path / "cluster.toml"
    path.write_text('python = "/opt/bin/python"\n[partitions.a]\npython = "~/envs/xla/bin/python"\n')
    profile = load_profile(str(path))
    assert (profile.python, profile.partitions["a"].python) == ("/opt/bin/python", "/home/ada/envs/xla/bin/python")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[partitions.a", ["cannot be read"]),
        ("", ["partitions"]),
        ("[partitions.a]\nacelerator = 'gpu'", ["partitions.a.acelerator"]),
        ("[partitions.a]\ncpus_per_node = 0", ["partitions.a.cpus_per_node", "given: 0"]),
        ("[partitions.a]\naccelerator = 'gpu'", ["partitions.a", "needs accelerators_per_node"]),
        ("[partitions.a]\naccelerator = 'gpu'\naccelerators_per_node = 8", ["partitions.a", "gres needs gres"]),
        ("[partitions.a]\noptions = {time = '5'}", ["partitions.a.options", "time_min"]),
        ("folder_mode = '777'\n[partitions.a]", ["folder_mode", "nobody else may write"]),
        ('account = "x\\nrm"\n[partitions.a]', ["account"]),
        ("[partitions.a]\npython = 'envs/xla/bin/python'", ["partitions.a.python", "full path"]),
        ("[driver]\npartition = 'b'\n[partitions.a]", ["driver.partition", "known: a"]),
    ],
)
def test_a_profile_that_cannot_be_used_is_named(tmp_path, text, parts):
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_profile(str(path))
    for part in ["cluster.toml", *parts]:
        assert part in str(caught.value)


def test_a_missing_profile_and_an_unknown_partition(tmp_path):
    with pytest.raises(ProfileError, match="no such cluster profile"):
        load_profile(str(tmp_path / "none.toml"))
    with pytest.raises(ProfileError, match="known: local"):
        choose_partition(local_profile(), "gpu")
