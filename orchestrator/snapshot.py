"""The code that jobs run, kept in the study folder, so that editing the tree changes nothing for what is queued.

STUDY_DIR/code/<digest>/
orchestrator/  models/  evals/  slurm/   the packages as they stood, uncommitted edits included
environment.lock                         name==version of every installed distribution
snapshot.json                            digest, git commit, versions
dirty.diff                               what was not committed of these packages; absent where nothing was

The digest is that of the code and environment.lock: the same content is the same folder, taken once.
"""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from models.errors import UserError

Contents = dict[str, bytes]
"""Files by their path inside the snapshot."""

ROOMS = ("orchestrator", "models", "evals", "slurm")
RECORD, DIFF, LOCK = "snapshot.json", "dirty.diff", "environment.lock"
SOURCE = Path(__file__).resolve().parents[1]
SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
MIN_SECRET_LENGTH = 12  # shorter values (`true`, a user's name) stand in any code by chance
_GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """The commit that the code comes from, and how it differs from that."""

    git_sha: str | None = None
    diff: bytes = b""


def take_snapshot(store_root: Path) -> Path:
    """The folder below `store_root`/code that holds the code as it is now; a second call finds that of the first.

    In a git checkout the tracked files are taken, as they stand in the working tree; else every file of the packages.
    Call it with the driver lock held, and name its digest in the manifest before the lock is let go: `upshot clean`
    removes what no manifest names.

    Raises:
        UserError: a secret of the environment stands in the code; the snapshot that is there was tampered with.
        OSError: the disk is full or the folder cannot be written; no half snapshot is left that would count.
    """
    installed = _installed()
    contents = {**_code(SOURCE), LOCK: _lock(installed)}
    digest = _digest(contents)
    origin = _origin(SOURCE)
    record = {
        "digest": digest,
        "git_sha": origin.git_sha,
        "dirty": bool(origin.diff),
        "diff_sha256": hashlib.sha256(origin.diff).hexdigest() if origin.diff else None,
        "upshot": installed.get("upshot"),
        "python": platform.python_version(),
    }
    about = {RECORD: json.dumps(record, indent=1).encode(), **({DIFF: origin.diff} if origin.diff else {})}
    _refuse_secrets({**contents, **about})
    folder = store_root / "code" / digest
    if not os.path.lexists(folder):
        _write(folder, {**contents, **about})
    _verify(folder, contents, digest)
    return folder


def job_environment(snapshot: Path) -> dict[str, str]:
    """The variables that make a job's Python import the snapshot, and find the images that are beside the tree.

    PYTHONSAFEPATH keeps the working directory out of the import path: `python -m` would put it before PYTHONPATH, and
    jobs start where they were submitted, often the edited tree. Without bytecode the snapshot stays as it was taken.
    """
    callers = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry != str(snapshot)]
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(snapshot), *callers])),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    given = [place for place in os.environ.get("UPSHOT_IMAGES", "").split(os.pathsep) if place]
    images = SOURCE / "studies" / "images"  # those of an installed wheel are found from anywhere
    if images.is_dir() and str(images) not in given:
        environment["UPSHOT_IMAGES"] = os.pathsep.join([*given, str(images)])
    return environment


# --- what there is to take ------------------------------------------------------------------------------------------


def _code(source: Path) -> Contents:
    names = _tracked(source)
    if names is None:
        found = (path for room in ROOMS for path in (source / room).rglob("*") if "__pycache__" not in path.parts)
        names = [path.relative_to(source).as_posix() for path in found]
    return {name: (source / name).read_bytes() for name in sorted(names) if (source / name).is_file()}


def _tracked(source: Path) -> list[str] | None:
    """The tracked files of the packages; None where they are not tracked here, as in a virtual environment."""
    names = _names(_git(source, "ls-files", "-z", "--", *ROOMS))
    if "orchestrator/__init__.py" not in names:
        return None
    others = _names(_git(source, "ls-files", "-z", "--others", "--exclude-standard", "--", *ROOMS))
    forgotten = [name for name in others if name.endswith(".py")]
    if forgotten:
        print(f"not in the code that jobs run, since git does not track it: {', '.join(forgotten)}", file=sys.stderr)
    return names


def _names(listed: bytes | None) -> list[str]:
    return [os.fsdecode(name) for name in (listed or b"").split(b"\0") if name]


