"""Answers of tasks whose cells did not change since the last reduction, kept beside the results.

An answer is kept under a digest of all that it was made from: the task's cells, the settings, and the code.
"""

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from orchestrator.answer import Settings

CODE = ("answer.py", "more_cells.py", "frontier", "conflicts")


def answer_key(cells: "pl.DataFrame", settings: "Settings") -> str:
    """The digest of one task's cells (with every column that an answer may look at), the settings, and the code."""
    digest = hashlib.sha256(repr((_code_digest(), cells.schema, settings)).encode())
    digest.update(cells.hash_rows(seed=0).to_numpy().tobytes())
    return digest.hexdigest()


def read_kept(path: Path) -> dict[str, Any]:
    """Kept answers by key; none where the file is missing or damaged, since they can be made anew."""
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def write_kept(path: Path, answers: "Mapping[str, Any]") -> None:
    """Replaces the kept answers by these."""
    write_whole(path, json.dumps(answers, separators=(",", ":")))


@cache
def _code_digest() -> str:
    here = Path(__file__).parent
    files = sorted(file for name in CODE for file in (here / name, *(here / name).glob("*.py")) if file.is_file())
    digest = hashlib.sha256("".join(version(name) for name in ("numpy", "polars")).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
