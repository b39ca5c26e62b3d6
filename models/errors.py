"""The errors that a user can mend, in one tree.

    UserError (ValueError)      what the user gave cannot be used: exit code 2
    +-- StudyError              a study file or an override (orchestrator.study)
    +-- UnknownNameError        a family, size, data set or task that no registry knows
    +-- DataError               images or tables that are missing, empty or malformed
    +-- CheckpointError         a checkpoint that cannot be used: it is of another model, or cannot be reached
        +-- CorruptCheckpointError  one that is missing files or torn, so that only an older one can help

`slurm` stands apart (it imports no sibling) and raises `slurm.resources.SlurmError`.
"""

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class UserError(ValueError):
    """What the user gave cannot be used; the message says what, where, and how to mend it."""


class StudyError(UserError):
    """A study file or an override that does not describe a study."""


class DataError(UserError):
    """Images or tables that are missing, empty or malformed."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used: it is of another model, or its files cannot be reached."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint that lacks a file, or whose file is torn: it will not be readable later either."""


class UnknownNameError(UserError):
    """A name that no registry knows.

    Args:
        kind: what was looked up, as it should read in the message ("size", "task").
        name: what was given.
        known: the names that exist, in the order in which to list them.
        where: a phrase that says where it was looked up ("for family 'vit'").
    """

    def __init__(self, kind: str, name: object, known: "Iterable[str]", where: str = "") -> None:
        known = list(known)
        place = f" {where}" if where else ""
        super().__init__(f"unknown {kind} {name!r}{place} (known: {', '.join(known)}).{did_you_mean(name, known)}")


def did_you_mean(name: object, known: "Iterable[str]") -> str:
    """' Did you mean 'S'?', or an empty string when nothing known is near."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""
