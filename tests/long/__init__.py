"""Checks that take minutes, run on demand: `python -m tests.long.kills`, `python -m tests.long.memory`."""
