import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from orchestrator import lock
from orchestrator.lock import STALE_S, LockBusyError, holding, read_owner
from tests.private_slurm import wait_until

HOLDER = """
import sys
from pathlib import Path
from orchestrator.lock import holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def is_held(path):
    try:
        with holding(path):
            return False
    except LockBusyError:
        return True


@contextmanager
def held_elsewhere(path):
    """Another process holds the lock, until the block ends or it is killed."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            if process.poll() is None:
                process.stdin.close()
                process.wait(60)


def long_ago(path, seconds=STALE_S + 1):
    os.utime(path, (time.time() - seconds,) * 2)


def test_the_lock_is_held_while_the_block_runs_and_free_afterwards(tmp_path):
    path = tmp_path / "deep" / "a.lock"
    assert not is_held(path)
    with holding(path) as is_ours:
        assert is_ours()
        assert is_held(path)
        assert f"{socket.gethostname()} pid {os.getpid()}" in read_owner(path)
    assert list(path.parent.iterdir()) == []


def test_an_error_in_the_block_frees_the_lock(tmp_path):
    with pytest.raises(KeyError), holding(tmp_path / "a.lock"):
        raise KeyError
    assert not (tmp_path / "a.lock").exists()


def test_a_living_owner_keeps_others_out_and_is_named(tmp_path):
    path = tmp_path / "a.lock"
    with held_elsewhere(path) as owner:
        with pytest.raises(LockBusyError) as caught, holding(path):
            pass
        assert f"pid {owner.pid} " in caught.value.owner
        assert is_held(path)
    with holding(path) as is_ours:
        assert is_ours()


def test_the_lock_of_an_owner_that_was_killed_on_this_host_is_free_at_once(tmp_path):
    path = tmp_path / "a.lock"
    with held_elsewhere(path) as owner:
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait(60)
        assert path.exists()
        assert time.time() - path.stat().st_mtime < STALE_S / 2
        assert not is_held(path)
        with holding(path) as is_ours:
            assert is_ours()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owner_that_nobody_has_waited_for_is_dead_too(tmp_path):
    path = tmp_path / "a.lock"
    with held_elsewhere(path) as owner:
        os.kill(owner.pid, signal.SIGKILL)  # a zombie until it is waited for
        wait_until(lambda: not is_held(path), "the zombie's lock is free")
        with holding(path):
            pass


def test_a_stopped_owner_is_not_dead_until_its_time_is_up(tmp_path):
    path = tmp_path / "a.lock"
    with held_elsewhere(path) as owner:
        os.kill(owner.pid, signal.SIGSTOP)
        try:
            with pytest.raises(LockBusyError), holding(path):
                pass
            long_ago(path)  # it cannot beat
            with holding(path) as is_ours:
                assert is_ours()
                assert f"pid {owner.pid} " not in read_owner(path)
        finally:
            os.kill(owner.pid, signal.SIGCONT)


def test_a_recycled_process_number_is_another_process(tmp_path):
    path = tmp_path / "a.lock"
    with holding(path):
        host, pid_word, pid, identity, _ = read_owner(path).split()
    namespace, _, began = identity.partition(":")
    for told, is_free in (
        (f"{host} {pid_word} {pid} {namespace}:{int(began) - 1} abcd", True),
        (f"{host} {pid_word} {pid} {identity} abcd", False),
        (f"another-{host} {pid_word} {pid} {namespace}:{int(began) - 1} abcd", False),
        (f"{host} {pid_word} {pid} other-namespace:{int(began) - 1} abcd", False),
        ("what an older version wrote", False),
        ("", False),
    ):
        path.write_text(told)
        assert is_held(path) != is_free, told


@pytest.mark.parametrize("told", ["node7 pid 12 boot-1:5 abcd", "somebody", ""])
def test_an_owner_elsewhere_is_stale_only_by_time(tmp_path, told):
    path = tmp_path / "a.lock"
    path.write_text(told)
    long_ago(path, STALE_S - 20)
    with pytest.raises(LockBusyError), holding(path):
        pass
    long_ago(path)
    with holding(path) as is_ours:
        assert is_ours()


def test_who_waits_gets_the_lock_when_it_is_free(tmp_path):
    path, got = tmp_path / "a.lock", []

    def wait():
        with holding(path, wait_s=60):
            got.append(read_owner(path))

    with holding(path):
        ours = read_owner(path)
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert got == []
    waiter.join(60)
    assert len(got) == 1
    assert got[0] != ours


def test_who_waits_gives_up_when_the_owner_lives_on(tmp_path):
    path = tmp_path / "a.lock"
    with holding(path):
        began = time.monotonic()
        with pytest.raises(LockBusyError), holding(path, wait_s=1.0):
            pass
        assert time.monotonic() - began >= 1.0


def test_a_held_lock_is_touched_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    path = tmp_path / "a.lock"
    with holding(path):
        long_ago(path)
        wait_until(lambda: time.time() - path.stat().st_mtime < STALE_S / 2, "it was touched")


def test_a_lock_that_was_taken_over_is_left_to_its_new_owner(tmp_path):
    path = tmp_path / "a.lock"
    with holding(path) as is_ours:
        path.unlink()
        path.write_text("another")
        assert not is_ours()
    assert path.read_text() == "another"


def test_who_died_while_removing_a_stale_lock_does_not_block_it_for_ever(tmp_path):
    path = tmp_path / "a.lock"
    path.write_text("dead")
    long_ago(path)
    seen = path.stat()
    os.link(path, tmp_path / f".a.lock.{seen.st_ino}-{seen.st_mtime_ns}-1")  # made by the remover, just now
    with pytest.raises(LockBusyError), holding(path):
        pass
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    later = time.time() + STALE_S + 1
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lock.time, "time", lambda: later)
        with holding(path) as is_ours:
            assert is_ours()


def test_a_link_or_a_pipe_in_the_locks_place_is_neither_followed_nor_waited_for(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link, pipe = tmp_path / "link.lock", tmp_path / "pipe.lock"
    link.symlink_to(victim)
    os.mkfifo(pipe)
    with pytest.raises(LockBusyError, match="is a link"), holding(link):
        pass
    with pytest.raises(LockBusyError), holding(pipe):
        pass
    assert victim.read_text() == "precious"
