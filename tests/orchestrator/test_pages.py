"""Every command of README and docs/ runs as it stands, or stands in a list with the reason why it does not run here."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from orchestrator.cli import app
from tests.orchestrator.own_server import own_server
from tests.orchestrator.page_folders import WAYS, run_small_study
from tests.orchestrator.pages import PAGES, ROOT, Reader, aligned, blocks, commands
from tests.private_slurm import PrivateSlurm
from tests.wandb_server import WandbServer

HERE, ON_SLURM = ([page for page, way in WAYS.items() if way.on_slurm is wanted] for wanted in (False, True))
NOT_RUN = [(page, line) for page, way in WAYS.items() for line in way.not_run]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    home = tmp_path / "home"
    home.mkdir()
    with own_server(home, monkeypatch) as started:
        started.entity = "team"  # as the pages call it
        yield started


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study file, and the study folder below it, once all of it has run; to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    run_small_study(folder)
    return folder


def follow(page: str, folder: Path, server: WandbServer, request: pytest.FixtureRequest) -> None:
    """Runs the page, and looks at what it leaves behind where printing tells too little."""
    way = WAYS[page]
    if way.of_a_finished_study:
        shutil.copytree(request.getfixturevalue("finished"), folder)
    else:
        folder.mkdir()
    way.prepare(folder, server)
    printed = Reader(page, folder, way.not_run, way.exit_codes).follow()
    way.left_behind(folder, " ".join(printed.split()))


@pytest.mark.parametrize("page", HERE)
def test_the_commands_of_a_page_run_as_they_stand(
    page: str, tmp_path: Path, server: WandbServer, request: pytest.FixtureRequest
) -> None:
    follow(page, tmp_path / "reader", server, request)


@pytest.mark.slurm
@pytest.mark.parametrize("page", ON_SLURM)
def test_the_commands_of_a_page_run_on_a_slurm_cluster(
    page: str, tmp_path: Path, server: WandbServer, on_slurm: PrivateSlurm, request: pytest.FixtureRequest
) -> None:
    follow(page, tmp_path / "reader", server, request)


def test_every_page_with_commands_has_a_way_to_run_them() -> None:
    assert {page for page in PAGES if blocks(page, "sh")} == set(WAYS)


def test_no_command_stands_in_a_block_that_is_not_run() -> None:
    """A shell block of another name, or a text that holds prompts, would be run by nobody."""
    for page in PAGES:
        assert {block.language for block in blocks(page)} <= {"sh", "text", "toml", "latex", ""}, page
        shown = "\n".join(block.text for block in blocks(page) if block.language != "sh")
        assert not [line for line in shown.splitlines() if line.startswith(("$ ", "upshot "))], page


@pytest.mark.parametrize(("page", "line"), NOT_RUN)
def test_what_is_not_run_is_on_its_page_and_its_options_exist(page: str, line: str) -> None:
    assert line in commands(page)
    program, *words = shlex.split(line)
    if program == "upshot":
        parse(words)
    elif program == "make":
        assert f"\n{words[0]}: " in (ROOT / "Makefile").read_text()
    else:
        assert Path(program).name in ("python3", "pip", ""), "what makes an installation"


def parse(words: list[str]) -> None:
    """Has the words read as the command line reads them, without running anything."""
    command: Any = get_command(app)
    while hasattr(command, "commands"):  # a group of them
        name, *words = words
        command = command.commands[name]
    command.make_context(command.name, list(words))


def test_options_that_do_not_exist_are_found_in_what_is_not_run() -> None:
    with pytest.raises(Exception, match="No such option: --profil"):
        parse(["doctor", "--profil", "cluster.toml"])


@pytest.mark.parametrize(
    ("shown", "printed", "found"),
    [
        (["a 1"], ["a 2.5"], ["a 2.5"]),
        (["a 1"], ["b 1"], None),
        (["a"], ["a", "b"], None),
        (["a", "..."], ["a", "b"], ["a", "..."]),
        (["...", "b"], ["a", "b"], ["...", "b"]),
        (["a", "...", "c"], ["a", "b", "c"], ["a", "...", "c"]),
        (["a", "...", "c"], ["a", "c", "d"], None),
        (["a", "...", "c", "..."], ["a", "b", "d"], None),
        (["...", "b"], ["b", "b"], ["...", "b"]),
        (["start on ..."], ["start on ada, pid 7"], ["start on ..."]),
        (["start on ..."], ["end: done"], None),
        (["a", "b"], ["a"], None),
        (["3 min left"], ["40 s left"], ["40 s left"]),
        (["6b70af1a299a4da8 done"], ["b3ea1af71d35f785 failed"], None),
    ],
)
def test_what_a_page_shows_is_what_was_printed_but_for_numbers(
    shown: list[str], printed: list[str], found: list[str] | None
) -> None:
    assert aligned(shown, printed) == found
