"""Chromium for the tests and measurements that look at a page."""

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
"""Its path; None where none is installed."""
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --virtual-time-budget=60000
--window-size=1280,2000 --dump-dom"""
