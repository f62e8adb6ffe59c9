"""Columns of one kind computed together: one distribution for all, in place of one for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.levels import Bernoulli, Categorical
from pyro_vae.likelihoods.ordered import Ordinal, RoundedLogistic
from pyro_vae.likelihoods.standardized import Standardized

TOGETHER = (Standardized, RoundedLogistic, Bernoulli, Categorical, Ordinal)


class Group(nn.Module):
    """Columns whose likelihoods differ in location and scale alone, and have no parameters of their own; or one column.

    Args:
        parts: the built likelihoods of all columns of the table.
        members: places of this group's columns.
    """

    moved: ClassVar[dict[type, tuple[str, ...]]] = {
        Standardized: ("loc", "scale", "unit"),
        RoundedLogistic: ("loc", "unit"),
    }

    def __init__(self, parts: Sequence[Likelihood], members: Sequence[int]):
        super().__init__()
        mine = [parts[j] for j in members]
        self.size, self.alone = len(members), len(members) == 1
        starts = [sum(part.params_shape[0] for part in parts[:j]) for j in members]
        width = mine[0].params_shape[0]
        params_at = [start + i for start in starts for i in range(width)]
        self.register_buffer("at", torch.tensor(members), persistent=False)
        self.register_buffer("params_at", torch.tensor(params_at), persistent=False)
        if self.alone:
            self.__dict__["one"] = mine[0]  # a module of the table already, under its own name
            return
        arguments = mine[0].arguments()
        self.values = {name: [getattr(part, name) for part in mine] for name in self.moved.get(type(mine[0]), ())}
        self.one = type(mine[0])(**arguments).build(event_shape=torch.Size([1]))
        self._apply(lambda t: t)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any) -> Group:
        """Moves the group; locations and scales are made anew, so that none is rounded twice."""
        super()._apply(fn, *args, **kwargs)
        if not self.alone:
            zero = self.one.zero
            for name, values in self.values.items():
                setattr(self.one, name, torch.tensor(values, dtype=zero.dtype, device=zero.device)[:, None])
        return self

    def distribution(self, params: torch.Tensor) -> TorchDistribution:
        """p(x_j | z) of the columns, batch shape (..., size) and event shape (1,), from params of all columns."""
        mine = params.index_select(-1, self.params_at)
        return self.one(mine.unflatten(-1, (self.size, -1)))

    def as_input(self, there: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        """What the encoder reads of the columns, (..., size, width), 0 where a cell is missing."""
        seen = self.one.as_input(there.index_select(-1, self.at).unsqueeze(-1))
        return torch.where(missing.index_select(-1, self.at).unsqueeze(-1), 0.0, seen)


def groups_of(parts: Sequence[Likelihood]) -> nn.ModuleList:
    """All columns in groups that can be computed together."""
    found: dict[Any, list[int]] = {}
    for j, part in enumerate(parts):
        found.setdefault(_key(part, j), []).append(j)
    return nn.ModuleList(Group(parts, members) for members in found.values())


def _key(part: Likelihood, place: int) -> Any:
    if type(part) not in TOGETHER or any(True for _ in part.parameters()):
        return place
    moved = Group.moved.get(type(part), ())
    return (type(part), *(repr(value) for name, value in part.arguments().items() if name not in moved))
