"""What kind of trouble keeps a cell from W&B, told from wandb's words: it has no codes for most of it."""

import re
from enum import StrEnum
from typing import Final

from models.errors import UserError
from orchestrator.tracking.account import base_url, find_key
from orchestrator.tracking.client import NoKeyError, one_line
from orchestrator.tracking.stamps import Place


class Trouble(StrEnum):
    """Passing trouble is worth another try, that of the study is the same for each of its cells."""

    PASSING = "passing"
    STUDY = "study"
    CELL = "cell"


DELETED: Final = "previously created and deleted"
"""wandb issue 1192: W&B never gives an id again."""
STATUS: Final = r"(?<![\w/.-])({})(?![\w/-])"
"""An HTTP status that is said: no part of an address or of a name."""
KEY: Final = re.compile(STATUS.format("401") + "|not logged in|api.?key", re.IGNORECASE)
"""The key is refused, or is none."""
PLACE: Final = re.compile(
    STATUS.format("40[34]") + "|permission denied|not found during upsertBucket|project name", re.IGNORECASE
)
"""wandb issues 9156, 2484: W&B knows no such entity, or the key's user may not write there."""
WRONG: Final = re.compile(STATUS.format("400|413|422"))
"""The server takes no such run: asking again changes nothing."""


def trouble_of(error: Exception) -> Trouble:
    """The kind of an error; one that nobody knows is worth another try."""
    if isinstance(error, NoKeyError):
        return Trouble.STUDY
    if isinstance(error, UserError) or (isinstance(error, OSError) and _is_local(error)):
        return Trouble.CELL
    return trouble_in(one_line(error))


def _is_local(error: OSError) -> bool:
    """Whether it is the disk's, not the network's."""
    foreign = type(error).__module__.startswith(("requests", "urllib3", "wandb"))
    return not foreign and not isinstance(error, TimeoutError | ConnectionError)


def trouble_in(words: str) -> Trouble:
    """The same of what wandb said."""
    if DELETED in words or WRONG.search(words):
        return Trouble.CELL
    return Trouble.STUDY if KEY.search(words) or PLACE.search(words) else Trouble.PASSING


def mended(words: str, place: Place) -> str:
    """What wandb said of trouble that all cells have, and what mends it."""
    if "no W&B key" in words:
        return words
    if KEY.search(words):
        refused = f"W&B at {base_url()} refuses the key of {find_key()} ({words})"
        return f"{refused}: `wandb login` keeps another, or set WANDB_API_KEY"
    return (
        f"W&B takes no runs of {place} ({words}): mend wandb.entity and wandb.project in the study, or let the key's"
        " user write there"
    )
