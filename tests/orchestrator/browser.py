"""Chromium for the tests and measurements that look at a page."""

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str | None:
    """Its path; None where none is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)
