"""A counter of calls that programs under test can carry without being seen to change."""

from __future__ import annotations

from collections.abc import Callable

_SOURCE = """
times = 0
def note():
    global times
    times += 1
"""


def counter() -> tuple[Callable[[], None], Callable[[], int]]:
    """A function that programs call, and one that tells how often they have.

    It passes for a function of Pyro's, whose globals the engine does not look at.
    """
    namespace = {"__name__": "pyro.counter"}
    exec(_SOURCE, namespace)
    return namespace["note"], lambda: namespace["times"]


def counted(make: Callable[[], tuple[Callable[..., None], Callable[..., None]]]) -> tuple[Callable, Callable[[], int]]:
    """Makes a model and a guide that is counted, and tells how often the guide made last has run."""
    counters = []

    def made():
        model, guide = make()
        note, times = counter()
        counters.append(times)

        def noting(*args, **kwargs):
            note()
            return guide(*args, **kwargs)

        return model, noting

    return made, lambda: counters[-1]()
