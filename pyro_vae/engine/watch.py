"""Tells between calls whether anything that a program can reach has changed."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from pyro_vae.engine import compat
from pyro_vae.engine.containers import places_of_tensor
from pyro_vae.engine.observe import Executed
from pyro_vae.engine.places import Kind, Moved, Place, columns, faint, same
from pyro_vae.engine.policy import MOST_UNHELD
from pyro_vae.engine.reach import Reach, Unseen
from pyro_vae.engine.things import MISSING


class Watch:
    """What programs reach, as it was when the watch was made.

    Each call asks, so places are compared by identity in columns, without Python running place by place. Where something is
    not the same object, everything is looked at again and compared by value.

    What is compared so is held. Where the end of something would be seen, by a weak reference or a `__del__`, nothing is:
    each call looks at everything again.

    Args:
        roots: gives programs, and other things that a call depends on.
        executed: what calls have executed.

    Attributes:
        moved: pairs of tensors, of which the second took the place of the first.
        written: the tensors that a call in this state writes to, once one has been observed.

    Raises:
        Unseen: if something is reached whose changes cannot be seen.
    """

    def __init__(self, roots: Callable[[], Sequence[Any]], executed: Executed):
        self._roots, self._executed = roots, executed
        self._further: list[Place] = []
        self.moved: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.written: list[torch.Tensor] = []
        self._rooted = tuple(roots())
        self._set(Reach(self._rooted, executed))

    def add(self, params: Mapping[str, torch.Tensor]) -> None:
        """Watches Pyro's parameters too: that the store holds the same, and that none is frozen or gets a hook."""
        stored, constraints, _ = compat.store_parts()
        holder, key = compat.store_place()
        self._further.append(Place(Kind.ENTRY, holder, key, stored, "Pyro's param store", True))
        for name, tensor in params.items():
            if name in stored:
                self._further.append(Place(Kind.ENTRY, stored, name, tensor, f"the parameter {name!r}", True))
                constraint = constraints.get(name, MISSING)
                self._further.append(Place(Kind.ENTRY, constraints, name, constraint, f"{name!r}'s constraint", True))
            if id(tensor) not in self._ordinals:
                self._further += places_of_tensor(tensor, repr(name))
        self._columns += columns(self._further)

    def changed(self, follow: bool = False) -> str | None:
        """Where something is not what it was, for a message; None if all is as it was.

        Args:
            follow: let a constant tensor be replaced by another one like it, and note the two in `moved`.

        Raises:
            Unseen: if something has come whose changes cannot be seen.
        """
        if self._as_it_was():
            return None
        for place in self._further:
            if not columns([place])[0]():
                return place.path
        roots = tuple(self._roots())
        reach = Reach(roots, self._executed)
        moved: Moved = {}
        for old, new in itertools.zip_longest(self.places, reach.places):
            if self._mortal and new is not None:
                new = faint(new)
            if old is None or new is None or not same(old, new, moved if follow else None):
                return (new or old).path
        moves = [(old, new) for old, new in moved.values() if old is not new]
        if len({id(new) for _, new in moved.values()}) < len(moved) and moves:
            return "a tensor that is reached in several ways"
        self.moved += moves
        self._rooted = roots
        self._set(reach)
        return None

    def aliases(self, tensors: Sequence[torch.Tensor]) -> tuple[int | None, ...]:
        """Which of these tensors are ones that the programs reach anyway, by their place among those."""
        return tuple(map(self._ordinals.get, map(id, tensors)))

    def tensors(self) -> Iterator[torch.Tensor]:
        """The watched tensors."""
        places = Reach(self._rooted, self._executed).places if self._mortal else self.places
        return tensors_of(places)

    def _set(self, reach: Reach) -> None:
        self.places, self._mortal = reach.places, reach.mortal is not None
        self._ordinals = {id(tensor): i for i, tensor in enumerate(tensors_of(self.places))}
        if reach.mortal is not None:
            if len(self.places) > MOST_UNHELD:
                raise Unseen(f"{reach.mortal} is something whose end would be seen, and too much is reached besides")
            self.places = list(map(faint, self.places))
        self._columns = columns([*(() if self._mortal else self.places), *self._further])

    def _as_it_was(self) -> bool:
        roots = self._roots()
        if len(roots) != len(self._rooted) or not all(map(operator.is_, roots, self._rooted)):
            return False
        return not self._mortal and all(column() for column in self._columns)


def tensors_of(places: Sequence[Place]) -> Iterator[torch.Tensor]:
    """The tensors in places."""
    return (place.value for place in places if issubclass(type(place.value), torch.Tensor))
