"""Slurm's ways to write a time, a size and a list of generic resources, the same from 20.x to 26.x."""

import re
from collections.abc import Mapping
from typing import Final

from slurm.resources import SlurmError

_NO_LIMIT: Final = frozenset({"", "UNLIMITED", "INFINITE", "NONE", "N/A", "(NULL)", "-1"})
_TIME: Final = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
_SIZE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[KMGTP]?)[BbNnCc+]*")
_POWER: Final = {"K": -1, "": 0, "M": 0, "G": 1, "T": 2, "P": 3}
_NUMBER: Final = re.compile(r"\d+")
# A comma inside of "gpu:h100:8(S:0,2)" separates sockets, not resources.
_GRES: Final = re.compile(r"(?:[^,(]|\([^)]*\))+")
_COUNT: Final = re.compile(r"(?P<number>\d+)(?P<unit>[KMGTP]?)", re.IGNORECASE)
_COUNT_POWER: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_minutes(text: str) -> int | None:
    """Whole minutes of a time limit; None where there is no limit. A limit is never taken for longer than it is.

    Raises:
        SlurmError: the text is no time.
    """
    seconds = parse_seconds(text)
    return None if seconds is None else seconds // 60


def parse_seconds(text: str) -> int | None:
    """Seconds of a time such as "1-02:03:04", "1-02", "02:03:04", "2:30" or, in minutes, "90"; None for "UNLIMITED".

    Raises:
        SlurmError: the text is no time.
    """
    if text.upper() in _NO_LIMIT:
        return None
    match = _TIME.fullmatch(text)
    if match is None:
        raise SlurmError(f"cannot read the time limit {text!r}")
    parts = [int(part) for part in match["clock"].split(":")]
    if match["days"] is None and len(parts) < 3:  # "90" and "90:30" begin with minutes, "1:30:00" and "1-6" with hours
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_memory_mb(text: str) -> int | None:
    """Slurm's megabytes (MiB) of "64000", "64000M", "62.50G" or "64000+", rounded down; None for "UNLIMITED".

    Raises:
        SlurmError: the text is no size.
    """
    if text.upper() in _NO_LIMIT:
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise SlurmError(f"cannot read the memory size {text!r}")
    return int(float(match["number"]) * 1024.0 ** _POWER[match["unit"]])


def parse_count(text: str) -> int | None:
    """The number that a limit or a setting begins with ("300 sec", "5", "4+"); None where there is no limit.

    Raises:
        SlurmError: there is no number.
    """
    if text.upper() in _NO_LIMIT:
        return None
    match = _NUMBER.match(text)
    if match is None:
        raise SlurmError(f"cannot read the number {text!r}")
    return int(match[0])


def parse_gres(text: str) -> dict[str, int]:
    """How many of each resource, by name and type: {"gpu:h100": 8} of "gpu:h100:8(S:0-1)", {} of "(null)".

    Resources of one name and type are added up; a count that is left out is 1, as in slurm.conf.
    """
    found: dict[str, int] = {}
    if text.lower() in ("", "(null)", "n/a"):
        return found
    for item in _GRES.findall(text):
        words = [word for word in re.sub(r"\([^)]*\)", "", item).strip().split(":") if word and word != "no_consume"]
        count = _COUNT.fullmatch(words[-1]) if len(words) > 1 else None
        name = ":".join(words[:-1] if count else words)
        if name:
            found[name] = found.get(name, 0) + (_counted(count) if count else 1)
    return found


def _counted(match: re.Match[str]) -> int:
    return int(int(match["number"]) * 1024 ** _COUNT_POWER[match["unit"].upper()])


def gres_count(gres: Mapping[str, int], wanted: str) -> int:
    """How many answer to `wanted`: those of one type for "gpu:h100", those of all types for "gpu"."""
    return sum(count for name, count in gres.items() if name == wanted or name.startswith(f"{wanted}:"))


def parse_settings(output: str) -> dict[str, str]:
    """The settings of `scontrol show config`, a line each ("MinJobAge = 300 sec")."""
    pairs = (line.partition("=") for line in output.splitlines())
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def parse_words(line: str) -> dict[str, str]:
    """The "name=value" words of a line of `scontrol --oneliner`; a word without "=" belongs to the value before it."""
    found: dict[str, str] = {}
    last = ""
    for word in line.split():
        name, equals, value = word.partition("=")
        if equals:
            last = name
            found[name] = value
        elif last:
            found[last] += f" {word}"
    return found
