"""Spaces of latents: a prior and a guide family fit together if their spaces are equal.

Example:
    >>> OneHotCodes(10) == OneHotCodes(10), OneHotCodes(10) == Simplex()
    (True, False)
"""

from __future__ import annotations

from dataclasses import dataclass

from pyro_vae.errors import one_of


@dataclass(frozen=True)
class Space:
    """Where latents lie; printed as it reads in a message."""


@dataclass(frozen=True)
class Reals(Space):
    """All of R^D."""

    def __str__(self) -> str:
        return "all of R^D"


@dataclass(frozen=True)
class Simplex(Space):
    """Vectors of non-negative numbers that sum to one."""

    def __str__(self) -> str:
        return "the simplex"


@dataclass(frozen=True)
class Sphere(Space):
    """Vectors of length one."""

    def __str__(self) -> str:
        return "the unit sphere"


@dataclass(frozen=True)
class OneHotCodes(Space):
    """Groups of one-hot codes, laid end to end.

    Args:
        categories: entries of each code.
    """

    categories: int

    def __str__(self) -> str:
        return f"one-hot codes of {self.categories}"


@dataclass(frozen=True)
class GuidesSpace(Space):
    """The guide's space, whichever that is."""

    def __str__(self) -> str:
        return "the guide's space"


def as_space(space: Space | str) -> Space:
    """A space as it is, or the one that a word of version 0.1 names.

    Raises:
        InputError: if there is no space of that name.
    """
    words = {"real": Reals(), "simplex": Simplex(), "sphere": Sphere()}
    return space if isinstance(space, Space) else words[one_of("space", space, words)]
