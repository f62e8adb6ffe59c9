"""Every program of the zoo gives Pyro's numbers, or Pyro's numbers and one warning that names the cause."""

import functools
import os

import pytest
import torch

from tests.engine.run import Observed, agree, differences, our_maker, pyro_maker, run
from tests.engine.zoo import ENTRIES
from tests.engine.zoo.core import CORE

#: The core stands for all in the suite; PYRO_VAE_ZOO=all runs every program, which takes some 15 minutes of one core.
NAMES = [name for name in ENTRIES if name in CORE or os.environ.get("PYRO_VAE_ZOO") == "all"]
VISIBLE = [name for name in NAMES if ENTRIES[name].visible]


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def under_pyro(name: str) -> Observed:
    """The program's run under Pyro's SVI."""
    return run(ENTRIES[name], pyro_maker)


@pytest.mark.parametrize("mode", ["auto", "graph"])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_pyro(name, mode):
    entry, pyros = ENTRIES[name], under_pyro(name)
    ours = run(entry, our_maker(mode))
    assert not differences(entry, ours, pyros), (differences(entry, ours, pyros), ours.how, ours.engine)
    assert len(ours.engine) <= entry.warnings
    if mode == "graph":
        captured = ours.how.startswith("captured")
        assert captured or ours.engine, "it runs eagerly and does not say why"
        if entry.captured:
            assert captured, (ours.how, ours.engine)
            assert not ours.engine
        if entry.eager:
            assert any(part in message for part in entry.eager for message in ours.engine), (entry.eager, ours.engine)


@pytest.mark.parametrize("name", VISIBLE)
def test_changes_are_visible_under_pyro(name):
    still = run(ENTRIES[name], pyro_maker, changing=False, steps=12)
    assert not agree(still.losses, under_pyro(name).losses[:12], 1e-3)


def test_the_zoo_is_large_and_every_program_is_described():
    assert len(ENTRIES) >= 400
    assert set(ENTRIES) >= CORE
    assert [name for name, entry in ENTRIES.items() if not entry.description.endswith(".")] == []
