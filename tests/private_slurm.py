"""A real Slurm cluster for one test session: all its daemons, several slurmd among them, in one temporary folder.

    with PrivateSlurm(num_nodes=2) as cluster:
        print(cluster.run("sinfo"))

It needs Slurm's programs (tests/install_packages.sh) but no root, no systemd and no configuration of the machine.
Nothing outlives the process that starts it: `stop()` is the ordinary end; a guard process stops the cluster when its
owner is gone, however that ended; and `start()` first sweeps clusters whose owner and guard were both killed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.private_slurm_conf import DATABASE_SQL, GPU_FILES, Layout, free_ports, write_configuration

if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun", "slurmctld", "slurmd", "munged")
ACCOUNTING_COMMANDS = ("sacct", "slurmdbd", "mariadbd", "mariadb-install-db", "mariadb")
# Daemons live in sbin, which an ordinary user's PATH leaves out.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
# Unix sockets allow 107 bytes of path, so the folder is directly below /tmp, whatever TMPDIR says.
FOLDER_PARENT = Path("/tmp")
FOLDER_PREFIX = "private-slurm-"
# What an outer Slurm (tests that run inside a job) sets for its own commands.
SLURM_VARIABLES = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SCONTROL_")


class PrivateSlurmError(RuntimeError):
    """The private cluster did not come up, or a command failed; the message carries what they said."""


@dataclass(kw_only=True)
class PrivateSlurm(Layout):
    """A private cluster of the given layout, running from start() to stop() or inside a `with`.

    Args:
        timeout_s: how long each daemon may take to answer.
    """

    timeout_s: float = 30.0
    _folder: Path | None = field(default=None, init=False)
    _children: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict, init=False)
    _started: "dict[str, tuple[tuple[str, ...], dict[str, str]]]" = field(default_factory=dict, init=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def folder(self) -> Path:
        """Where it lives (slurm.conf, log/, the daemons' state) until stop()."""
        assert self._folder is not None, "the cluster is not started"
        return self._folder

    @property
    def env(self) -> dict[str, str]:
        """What to merge into os.environ for sbatch, squeue, scontrol and sacct to speak to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": SEARCH_PATH}

    def run(self, *args: str, timeout_s: float = 60.0) -> str:
        """Standard output of a command that speaks to this cluster.

        Raises:
            PrivateSlurmError: the command failed or timed out.
        """
        command = " ".join(args)
        try:
            done = subprocess.run(
                args, env=clean_environment() | self.env, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise PrivateSlurmError(f"{command}: no answer in {timeout_s:g} s") from error
        if done.returncode:
            raise PrivateSlurmError(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self) -> None:
        """Start every daemon; return when all nodes are idle.

        Raises:
            PrivateSlurmError: something is not installed, or a daemon does not answer (with the tails of all logs).
        """
        is_available, reason = available(accounting=self.accounting, gpu=self.gpu)
        if not is_available:
            raise PrivateSlurmError(reason)
        sweep_abandoned()
        self._folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=FOLDER_PARENT))
        (self._folder / "log").mkdir()
        try:
            self._start_guard()
            self._start_daemons()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill every daemon and every job, remove the folder. A second call does nothing."""
        if self._folder is not None:
            shut_down(self._folder)
        guard = self._children.pop("guard", None)
        if guard is not None:
            guard.terminate()
            guard.wait()
        for child in self._children.values():
            child.wait()
        self._children.clear()
        self._folder = None

    def kill(self, name: str) -> None:
        """kill -9 of a daemon: "slurmctld", "slurmdbd", "slurmd.cpu0"."""
        child = self._children.pop(name)
        child.kill()
        child.wait()

    def start_again(self, name: str) -> None:
        """Start a daemon that was killed, as it was started first."""
        args, extra_env = self._started[name]
        self._start(name, *args, **extra_env)

    def _start_guard(self) -> None:
        _record(self.folder, "owner", os.getpid())
        root = Path(__file__).resolve().parents[1]
        self._start("guard", sys.executable, "-m", "tests.private_slurm", str(self.folder), cwd=root)

    def _start_daemons(self) -> None:
        controller_port, database_port = free_ports(2)
        write_configuration(self.folder, self, controller_port=controller_port, database_port=database_port)
        self._start_munge()
        if self.accounting:
            self._start_database()
            self._start("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=f"{self.folder}/mysql.sock")
            self._wait_for("slurmdbd", lambda: _accepts_connections(database_port))
        conf = f"{self.folder}/slurm.conf"
        self._start("slurmctld", "slurmctld", "-D", "-i", "-f", conf)
        for node in self.nodes:
            self._start(f"slurmd.{node}", "slurmd", "-D", "-N", node, "-f", conf)
        # A command that finds no controller tries again for nine seconds.
        self._wait_for("slurmctld", lambda: _accepts_connections(controller_port))
        idle = {f"{node} idle" for node in self.nodes}
        self._wait_for("idle nodes", lambda: set(self._try("sinfo", "-hN", "-o", "%N %t").splitlines()) == idle)

    def _start_munge(self) -> None:
        files = {"socket": "munge.sock", "key-file": "munge.key", "pid-file": "munged.pid"}
        files |= {"log-file": "log/munged.log", "seed-file": "munge.seed"}
        options = [f"--{option}={self.folder}/{name}" for option, name in files.items()]
        self._start("munged", "munged", "--foreground", "--force", *options)
        self._wait_for("munged", (self.folder / "munge.sock").exists)

    def _start_database(self) -> None:
        root = ["--user=root"] if os.geteuid() == 0 else []  # MariaDB refuses to run as root unless told
        data = ["--no-defaults", f"--datadir={self.folder}/mysql", *root]
        self.run("mariadb-install-db", *data, "--auth-root-authentication-method=normal", "--skip-test-db")
        files = [f"--socket={self.folder}/mysql.sock", f"--pid-file={self.folder}/mariadbd.pid"]
        speed = ["--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0"]
        self._start("mariadbd", "mariadbd", *data, "--skip-networking", *files, *speed)
        client = ["mariadb", "--no-defaults", f"--socket={self.folder}/mysql.sock", "--user=root"]
        self._wait_for("MariaDB", lambda: self._try(*client, "--execute=SELECT 'up'") != "")
        self.run(*client, f"--execute={DATABASE_SQL}")

    def _start(self, name: str, program: str, *args: str, cwd: Path | None = None, **extra_env: str) -> None:
        self._started[name] = ((program, *args), extra_env)
        executable = shutil.which(program, path=SEARCH_PATH)
        assert executable is not None, f"available() has looked for {program}"
        # A session of its own keeps it out of reach of a Ctrl-C: the tests stop it, or its guard does.
        with (self.folder / "log" / f"{name}.out").open("ab") as output:
            child = subprocess.Popen(
                [executable, *args],
                env=clean_environment() | self.env | extra_env,
                cwd=cwd or self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[name] = child
        _record(self.folder, name, child.pid)

    def _try(self, *args: str) -> str:
        try:
            return self.run(*args, timeout_s=5.0)
        except PrivateSlurmError:
            return ""

    def _wait_for(self, what: str, is_there: "Callable[[], bool]") -> None:
        deadline = time.monotonic() + self.timeout_s
        while not is_there():
            ended = [name for name, child in self._children.items() if child.poll() is not None]
            if ended or time.monotonic() > deadline:
                problem = f"{', '.join(ended)} ended" if ended else f"not there after {self.timeout_s:g} s"
                raise PrivateSlurmError(f"private Slurm: waiting for {what}: {problem}\n{log_tails(self.folder)}")
            time.sleep(0.02)


def available(*, accounting: bool = False, gpu: bool = False) -> tuple[bool, str]:
    """Whether a private cluster can run here, and if not, why."""
    if not sys.platform.startswith("linux"):
        return False, f"Slurm runs on Linux, this is {sys.platform}"
    wanted = COMMANDS + (ACCOUNTING_COMMANDS if accounting else ())
    missing = [command for command in wanted if shutil.which(command, path=SEARCH_PATH) is None]
    if missing:
        option = " --accounting" if accounting else ""
        return False, f"not installed: {', '.join(missing)} (on Debian, as root: tests/install_packages.sh{option})"
    absent = [str(file) for file in GPU_FILES if gpu and not file.is_char_device()]
    if absent:
        return False, f"a pretended GPU needs a character device, and these are absent: {', '.join(absent)}"
    return True, ""


def wait_until(is_so: "Callable[[], bool]", what: str, *, timeout_s: float = 60.0) -> None:
    """Return once it is so; polls with a deadline.

    Raises:
        TimeoutError: it did not come to be.
    """
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {timeout_s:g} s: {what}")
        time.sleep(0.05)


def clean_environment() -> dict[str, str]:
    """os.environ without the variables of an outer Slurm."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SLURM_VARIABLES)}


def log_tails(folder: Path, *, num_lines: int = 15) -> str:
    """The last lines of every daemon's log, or of its output when it has not come to a log."""
    tails = []
    for output in sorted((folder / "log").glob("*.out")):
        log = output.with_suffix(".log")
        path = log if log.exists() and log.stat().st_size else output
        lines = path.read_text(errors="replace").splitlines()[-num_lines:]
        tails += [f"--- {path.name}", *lines] if lines else []
    return "\n".join(tails)


# Stopping works from the folder alone, so that the guard and a later session can do it too.


@dataclass(frozen=True, slots=True)
class Recorded:
    """A process by pid and start time, so that a recycled pid is never taken for it."""

    name: str
    pid: int
    started: int

    def is_alive(self) -> bool:
        return _start_time(self.pid) == self.started

    def kill(self) -> None:
        """Returns when it is gone. There is nothing to save: the folder goes too."""
        while self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)


def shut_down(folder: Path) -> None:
    """Kill all recorded daemons, newest first, and what their jobs left; remove the folder. Safe to repeat."""
    assert folder.name.startswith(FOLDER_PREFIX), f"not the folder of a private cluster: {folder}"
    for daemon in reversed(recorded_daemons(folder)):
        daemon.kill()
    # Nothing can start a step any more, but one that lives can still fork: look until there is nothing.
    while left := _job_processes(folder):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    shutil.rmtree(folder, ignore_errors=True)


def sweep_abandoned() -> None:
    """Shut down the clusters of this user whose owner and guard were both killed."""
    for folder in FOLDER_PARENT.glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):
            keepers = _recorded(folder)[:2]
            # Without a record it was made a moment ago, and its owner is just starting.
            if folder.stat().st_uid == os.geteuid() and keepers and not any(k.is_alive() for k in keepers):
                shut_down(folder)


def guard(folder: Path) -> None:
    """Wait for the end of the process that owns the cluster, then shut the cluster down."""
    owner = _recorded(folder)[0]
    while owner.is_alive():
        time.sleep(0.25)
    shut_down(folder)


def recorded_daemons(folder: Path) -> list[Recorded]:
    """The daemons in the order in which they were started; none when the folder is gone."""
    return [process for process in _recorded(folder) if process.name not in ("owner", "guard")]


def _recorded(folder: Path) -> list[Recorded]:
    try:
        return [Recorded(*json.loads(line)) for line in (folder / "pids").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _record(folder: Path, name: str, pid: int) -> None:
    with (folder / "pids").open("a") as file:
        file.write(json.dumps([name, pid, _start_time(pid) or 0]) + "\n")


def _job_processes(folder: Path) -> list[int]:
    """What jobs left behind: slurmstepd's with a file of the folder open, and all that runs in a job's environment."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if _is_step_daemon(pid, folder) or _is_in_job(pid, folder)]


def _is_step_daemon(pid: int, folder: Path) -> bool:
    try:
        is_step = Path(f"/proc/{pid}/exe").readlink().name.startswith("slurmstepd")  # Debian: slurmstepd-wlm
        return is_step and any(folder in link.readlink().parents for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it has ended, or is another user's
        return False


def _is_in_job(pid: int, folder: Path) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    is_ours = f"SLURM_CONF={folder}/slurm.conf".encode() in variables
    return is_ours and any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name (state, parent, ...); none when it is gone: proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None when it is gone or a zombie."""
    stat = _stat(pid)
    return int(stat[19]) if stat and stat[0] not in "ZX" else None


def _accepts_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
