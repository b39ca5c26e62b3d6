import os
import shlex
import stat
import subprocess

import pytest

from models.errors import UserError
from orchestrator.private import (
    UNSAFE_EXIT_CODE,
    export_lines,
    make_private,
    private_umask,
    refuse_unsafe,
    shell_check,
)

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def root(tmp_path):
    """A study folder with a submission's folder and a code snapshot."""
    with private_umask(0o700):
        for name in ("jobs/0123456789ab", "code/abc"):
            (tmp_path / "runs" / "study" / name).mkdir(parents=True)
    return tmp_path / "runs" / "study"


def test_a_folder_is_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        make_private(tmp_path / "runs" / "study")
        make_private(tmp_path / "runs" / "shared", 0o750)
    finally:
        os.umask(before)
    assert mode(tmp_path / "runs" / "study") == 0o700
    assert mode(tmp_path / "runs" / "shared") == 0o750


def test_a_folder_that_was_open_is_closed_and_keeps_its_group_bit(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study").chmod(0o2775)
    make_private(tmp_path / "study")
    assert mode(tmp_path / "study") == 0o2700


@pytest.mark.parametrize("wrong", [0o770, 0o702, 0o500, 0o000])
def test_a_mode_that_lets_others_write_or_the_owner_not_is_refused(tmp_path, wrong):
    with pytest.raises(UserError, match=f"mode {wrong:04o}"):
        make_private(tmp_path / "study", wrong)
    assert not (tmp_path / "study").exists()


def test_what_is_made_inside_is_as_private(tmp_path):
    with private_umask(0o750):
        (tmp_path / "folder").mkdir()
        subprocess.run(["touch", tmp_path / "file"], check=True)
    assert mode(tmp_path / "folder") == 0o750
    assert mode(tmp_path / "file") == 0o640


def test_a_private_study_is_accepted_and_so_is_one_that_is_not_there(root):
    refuse_unsafe(root)
    refuse_unsafe(root.parent / "new" / "study")


@pytest.mark.parametrize("inside", ["", "jobs", "jobs/0123456789ab", "code", "code/abc"])
@pytest.mark.parametrize("wrong", [0o770, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_refused(root, inside, wrong):
    (root / inside).chmod(wrong)
    with pytest.raises(UserError, match=f"mode {wrong:04o}") as raised:
        refuse_unsafe(root)
    [mend] = [line.split("if nobody has: ")[1] for line in str(raised.value).splitlines()]
    assert mend == f"chmod go-w {root / inside}"
    subprocess.run(shlex.split(mend), check=True)
    refuse_unsafe(root)


def test_only_a_sticky_folder_above_may_be_open_to_all(root):
    root.parent.chmod(0o777)
    with pytest.raises(UserError, match=f"chmod go-w {root.parent}"):
        refuse_unsafe(root)
    with pytest.raises(UserError, match="mode 0777"):
        refuse_unsafe(root.parent / "new")
    root.parent.chmod(0o1777)
    refuse_unsafe(root)
    root.parent.chmod(0o770)  # of a group, as folders of a project are
    refuse_unsafe(root)


def test_many_open_folders_make_a_short_message(root):
    for i in range(20):
        (root / "jobs" / f"token{i}").mkdir()
        (root / "jobs" / f"token{i}").chmod(0o777)
    with pytest.raises(UserError, match="and 15 more") as raised:
        refuse_unsafe(root)
    assert len(str(raised.value).splitlines()) == 6


@as_root
@pytest.mark.parametrize("inside", ["", "jobs", "jobs/0123456789ab", "code/abc"])
def test_a_folder_of_another_user_is_refused(root, inside):
    os.chown(root / inside, NOBODY, -1)
    with pytest.raises(UserError, match=f"{root / inside}: belongs to nobody"):
        refuse_unsafe(root)


@as_root
def test_a_link_of_another_user_is_refused_wherever_it_stands(root, tmp_path):
    (tmp_path / "mine").symlink_to(root.parent)
    refuse_unsafe(tmp_path / "mine" / "study")
    (tmp_path / "theirs").symlink_to(root.parent)
    os.chown(tmp_path / "theirs", NOBODY, -1, follow_symlinks=False)
    (tmp_path / "indirect").symlink_to("mine/../theirs")  # one link of one's own that leads through theirs
    for way in ("theirs", "indirect"):
        with pytest.raises(UserError, match=f"{tmp_path / 'theirs'}: is a link that nobody made"):
            refuse_unsafe(tmp_path / way / "study")


def test_an_open_folder_behind_a_link_is_refused(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere").chmod(0o777)
    (root / "jobs" / "0123456789ab").rmdir()
    (root / "jobs" / "0123456789ab").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"chmod go-w {tmp_path / 'elsewhere'}"):
        refuse_unsafe(root)


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UserError, match="round in a circle"):
        refuse_unsafe(tmp_path / "a")


# --- in a job's script -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["bash", "dash"])
def script(request, tmp_path):
    """Runs the check of a folder and then what a job would run; its exit code and what it printed."""

    def run(folder, path=os.environ["PATH"]):
        text = "\n".join(["#!/bin/sh", shell_check(folder), "echo loaded", ""])
        (tmp_path / "job.sh").write_text(text)
        shell = subprocess.run(["which", request.param], capture_output=True, text=True, check=True).stdout.strip()
        done = subprocess.run(
            [shell, tmp_path / "job.sh"], capture_output=True, text=True, env={"PATH": path}, check=False
        )
        assert ("loaded" in done.stdout) == (done.returncode == 0)
        return done

    return run


@pytest.mark.parametrize("name", ["0123456789ab", "a b", "it's", "$(touch pwned)", "-rf", "x;exit 0;", "[a]*?", "\\"])
def test_a_job_loads_from_a_private_folder_of_any_name_and_from_no_open_one(script, root, name):
    folder = root / "jobs" / name
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    assert script(folder).returncode == 0
    for wrong in (0o777, 0o1777, 0o770, 0o702):
        folder.chmod(wrong)
        done = script(folder)
        assert done.returncode == UNSAFE_EXIT_CODE
        assert str(folder) in done.stderr
    subprocess.run(shlex.split(done.stderr.split("tampered with it: ")[1]), check=True)
    assert script(folder).returncode == 0


def test_a_job_loads_nothing_where_a_pickle_is_open(script, root):
    folder = root / "jobs" / "0123456789ab"
    pickle, other = folder / "12_0_submitted.pkl", folder / "12_0_0_log.out"
    for path in (pickle, other):
        path.touch()
        path.chmod(0o666)
    folder.chmod(0o750)
    assert script(folder).returncode == UNSAFE_EXIT_CODE
    folder.chmod(0o700)  # nobody reaches it
    assert script(folder).returncode == 0
    folder.chmod(0o750)
    pickle.chmod(0o640)
    assert script(folder).returncode == 0


def test_a_check_that_cannot_be_made_loads_nothing(script, root, tmp_path):
    assert script(root / "jobs" / "gone").returncode == UNSAFE_EXIT_CODE
    assert script(root / "jobs" / "0123456789ab", path=str(tmp_path)).returncode == UNSAFE_EXIT_CODE


@as_root
def test_a_job_loads_nothing_from_a_folder_of_another_user(script, root):
    folder = root / "jobs" / "0123456789ab"
    os.chown(folder, NOBODY, -1)
    assert script(folder).returncode == UNSAFE_EXIT_CODE


def test_exported_values_arrive_as_they_are_and_run_nothing(tmp_path):
    values = {"PYTHONPATH": "/a b:/it's", "ODD": "$(touch pwned) `touch pwned`; touch pwned\n touch pwned # \\"}
    lines = [*export_lines(values), "env -0"]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, cwd=tmp_path, check=True)
    given = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    assert {name: given[name] for name in values} == values
    assert not (tmp_path / "pwned").exists()
