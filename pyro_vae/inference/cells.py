"""Missing cells of a chunk of data under p(x | z_k): draws, conditional means, class probabilities, weighted quantiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import distributions as torch_dist

from pyro_vae.distributions.rows import Row
from pyro_vae.errors import InputError
from pyro_vae.inference.importance import Layout, unfold


class CellSamples:
    """What p(x | z_k) says of the missing cells of n data, k = 1, ..., K.

    Attributes:
        fn: the distribution of the observed site.
        missing: (n, D), D the cells of one datum.
        row, cell: of each missing cell, shape (cells,): which datum, and which place in it.
        drawn: one draw of each, shape (K, cells).
    """

    def __init__(self, fn: Any, layout: Layout, num_samples: int, missing: torch.Tensor):
        self.layout, self.num_samples, self.missing = layout, num_samples, missing
        self.row, self.cell = missing.nonzero(as_tuple=True)
        self.fn = fn
        self.drawn = self.taken(fn.sample())

    def arranged(self, values: torch.Tensor, event_dim: int) -> torch.Tensor:
        """Values of the site as (K, n, D)."""
        layout = self.layout
        if layout.fold_model:
            values = unfold(values, layout, event_dim, self.num_samples)
        batch = (1,) * -layout.particle_dim
        values = values.expand(
            torch.broadcast_shapes(values.shape, (*batch, *values.shape[values.dim() - event_dim :]))
        )
        data_at = values.dim() - event_dim + layout.plate.dim
        values = values.movedim(data_at, 1) if data_at != 1 else values
        size, num_data = self.num_samples, len(self.missing)
        return values.expand(size, num_data, *values.shape[2:]).reshape(size, num_data, -1)

    def taken(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the site at the missing cells, (K, cells)."""
        return self.arranged(values, self.fn.event_dim)[:, self.missing]

    def conditional_mean(self) -> torch.Tensor:
        """E[x | z_k] of each missing cell, (K, cells); the draw where there is no finite mean."""
        row = row_of(self.fn)
        if row is None:
            try:
                mean = self.taken(self.fn.mean)
            except NotImplementedError:
                return self.drawn
            return torch.where(mean.isfinite(), mean, self.drawn)
        means = self.drawn.clone()
        for cells, place, column in self._kinds(row):
            if not len(cells) or (row.rest_dim == 0 and class_probs(column) is not None):
                continue  # the mean of a class is taken from its probabilities
            try:
                mean = self.arranged(column.mean, row.rest_dim + 1 + bool(row.groups))
            except NotImplementedError:
                continue
            mean = mean[:, self.row[cells], place]
            means[:, cells] = torch.where(mean.isfinite(), mean, self.drawn[:, cells])
        return means

    def _kinds(self, row: Row) -> Iterator[tuple[torch.Tensor, torch.Tensor, Any]]:
        """Columns, or all of one kind together: which missing cells lie there, where in a datum's part, and p(x | z_k)."""
        if row.groups:
            for at, together in row.groups:
                place = torch.full((self.missing.shape[1],), -1, device=at.device)
                place[at] = torch.arange(len(at), device=at.device)
                cells = (place[self.cell] >= 0).nonzero()[:, 0]
                yield cells, place[self.cell[cells]], together
        else:
            rest = self.missing.shape[1] // len(row.columns)
            for j, column in enumerate(row.columns):
                cells = self._cells_of(j).nonzero()[:, 0]
                yield cells, self.cell[cells] % rest, column

    def log_prob(self, truth: torch.Tensor) -> torch.Tensor:
        """log p(x | z_k) of each missing cell at its true value, (K, cells); for rows of a table.

        Args:
            truth: (n, D).
        """
        row = row_of(self.fn)
        if row is None or row.rest_dim:
            raise InputError("The observed site is no row of a table, so that its cells have no density of their own.")
        scores = torch.zeros_like(self.drawn)
        for j, column in enumerate(row.columns):
            at = self._cells_of(j).nonzero()[:, 0]
            if len(at):
                value = torch.where(truth[:, j : j + 1].isnan(), row.fillers[j], truth[:, j : j + 1])
                times = self.num_samples if self.layout.fold_model else 1
                scores[:, at] = self.arranged(column.log_prob(value.repeat(times, 1)), 0)[:, self.row[at], 0].to(
                    scores.dtype
                )
        return scores

    def _cells_of(self, column: int) -> torch.Tensor:
        """Which of the missing cells lie in a column; further dimensions of a cell lie behind it."""
        rest = self.missing.shape[1] // len(row_of(self.fn).columns)  # type: ignore[union-attr]
        return torch.div(self.cell, rest, rounding_mode="floor") == column

    def classes(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each kind of classes: their cells' places among the missing ones, and probabilities (K, cells, L)."""
        row = row_of(self.fn)
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        if row is None or row.rest_dim:
            return found
        for cells, place, column in self._kinds(row):
            probs = class_probs(column)
            if probs is not None and len(cells):
                arranged = self.arranged(probs, 2 + bool(row.groups)).unflatten(
                    -1, (-1, probs.shape[-1])
                )  # (K, n, g, L)
                found.append((cells, arranged[:, self.row[cells], place]))
        return found

    def counts(self) -> torch.Tensor:
        """Which missing cells are whole numbers, but no classes, (cells,)."""
        row = row_of(self.fn)
        whole = torch.zeros_like(self.row, dtype=torch.bool)
        for cells, _, column in self._kinds(row) if row is not None else ():
            support: Any = column.support
            whole[cells] = bool(support.is_discrete)
        return whole


def row_of(fn: Any) -> Row | None:
    """The row distribution below masks and independent dimensions, if the site is one of a table."""
    while isinstance(fn, (torch_dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn if isinstance(fn, Row) else None


def class_probs(column: Any) -> torch.Tensor | None:
    """Probabilities of the classes of a column, (..., 1, L); None for one that has no classes."""
    while isinstance(column, (torch_dist.Independent, dist.MaskedDistribution)):
        column = column.base_dist
    if isinstance(column, torch_dist.Categorical):
        return column.probs
    if isinstance(column, torch_dist.Bernoulli):
        return torch.stack([1 - column.probs, column.probs], dim=-1)
    return None


def quantiles(drawn: torch.Tensor, weights: torch.Tensor, wanted: Sequence[float]) -> dict[float, torch.Tensor]:
    """Weighted quantiles: the smallest draw up to which the weights sum to at least p.

    Args:
        drawn: (K, cells).
        weights: (K, cells), summing to 1 over K.
        wanted: probabilities p.
    """
    order = drawn.T.contiguous().sort(-1)  # (cells, K)
    reached = weights.T.gather(-1, order.indices).cumsum(-1)
    found = {}
    for p in wanted:
        at = torch.searchsorted(reached, reached.new_full((len(reached), 1), p)).clamp(max=len(drawn) - 1)
        found[p] = order.values.gather(-1, at)[:, 0]
    return found


def centres(cells: CellSamples, weights: torch.Tensor, median: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of each missing cell, and the value that fills it: the mean, a count's median, a class's mode; (cells,)."""
    mean = (cells.conditional_mean() * weights).sum(0)
    centre = torch.where(cells.counts(), median, mean)
    for at, probs in cells.classes():
        shares = (probs * weights[:, at, None]).sum(0)  # (cells, L)
        centre[at] = shares.argmax(-1).to(centre.dtype)
        mean[at] = (shares * torch.arange(shares.shape[-1], device=shares.device)).sum(-1).to(mean.dtype)
    return mean, centre
