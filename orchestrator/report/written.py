"""What a report wrote into its folder, so that the next one may remove what it does not write itself."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from orchestrator.files import write_atomically

LISTED = re.compile(r"(?:tables|figures)/[^/]+")


def keep_only(folder: Path, written: Sequence[Path]) -> list[str]:
    """The paths relative to the folder, after what an earlier report listed besides is removed and these are listed.

    Raises:
        OSError: the folder cannot be written.
    """
    files = [path.relative_to(folder).as_posix() for path in written]
    for name in set(_listed(folder / "files.json")).difference(files):
        if (folder / name).is_file():
            (folder / name).unlink()
    write_atomically(folder / "files.json", json.dumps(files, indent=1))
    return files


def _listed(path: Path) -> list[str]:
    """The files that an earlier report says it wrote; none where it left no list, or a damaged one."""
    try:
        names = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    return [name for name in names if LISTED.fullmatch(str(name))] if isinstance(names, list) else []
