"""Bars of long work: on standard error where that is a terminal, gone afterwards; nothing anywhere else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from orchestrator.terminal import duration

Tell = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and of how much."""


def tell_nobody(_what: str, _done: int, _of: int) -> None:
    """For work that nobody watches."""


class TimeLeft(ProgressColumn):
    """'3 min left', as what is done has taken on average; a dash before anything is."""

    def render(self, task: Task) -> Text:
        """For one line."""
        if not task.completed or task.total is None or task.elapsed is None:
            return Text("–")
        return Text(f"{duration(task.elapsed * (task.total - task.completed) / task.completed)} left")


@contextmanager
def bar() -> Iterator[Tell]:
    """Shows how far each stage of the work is, one after the other."""
    console = Console(stderr=True)
    if not console.is_interactive:
        yield tell_nobody
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeLeft())
    # Standard output stays as it is: it may be a file.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        lines: dict[str, TaskID] = {}

        def tell(what: str, done: int, of: int) -> None:
            if what not in lines:
                for line in lines.values():
                    progress.update(line, visible=False)
                lines[what] = progress.add_task(what, total=of)
            progress.update(lines[what], completed=done, total=of)

        yield tell