def _origin(source: Path) -> _Origin:
    """Where the code comes from; a snapshot (a job that submits runs one) tells what it was told."""
    if (source / RECORD).is_file():
        diff = (source / DIFF).read_bytes() if (source / DIFF).is_file() else b""
        return _Origin(git_sha=_record(source)["git_sha"], diff=diff)
    if _git(source, "ls-files", "--error-unmatch", "--", "orchestrator/__init__.py") is None:
        return _Origin()
    sha = _git(source, "rev-parse", "--verify", "HEAD")
    # Nothing of the user's configuration may change what the file looks like, or run a program of its own.
    options = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
    changed = _git(source, "diff", *options, "HEAD", "--", *ROOMS)
    return _Origin(git_sha=sha.decode().strip() if sha else None, diff=changed or b"")


def _git(source: Path, *arguments: str) -> bytes | None:
    """What git says about the checkout around the packages; None without git or checkout."""
    # A hook of git's that submits would otherwise have its repository and index looked at.
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_PLACES}
    command = ["git", "--no-optional-locks", "-C", str(source), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, env=environment, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _installed() -> dict[str, str]:
    """Version by normalised name; of two distributions of one name, the one that Python imports."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def _lock(installed: dict[str, str]) -> bytes:
    return "".join(f"{name}=={version}\n" for name, version in sorted(installed.items())).encode()


def _digest(contents: Contents) -> str:
    """64 hexadecimal digits of SHA-256 over every path, length and content."""
    total = hashlib.sha256()
    for name, data in sorted(contents.items()):
        total.update(os.fsencode(name) + b"\0%d\0" % len(data) + data)
    return total.hexdigest()


def _refuse_secrets(contents: Contents) -> None:
    for variable, value in os.environ.items():
        if SECRET_NAME.search(variable) and len(value) >= MIN_SECRET_LENGTH:
            for name, data in contents.items():
                if os.fsencode(value) in data:
                    raise UserError(
                        f"{name}: holds the value of ${variable}, and would be kept in the study folder;"
                        " take it out of the code, and read the variable where it is needed"
                    )


# --- keeping it -----------------------------------------------------------------------------------------------------


def _write(folder: Path, contents: Contents) -> None:
    """Writes a draft and renames it whole; if another process was first, its snapshot is the same."""
    folder.parent.mkdir(0o700, parents=True, exist_ok=True)
    draft = folder.with_name(f".draft-{secrets.token_hex(8)}")
    draft.mkdir(0o700)
    try:
        folders = {parent for name in contents for parent in PurePosixPath(name).parents} - {PurePosixPath()}
        for inner in sorted(folders):  # an outer one comes before what is in it
            (draft / inner).mkdir(0o700)
        for name, data in contents.items():
            _write_read_only(draft / name, data)
        draft.rename(folder)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if not (isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST)):
            raise


def _write_read_only(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _verify(folder: Path, contents: Contents, digest: str) -> None:
    """Refuses a snapshot that is not, file for file, what was taken; a file too many would be imported as well."""
    if folder.is_symlink() or not folder.is_dir():
        _refuse(folder, "it is no folder")
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not _is_folder(path)}
    for name in sorted((found.keys() ^ {*contents, RECORD}) - {DIFF}):
        _refuse(folder, f"{name} is {'new' if name in found else 'gone'}")
    for name, path in found.items():
        if path.is_symlink() or (name in contents and path.read_bytes() != contents[name]):
            _refuse(folder, f"{name} was changed")
    record = _record(folder)
    diff = hashlib.sha256(found[DIFF].read_bytes()).hexdigest() if DIFF in found else None
    if record["digest"] != digest or record["diff_sha256"] != diff:
        _refuse(folder, f"{RECORD} or {DIFF} was changed")


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_bytes())
        return {name: record[name] for name in ("digest", "git_sha", "diff_sha256")}
    except (OSError, ValueError, KeyError, TypeError):
        _refuse(folder, f"{RECORD} cannot be read")


def _refuse(folder: Path, what: str) -> NoReturn:
    raise UserError(
        f"{folder}: is not the code that was kept there: {what}. Find out who did that; `upshot cancel` stops the jobs"
        " that run it, and once the folder is removed, `upshot submit` keeps the code anew"
    )
