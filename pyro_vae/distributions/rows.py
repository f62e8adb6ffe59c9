"""The distribution of a table's row: columns of different kinds side by side, some of them missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.util import sum_rightmost


class OrMissing(constraints.Constraint):
    """Numbers that a constraint lets through entry by entry, and NaN."""

    def __init__(self, there: constraints.Constraint):
        self.there = there

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        """Whether some numbers are whole."""
        return self.there.is_discrete

    def check(self, value: torch.Tensor) -> torch.Tensor:
        """Which entries may be."""
        return self.there.check(value) | value.isnan()


Together = tuple[torch.Tensor, TorchDistribution]


class Row(TorchDistribution):
    """p(x) = Π_{j there} p_j(x_j); a missing entry, NaN, has no factor, which is the integral over it.

    Args:
        columns: one distribution per column, each of batch shape (..., *rest) and event shape (1,); or a function that
            makes them, where they are also given as `groups`.
        fillers: a number in each column's support, shape (C,); where x is missing, densities are computed there and
            left out.
        rest_dim: how many dimensions an entry has on top of the column's; 0 for a table.
        groups: the same columns, those of one kind together: places (g,), and a distribution of batch shape (..., g) and
            event shape (1,).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        columns: Sequence[TorchDistribution] | Callable[[], Sequence[TorchDistribution]],
        fillers: torch.Tensor,
        rest_dim: int = 0,
        groups: Sequence[Together] = (),
    ):
        self._columns, self.fillers, self.rest_dim, self.groups = columns, fillers, rest_dim, list(groups)
        inner = groups[0][1].batch_shape[:-1] if groups else self.columns[0].batch_shape
        batch_rank = len(inner) - rest_dim
        event_shape = torch.Size([len(fillers), *inner[batch_rank:]])
        super().__init__(inner[:batch_rank], event_shape, validate_args=False)

    @property
    def columns(self) -> list[TorchDistribution]:
        """One distribution per column."""
        if callable(self._columns):
            self._columns = list(self._columns())
        return list(self._columns)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        each = [_entries(column) for column in self.columns]
        entries = OrMissing(constraints.cat(each, dim=-self.rest_dim - 1))
        return constraints.independent(entries, self.rest_dim + 1)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Row:
        shape = torch.Size(batch_shape)
        inner = torch.Size([*shape, *self.event_shape[1:]])
        groups = [(at, d.expand(torch.Size([*shape, len(at)]))) for at, d in self.groups]
        return type(self)(lambda: [c.expand(inner) for c in self.columns], self.fillers, self.rest_dim, groups)

    def _joined(self, pick: Callable[[TorchDistribution], torch.Tensor]) -> torch.Tensor:
        pieces = [pick(column).to(self.fillers.dtype) for column in self.columns]
        return torch.cat(pieces, dim=-1).movedim(-1, -self.rest_dim - 1)

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        if not self.groups:
            return self._joined(lambda column: column.sample(torch.Size(sample_shape)))
        drawn = [d.sample(torch.Size(sample_shape))[..., 0].to(self.fillers.dtype) for _, d in self.groups]
        order = torch.cat([at for at, _ in self.groups]).argsort()
        return torch.cat(drawn, dim=-1).index_select(-1, order)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        value = value.movedim(-self.rest_dim - 1, -1)  # (..., *rest, C)
        missing = value.isnan()
        # NaN must not enter a density at all: its gradient would be NaN even where the value is left out.
        there = torch.where(missing, self.fillers, value)
        if not self.groups:
            terms = [column.log_prob(there[..., j : j + 1]) for j, column in enumerate(self.columns)]
            return sum_rightmost(torch.where(missing, 0.0, torch.stack(terms, dim=-1)), self.rest_dim + 1)
        total: Any = 0.0
        for at, d in self.groups:
            term = d.log_prob(there.index_select(-1, at).unsqueeze(-1))
            total = total + torch.where(missing.index_select(-1, at), 0.0, term).sum(-1)
        return total

    @property
    def mean(self) -> torch.Tensor:
        """Each column's mean, or its mode where it has none, as a categorical column."""
        return self._joined(_centre)

    @property
    def mode(self) -> torch.Tensor:
        return self._joined(lambda column: column.mode)

    @property
    def variance(self) -> torch.Tensor:
        return self._joined(lambda column: column.variance)


def _centre(column: TorchDistribution) -> torch.Tensor:
    try:
        mode = column.mode
    except NotImplementedError:
        return column.mean
    try:
        mean = column.mean
    except NotImplementedError:
        return mode
    return torch.where(mean.isfinite(), mean, mode)


def _entries(column: TorchDistribution) -> Any:
    """The constraint of one entry of a column."""
    support: Any = column.support
    return support.base_constraint
