"""Which cells a command means: `-s FAILED`, `axis=value`, or the beginning of a cell id."""

from collections.abc import Callable, Iterable

from models.errors import UnknownNameError, UserError
from models.recipe import Axes
from orchestrator.state import CellState, Status
from slurm.failures import Cause

Keep = Callable[[CellState], bool]


def selection(words: Iterable[str], statuses: Iterable[str] = (), causes: Iterable[str] = ()) -> Keep:
    """A test that a cell passes when status and cause are among those given and every word fits it.

    Raises:
        UnknownNameError: no such status, cause or axis.
        UserError: a word that is neither axis=value nor hexadecimal.
    """
    wanted = {_status(name) for name in statuses}
    died_of = {_cause(name) for name in causes}
    tests = [_word(word) for word in words]
    return lambda state: (
        (not wanted or state.status in wanted)
        and (not died_of or state.cause in died_of)
        and all(test(state) for test in tests)
    )


def _cause(name: str) -> Cause:
    try:
        return Cause(name.lower().replace("_", "-"))
    except ValueError as error:
        raise UnknownNameError("cause", name, [cause.value for cause in Cause]) from error


def _status(name: str) -> Status:
    try:
        return Status(name.lower())
    except ValueError as error:
        raise UnknownNameError("status", name, [status.upper() for status in Status]) from error


def _word(word: str) -> Keep:
    axis, equals, value = word.partition("=")
    if not equals:
        if not word or set(word.lower()) - set("0123456789abcdef"):
            raise UserError(f"{word!r}: write axis=value, or the beginning of a cell id")
        return lambda state: state.cell.cell_id.startswith(word.lower())
    if axis not in Axes.model_fields:
        raise UnknownNameError("axis", axis, Axes.model_fields)
    return lambda state: _same(getattr(state.cell.recipe, axis), value)


def _same(actual: object, given: str) -> bool:
    if isinstance(actual, bool):
        return str(actual).lower() == given.lower()
    if isinstance(actual, float | int):
        try:
            return float(given) == actual
        except ValueError:
            return False
    return str(actual) == given


def only_cell(states: list[CellState], prefix: str) -> CellState:
    """The one cell whose id begins so.

    Raises:
        UserError: none does, or several.
    """
    found = [state for state in states if state.cell.cell_id.startswith(prefix.lower())]
    if len(found) != 1:
        near = ", ".join(state.cell.cell_id for state in found[:5])
        raise UserError(f"{len(found)} cells have an id that begins with {prefix!r}{': ' + near if near else ''}")
    return found[0]
