"""How long a job waits for W&B in all: a small share of its time, however long W&B is ill, and for how many cells."""

import time
from typing import Final

SHARE: Final = 0.05


class Patience:
    """Of one process. After it waited in vain, W&B is left alone until the wait was `SHARE` of the time since.

    `problem` is what was in the way the last time.
    """

    def __init__(self) -> None:
        self._waited_s = self._resumes = 0.0
        self.problem: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether W&B is not to be waited for just now."""
        return time.monotonic() < self._resumes

    def wait(self, seconds: float) -> None:
        """Counts a wait whose outcome is not known yet."""
        self._waited_s += seconds

    def judge(self, problem: str | None) -> None:
        """Says whether the waits since the last time were in vain."""
        if problem is not None:
            self._resumes = time.monotonic() + self._waited_s / SHARE
        self.problem, self._waited_s = problem, 0.0


PATIENCE: Final = Patience()
"""This process's."""
