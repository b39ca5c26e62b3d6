"""Speeds, each beside a named rival in the same run: `make bench`."""
