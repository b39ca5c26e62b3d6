"""README and docs/ as a person reads them: files are written, commands run, and what they print is compared.

A page's fenced blocks are

- `sh`: commands. They run as they stand, in one folder, from the first to the last, as bash does with `-e`.
- `text`, right after: what these commands print, numbers apart; a line `...` stands for any lines, and ` ...` at the
  end of a line for any words.
- `toml` that begins with a comment of a file's name alone (`# study.toml`): that file, which the commands then find.
- others: shown, and not run.

`UPSHOT_WRITE_PAGES=1 pytest tests/orchestrator/test_pages.py` writes what the commands print now into the pages.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))}
READERS_HOME = "/home/ada"
"""What pages call the folder in which their commands run."""
GAP = "..."
NUMBERS = (
    (re.compile(r"\b[0-9a-f]{16}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{8}\b(?=[.…]|$)"), "ID"),
    (re.compile(r"\d[\d.,]* (s|min|h)\b"), "TIME"),
    (re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?"), "N"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `start` and `end` are where its text stands in the page's."""

    language: str
    text: str
    start: int
    end: int

    @property
    def file(self) -> str | None:
        """The name of the file that it is, where it begins with one."""
        named = re.match(r"# (\S+\.toml)\n", self.text) if self.language == "toml" else None
        return named and named[1]


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The blocks of a page, those of one language where it is given."""
    text = PAGES[page].read_text()
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    all_of_them = [Block(one[1], one[2], one.start(2), one.end(2)) for one in found]
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(all_of_them), f"{page}: a fence is not closed"
    return [block for block in all_of_them if language in (None, block.language)]


def commands(page: str) -> list[str]:
    """Every line of the page's `sh` blocks, without comments; a line that ends in a backslash goes on."""
    lines = "".join(block.text for block in blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [told for line in lines if (told := without_comment(line))]


def without_comment(line: str) -> str:
    return re.sub(r"(^|\s+)#.*", "", line).strip()


def normalised(line: str) -> str:
    for pattern, word in NUMBERS:
        line = pattern.sub(word, line)
    return line.strip()


def aligned(shown: Sequence[str], printed: Sequence[str]) -> list[str] | None:
    """The printed lines that the shown ones stand for, gaps kept; None where they are not what was printed."""
    found: list[str] = []
    at = 0
    for before, part, after in _parts(shown):
        last = len(printed) - len(part)
        places = range(at, last + 1) if before else [at] if at <= last else []
        at = next((i for i in places if _fit(part, printed[i:]) and (after or i == last)), -1)
        if at < 0:
            return None
        found += [GAP] * before + [_kept(*pair) for pair in zip(part, printed[at:], strict=False)]
        at += len(part)
    return found + [GAP] * (shown[-1] == GAP)


def _fit(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether the printed lines begin with those that are shown."""
    return all(
        normalised(now).startswith(normalised(was.removesuffix(GAP)))
        if was.endswith(f" {GAP}")
        else normalised(now) == normalised(was)
        for was, now in zip(shown, printed, strict=False)
    )


def _kept(shown: str, printed: str) -> str:
    return shown if shown.endswith(f" {GAP}") else printed


def _parts(shown: Sequence[str]) -> list[tuple[bool, Sequence[str], bool]]:
    """(whether a gap is before it, lines without a gap, whether one is after it), in order."""
    gaps = [-1, *(i for i, line in enumerate(shown) if line.strip() == GAP), len(shown)]
    parts = [(a >= 0, shown[a + 1 : b], b < len(shown)) for a, b in pairwise(gaps)]
    return [part for part in parts if part[1]]


class Reader:
    """Somebody who follows a page in `folder`, does not run the lines of `not_run`, and expects some exit codes."""

    def __init__(self, page: str, folder: Path, not_run: Mapping[str, str], exit_codes: Mapping[str, int]) -> None:
        self.page, self.folder, self.not_run, self.exit_codes = page, folder, not_run, exit_codes
        self._rewritten: list[tuple[Block, str]] = []

    def follow(self) -> str:
        """All that is printed, reading from the first line to the last; other words or a failure are an error."""
        printed, said = None, ""
        for block in blocks(self.page):
            if block.file:
                (self.folder / block.file).write_text(block.text)
            if block.language == "text":
                assert printed is not None, f"{self.page}: no command stands before\n{block.text}"
                self._compare(block, printed)
            printed = self._run(block.text) if block.language == "sh" else None
            said += printed or ""
        if self._rewritten:
            self._write_page()
        return said

    def _run(self, text: str) -> str:
        lines = text.replace("\\\n", " ").splitlines()
        script = "\n".join(self._expected(line) for line in lines if without_comment(line) not in self.not_run)
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=self.folder,
            env=_environment(),
            input="y\n" * 20,  # to whatever is asked
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{self.page}: exit code {done.returncode} of\n{script}\n{done.stdout}"
        return done.stdout.replace(str(self.folder), READERS_HOME)

    def _expected(self, line: str) -> str:
        code = self.exit_codes.get(without_comment(line))
        return line if code is None else f"{{ {without_comment(line)}; }} || [ $? = {code} ]"

    def _compare(self, block: Block, printed: str) -> None:
        lines = [line.rstrip() for line in printed.rstrip().splitlines()]
        found = aligned(block.text.splitlines(), lines)
        if os.environ.get("UPSHOT_WRITE_PAGES") == "1":
            self._rewritten.append((block, "\n".join(lines if found is None else found) + "\n"))
        else:
            assert found is not None, f"{self.page} shows\n{block.text}\nbut this was printed\n{printed}"

    def _write_page(self) -> None:
        text = PAGES[self.page].read_text()
        for block, new in reversed(self._rewritten):
            text = text[: block.start] + new + text[block.end :]
        PAGES[self.page].write_text(text)


def _environment() -> dict[str, str]:
    """That of a reader: the commands of this installation, 80 columns, and runs/ in the folder they are in."""
    variables = {name: value for name, value in os.environ.items() if name not in ("UPSHOT_RUNS", "UPSHOT_DATA")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return variables | {"PATH": path, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
