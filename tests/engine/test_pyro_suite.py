"""Pyro's own tests that pass with Pyro's SVI pass with ours in its place.

PYRO_CHECKOUT names the folder of a Pyro checkout; PYRO_SUITE=full runs every file that steps an SVI, not only a few.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.engine.pyro_tests import FULL, SHORT

CHECKOUT = os.environ.get("PYRO_CHECKOUT", "")
SUITE = FULL if os.environ.get("PYRO_SUITE") == "full" else SHORT
RUNNER = Path(__file__).with_name("pyro_tests.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKOUT, reason="PYRO_CHECKOUT names no folder of a Pyro checkout"),
]


@functools.cache
def outcomes(which: str) -> dict[str, Any]:
    """Outcome of each test, by its id, with "pyro" or a mode of ours; why tests failed; how the SVIs ran."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "outcomes.json")
        command = [sys.executable, str(RUNNER), CHECKOUT, which, str(saved), *SUITE]
        done = subprocess.run(command, capture_output=True, text=True)
        assert saved.exists(), done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(saved.read_text())


@pytest.mark.parametrize("mode", ["auto", "graph"])
def test_what_passes_with_pyro_passes_with_ours(mode: str) -> None:
    passing = {test for test, outcome in outcomes("pyro")["outcomes"].items() if outcome == "passed"}
    assert len(passing) > 80, "hardly any test passes with Pyro's own SVI: is this a checkout of Pyro?"
    ours = outcomes(mode)
    failing = {test: ours["reasons"].get(test, "not run") for test in passing if ours["outcomes"].get(test) != "passed"}
    assert not failing, "\n\n".join(f"{test}\n{reason}" for test, reason in sorted(failing.items()))


def test_steps_are_captured_on_the_way() -> None:
    how = [how for made in outcomes("graph")["how"].values() for how in made]
    assert sum(each.startswith("captured") for each in how) > 10, how
