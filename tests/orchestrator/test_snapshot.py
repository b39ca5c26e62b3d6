import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.snapshot import ROOMS

ROOT = Path(__file__).parents[2]
TAKE = "import sys; from pathlib import Path; from orchestrator.snapshot import *\n"
TAKE += "folder = take_snapshot(Path(sys.argv[1])); print(folder)"
IDENTITY = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b"}


def git(folder, *words):
    command = ["git", "-C", folder, "-c", "commit.gpgsign=false", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **IDENTITY}).stdout


@pytest.fixture
def tree(tmp_path):
    """The packages, and the images beside them, under no version control."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / "tree" / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tree" / "studies").symlink_to(ROOT / "studies")
    return tmp_path / "tree"


@pytest.fixture
def checkout(tree):
    """The same, committed."""
    git(tree, "init", "-q")
    git(tree, "add", *ROOMS)
    git(tree, "commit", "-q", "-m", "all")
    return tree


def python(source, *words, env=None, cwd="/"):
    variables = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=variables, cwd=cwd, check=False
    )


def take(source, root, env=None):
    done = python(source, "-c", TAKE, root, env=env, cwd=root.parent)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def refused(source, root, env=None):
    done = python(source, "-c", TAKE, root, env=env, cwd=root.parent)
    assert done.returncode == 1
    assert "UserError" in done.stderr
    return done.stderr.split("UserError: ")[-1]


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(path, line="\nEDITED = True\n"):
    path.write_text(path.read_text() + line)


def test_it_holds_what_git_tracks_as_the_working_tree_has_it(checkout, tmp_path):
    edit(checkout / "models" / "recipe.py")
    (checkout / "orchestrator" / "demo.py").unlink()
    (checkout / "models" / "scratch.py").write_text("never added")
    (checkout / "evals" / "added.py").write_text("ADDED = 1\n")
    git(checkout, "add", "evals/added.py")
    done = python(checkout, "-c", TAKE, tmp_path / "study")
    assert "does not track it: models/scratch.py" in done.stderr
    held = files(Path(done.stdout.strip()))
    record = json.loads(held.pop("snapshot.json"))
    diff = held.pop("dirty.diff")
    held.pop("environment.lock")
    tracked = set(git(checkout, "ls-files").split()) - {"orchestrator/demo.py"}
    assert held == {name: (checkout / name).read_bytes() for name in tracked}
    assert "EDITED" in held["models/recipe.py"].decode()
    assert record["git_sha"] == git(checkout, "rev-parse", "HEAD").strip()
    assert record["dirty"] is True
    # The commit and the diff alone make the same code again.
    git(tmp_path, "clone", "-q", checkout, "again")
    (tmp_path / "dirty.diff").write_bytes(diff)
    git(tmp_path / "again", "apply", tmp_path / "dirty.diff")
    assert {name: (tmp_path / "again" / name).read_bytes() for name in held} == held
    assert not (tmp_path / "again" / "orchestrator" / "demo.py").exists()


def test_the_same_content_is_the_same_folder(checkout, tmp_path):
    first = take(checkout, tmp_path / "study")
    assert not (first / "dirty.diff").exists()
    assert json.loads((first / "snapshot.json").read_bytes())["dirty"] is False
    before = files(first)
    assert take(checkout, tmp_path / "study") == first
    edit(checkout / "models" / "recipe.py")
    second = take(checkout, tmp_path / "study")
    assert second != first
    assert (second / "dirty.diff").exists()
    git(checkout, "commit", "-q", "-a", "-m", "edited")
    assert take(checkout, tmp_path / "study") == second
    git(checkout, "checkout", "-q", "HEAD~")
    assert take(checkout, tmp_path / "study") == first
    assert files(first) == before
    assert {path.name for path in (tmp_path / "study" / "code").iterdir()} == {first.name, second.name}


def test_nobody_writes_it_and_nobody_else_reads_it(checkout, tmp_path):
    before = os.umask(0)
    try:
        folder = take(checkout, tmp_path / "study")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o444}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)} == {0o700}
    shutil.rmtree(folder)  # and yet it can be removed like any folder


def test_a_job_runs_the_snapshot_whatever_becomes_of_the_tree(checkout, tmp_path):
    """With the project installed in this environment, and the edited tree as working directory, as after `sbatch`."""
    folder = take(checkout, tmp_path / "study")
    told = python(checkout, "-c", TAKE + "\nprint(json.dumps(job_environment(folder)))", tmp_path / "study")
    environment = json.loads(told.stdout.splitlines()[-1])
    assert environment["PYTHONPATH"] == os.pathsep.join([str(folder), str(checkout)])
    before = files(folder)
    for room in ROOMS:
        edit(checkout / room / "__init__.py", "raise SystemExit('the edited tree runs')\n")
    code = "import sys, orchestrator, slurm, evals, models.data as d\n"
    code += "print(orchestrator.__file__, slurm.__file__, evals.__file__, d.__file__, d.describe('icons').num_classes)"
    done = python("", "-c", code, env=environment, cwd=checkout)
    *where, num_classes = done.stdout.split()
    assert [Path(path).is_relative_to(folder) for path in where] == [True] * 4, done.stderr
    assert int(num_classes) > 1
    as_module = python("", "-m", "orchestrator.node", env=environment, cwd=checkout)
    assert f'File "{folder}/orchestrator/node/__main__.py"' in as_module.stderr  # it fails there, for want of arguments
    assert "the edited tree runs" in python(checkout, "-c", code, cwd=checkout).stderr
    assert files(folder) == before


def test_the_environment_keeps_what_the_caller_set(checkout, tmp_path):
    folder = take(checkout, tmp_path / "study")
    code = TAKE + "\nprint(json.dumps(job_environment(folder)))"
    env = {"PYTHONPATH": f"{checkout}::/of/the/user", "UPSHOT_IMAGES": "/own/images"}
    told = json.loads(python(checkout, "-c", code, tmp_path / "study", env=env).stdout.splitlines()[-1])
    assert told["PYTHONPATH"] == f"{folder}:{checkout}:/of/the/user"
    assert told["UPSHOT_IMAGES"] == f"/own/images:{checkout}/studies/images"


def test_the_lock_is_what_pip_lists(checkout, tmp_path):
    lock = (take(checkout, tmp_path / "study") / "environment.lock").read_text().splitlines()
    listed = python("", "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check").stdout.splitlines()
    versions = dict(line.split("==") for line in listed)
    by_name = sorted((re.sub("[-_.]+", "-", name).lower(), version) for name, version in versions.items())
    assert lock == [f"{name}=={version}" for name, version in by_name]
    assert any(line.startswith("torch==") for line in lock)


def test_outside_a_checkout_it_holds_the_packages(tree, tmp_path):
    (tree / "models" / "__pycache__").mkdir()
    (tree / "models" / "__pycache__" / "x.pyc").write_bytes(b"compiled")
    git(tmp_path, "init", "-q")  # such as a project with a virtual environment inside
    folder = take(tree, tmp_path / "study")
    held = files(folder)
    assert json.loads(held.pop("snapshot.json"))["git_sha"] is None
    assert held.keys() - {"environment.lock"} == {n for n in files(tree) if n.split("/")[0] in ROOMS} - {
        "models/__pycache__/x.pyc"
    }


def test_a_job_that_submits_takes_the_snapshot_that_it_runs(checkout, tmp_path):
    edit(checkout / "models" / "recipe.py")
    folder = take(checkout, tmp_path / "study")
    assert take(folder, tmp_path / "study") == folder
    elsewhere = take(folder, tmp_path / "other")
    assert files(elsewhere) == files(folder)


def test_a_git_hook_that_submits_looks_at_the_right_repository(checkout, tmp_path):
    git(tmp_path, "init", "-q", "other")
    env = {"GIT_DIR": str(tmp_path / "other" / ".git"), "GIT_WORK_TREE": str(tmp_path / "other")}
    folder = take(checkout, tmp_path / "study", env=env)
    assert json.loads((folder / "snapshot.json").read_bytes())["git_sha"] == git(checkout, "rev-parse", "HEAD").strip()


def test_one_killed_before_the_end_leaves_nothing_that_counts(checkout, tmp_path):
    die = "import os, sys; sys.addaudithook(lambda name, _: os._exit(9) if name == 'os.rename' else None)\n"
    assert python(checkout, "-c", die + TAKE, tmp_path / "study").returncode == 9
    [left] = (tmp_path / "study" / "code").iterdir()
    assert left.name.startswith(".draft-")
    assert len(files(left)) > 50
    folder = take(checkout, tmp_path / "study")
    assert files(folder) == files(left)


def test_a_full_disk_leaves_nothing(checkout, tmp_path):
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
    done = python(checkout, "-c", full + TAKE, tmp_path / "study")
    assert "OSError" in done.stderr
    assert list((tmp_path / "study" / "code").iterdir()) == []


def test_several_at_once_take_one(checkout, tmp_path):
    wait = "import sys, orchestrator.snapshot\nprint('ready', flush=True)\nsys.stdin.readline()\n"
    command = [sys.executable, "-c", wait + TAKE, tmp_path / "study"]
    pipe, env = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(checkout)}
    takers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env, cwd="/") for _ in range(4)]
    assert [taker.stdout.readline() for taker in takers] == ["ready\n"] * 4
    for taker in takers:
        taker.stdin.write("go\n")
        taker.stdin.flush()
    said = {taker.communicate(timeout=60)[0].strip() for taker in takers}
    assert len(said) == 1
    assert [str(path) for path in (tmp_path / "study" / "code").iterdir()] == list(said)


def _changed(folder):
    path = folder / "models" / "recipe.py"
    path.chmod(0o644)
    path.write_text(path.read_text() + "import os\n")


def _gone(folder):
    (folder / "models" / "recipe.py").unlink()


def _new(folder):
    (folder / "sitecustomize.py").write_text("print('mine')")


def _compiled(folder):
    (folder / "models" / "__pycache__").mkdir()
    (folder / "models" / "__pycache__" / "recipe.cpython-311.pyc").write_bytes(b"")


def _link(folder):
    path = folder / "models" / "recipe.py"
    path.rename(folder.parent / "recipe.py")
    path.symlink_to(folder.parent / "recipe.py")


def _commit(folder):
    path = folder / "snapshot.json"
    path.chmod(0o644)
    text = path.read_text()
    digest = json.loads(text)["digest"]
    path.write_text(text.replace(digest, digest[::-1]))


def _torn(folder):
    (folder / "snapshot.json").unlink()
    (folder / "snapshot.json").write_text("{")


def _diff(folder):
    (folder / "dirty.diff").unlink()


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (_changed, "models/recipe.py was changed"),
        (_gone, "models/recipe.py is gone"),
        (_new, "sitecustomize.py is new"),
        (_compiled, "recipe.cpython-311.pyc is new"),
        (_link, "models/recipe.py was changed"),
        (_commit, "snapshot.json or dirty.diff was changed"),
        (_torn, "snapshot.json cannot be read"),
        (_diff, "snapshot.json or dirty.diff was changed"),
    ],
)
def test_a_snapshot_that_was_tampered_with_is_refused(checkout, tmp_path, tamper, named):
    edit(checkout / "slurm" / "local.py")
    folder = take(checkout, tmp_path / "study")
    tamper(folder)
    said = refused(checkout, tmp_path / "study")
    assert str(folder) in said
    assert named in said
    shutil.rmtree(folder)
    assert take(checkout, tmp_path / "study") == folder


def test_a_link_in_a_snapshots_place_is_refused(checkout, tmp_path):
    folder = take(checkout, tmp_path / "study")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert "it is no folder" in refused(checkout, tmp_path / "study")


SECRET = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize("variable", ["WANDB_API_KEY", "hf_token", "DB_PASSWORD", "MY_SECRET_1", "AWS_CREDENTIALS"])
def test_a_secret_in_the_code_is_named_and_not_kept(checkout, tmp_path, variable):
    edit(checkout / "models" / "recipe.py", f"KEY = '{SECRET}'\n")
    said = refused(checkout, tmp_path / "study", env={variable: SECRET})
    assert "models/recipe.py: " in said
    assert f"${variable}" in said
    assert SECRET not in said
    assert not (tmp_path / "study").exists()


def test_a_secret_that_was_taken_out_is_still_in_the_diff(checkout, tmp_path):
    path = checkout / "models" / "recipe.py"
    clean = path.read_text()
    edit(path, f"KEY = '{SECRET}'\n")
    git(checkout, "commit", "-q", "-a", "-m", "oops")
    path.write_text(clean)
    assert "dirty.diff: " in refused(checkout, tmp_path / "study", env={"WANDB_API_KEY": SECRET})
    git(checkout, "commit", "-q", "-a", "-m", "mended")
    take(checkout, tmp_path / "study", env={"WANDB_API_KEY": SECRET})


def test_short_values_and_other_variables_are_no_secrets(checkout, tmp_path):
    edit(checkout / "models" / "recipe.py", f"PLAIN = '{SECRET}'\n")
    take(checkout, tmp_path / "study", env={"TOKENIZERS_PARALLELISM": "import", "MY_KEY": "def ", "PLAIN": SECRET})
