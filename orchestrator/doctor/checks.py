"""What the doctor says: one line for each thing that it looked at."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.terminal import harmless
from slurm.limits import Limits


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    ADVICE = "advice"  # things run without it
    MEND = "mend"  # something will not run


_STYLES = {Level.OK: "green", Level.ADVICE: "yellow", Level.MEND: "bold red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Args:
        level: how it came out.
        topic: what it was.
        found: what was found.
        remedy: what to do; empty where there is nothing to be done.
        is_silence: Slurm is wanted and did not answer.
    """

    level: Level
    topic: str
    found: str
    remedy: str = ""
    is_silence: bool = False

    def __str__(self) -> str:
        return f"{self.level:<8}{self.topic}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")


def ok(topic: str, found: str) -> Check:
    """A check that found things as they should be."""
    return Check(level=Level.OK, topic=topic, found=found)


def advice(topic: str, found: str, remedy: str) -> Check:
    """A check that found something that could be better."""
    return Check(level=Level.ADVICE, topic=topic, found=found, remedy=remedy)


def mend(topic: str, found: str, remedy: str) -> Check:
    """A check that found something in the way."""
    return Check(level=Level.MEND, topic=topic, found=found, remedy=remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Every check, and the cluster's limits where a cluster answered."""

    checks: list[Check]
    limits: Limits | None = None

    @property
    def exit_code(self) -> int:
        """0 fine or advice only, 1 something has to be mended, 3 Slurm is wanted and does not answer."""
        if any(check.is_silence for check in self.checks):
            return 3
        return int(any(check.level is Level.MEND for check in self.checks))

    def to_json(self) -> dict[str, Any]:
        """What `upshot doctor --json` prints."""
        checks = [asdict(check) for check in self.checks]
        return {"checks": checks, "limits": self.limits.to_json() if self.limits else None}


def print_findings(findings: Findings) -> None:
    """A line a check, and what they come to; never wrapped, so that a line can be searched for and passed on."""
    console = Console()
    for check in findings.checks:
        line = Text(harmless(str(check)))
        line.stylize(_STYLES[check.level], 0, len(check.level))
        console.print(line, soft_wrap=True)
    console.print(Text(_summary(check.level for check in findings.checks)), soft_wrap=True)


def _summary(levels: Iterable[Level]) -> str:
    counted = list(levels)
    to_mend, advised = counted.count(Level.MEND), counted.count(Level.ADVICE)
    if not to_mend and not advised:
        return f"all {len(counted)} checks are fine"
    return f"{len(counted)} checks: {to_mend} to mend, {advised} with advice"
