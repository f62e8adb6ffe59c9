"""The likelihood of a table: one of any kind per column, and missing values."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import nn
from torch.nn import functional as F

from pyro_vae.distributions.rows import Row
from pyro_vae.errors import InputError, one_of
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.continuous import Normal
from pyro_vae.likelihoods.counts import Multinomial
from pyro_vae.likelihoods.together import groups_of


class Columns(Likelihood):
    """p(x | z) = Π_{j there} p_j(x_j | z), one likelihood per column of a table (Nazabal et al. 2020, section 2).

    NaN is a missing value, and has no factor in p(x | z). The encoder reads each column as its likelihood has it, 0
    where it is missing, and after all columns one more per column that is 1 where it is missing.

    Args:
        columns: likelihoods of single numbers, such as [Normal(), Categorical(3), Poisson()]; none makes every column
            Normal().
        schema: of a table, `Column.plain()` of each column: names, kinds and dtypes, by which rows become a DataFrame.
        inputs: what the encoder reads: the "vector" above, or a "set" with an element for each column that is there, its
            value beside a code of which column it is, for networks.DeepSets (Ma et al. 2019, section 3.2).
        hide: share of the cells that the encoder is not shown in training, drawn anew each time, while log p(x given z)
            keeps them: so that it learns to read rows with holes from a table that has few.
    """

    missing_allowed: bool = True

    def __init__(
        self,
        columns: Sequence[Likelihood] = (),
        schema: Sequence[Mapping[str, Any]] = (),
        inputs: Literal["vector", "set"] = "vector",
        hide: float = 0.0,
    ):
        super().__init__()
        if isinstance(hide, bool) or not 0 <= hide < 1:
            raise InputError(f"hide={hide!r} must be a share of the cells, from 0 to below 1.")
        self.hide = hide
        self.inputs = one_of("inputs", inputs, ["vector", "set"])
        for j, column in enumerate(columns):
            if not isinstance(column, Likelihood) or isinstance(column, (Columns, Multinomial)) or column.built:
                raise InputError(
                    f"columns[{j}]={column!r} must be a likelihood of single numbers that is in no model yet."
                )
        if schema and len(schema) != len(columns):
            raise InputError(f"schema describes {len(schema)} columns, but columns are {len(columns)}.")
        self.columns, self.schema = tuple(columns), tuple(map(dict, schema))

    def __repr__(self) -> str:
        if not self.schema:
            return super().__repr__()
        named = (f"{str(c['name'])!r}: {part!r}" for c, part in zip(self.schema, self.columns, strict=True))
        return f"Columns({{{', '.join(named)}}})"

    def setup(self) -> None:
        columns = self.columns or (Normal(),) * self.event_shape[0]
        if len(columns) != self.event_shape[0]:
            raise InputError(
                f"columns={list(columns)!r} are {len(columns)}, but event_shape={tuple(self.event_shape)}."
            )
        # Copies, so that the arguments stay a recipe from which further models can be built.
        self.parts = nn.ModuleList(copy.deepcopy(column).build(event_shape=torch.Size([1])) for column in columns)
        self.register_buffer("fillers", torch.tensor([part.inside() for part in self.parts]), persistent=False)
        # Entries with further dimensions are computed column by column.
        self.groups = groups_of(list(self.parts)) if self.event_rank == 1 else ()
        widths = [part.input_shape[0] for part in self.parts]
        starts = [sum(widths[:j]) for j in range(len(widths))]
        order = [starts[j] + i for group in self.groups for j in group.at.tolist() for i in range(widths[j])]
        self.register_buffer("order", torch.tensor(order, dtype=torch.long).argsort(), persistent=False)
        if self.inputs == "set" and self.event_rank != 1:
            raise InputError(f"inputs='set' wants rows of numbers, but event_shape={tuple(self.event_shape)}.")

    @property
    def widest(self) -> int:
        """How many numbers the encoder reads of one column at most."""
        return max(part.input_shape[0] for part in self.parts)

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([sum(part.params_shape[0] for part in self.parts), *self.event_shape[1:]])

    @property
    def input_shape(self) -> torch.Size:
        if self.inputs == "set":
            return torch.Size([len(self.parts), self.widest + len(self.parts)])
        return torch.Size([sum(part.input_shape[0] + 1 for part in self.parts), *self.event_shape[1:]])

    @property
    def support(self) -> constraints.Constraint:
        return constraints.cat([part.support for part in self.parts], dim=-self.event_rank)

    def refuse(self, x: torch.Tensor, index: tuple[int, ...]) -> None:
        self.parts[index[1]].refuse(x, index)

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        x = x.movedim(-self.event_rank, -1)
        missing = x.isnan()
        there = torch.where(missing, self.fillers, x)
        if self.hide and self.training:
            missing = missing | (torch.rand_like(there) < self.hide)
        if self.inputs == "set":
            each = [p.as_input(there[..., j : j + 1]) for j, p in enumerate(self.parts)]
            return self._as_set(each).masked_fill(missing.unsqueeze(-1), torch.nan)
        if self.groups:
            seen = torch.cat([group.as_input(there, missing).flatten(-2) for group in self.groups], dim=-1)
            return torch.cat([seen.index_select(-1, self.order), missing.to(self.zero.dtype)], dim=-1)
        each = [
            torch.where(missing[..., j : j + 1], 0.0, p.as_input(there[..., j : j + 1]))
            for j, p in enumerate(self.parts)
        ]
        return torch.cat([*each, missing.to(self.zero.dtype)], dim=-1).movedim(-1, -self.event_rank)

    def _as_set(self, each: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the encoder reads of each column, padded to one width, beside a one-hot code of the column."""
        padded = torch.stack([F.pad(column, (0, self.widest - column.shape[-1])) for column in each], dim=-2)
        codes = torch.eye(len(each), dtype=padded.dtype, device=padded.device)
        return torch.cat([padded, codes.expand(*padded.shape[:-1], -1)], dim=-1)

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        if self.inputs == "set":
            return self._as_set([p.pseudo_input(free[..., j, : p.input_shape[0]]) for j, p in enumerate(self.parts)])
        sizes = [part.input_shape[0] for part in self.parts]
        *columns, missing = free.movedim(-self.event_rank, -1).split([*sizes, len(sizes)], dim=-1)
        squeezed = [part.pseudo_input(column) for part, column in zip(self.parts, columns, strict=True)]
        return torch.cat([*squeezed, torch.sigmoid(missing)], dim=-1).movedim(-1, -self.event_rank)

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        """As for any likelihood; params of columns that can't say, or whose mean is NaN, are 0."""
        rows = mean.to(self.zero).movedim(0, -1).reshape(-1, len(self.parts))
        return (
            torch.stack(
                [torch.cat([_start_or_zero(p, m[None]) for p, m in zip(self.parts, row, strict=True)]) for row in rows]
            )
            .movedim(-1, 0)
            .reshape(self.params_shape)
        )

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        def columns() -> list[TorchDistribution]:
            sizes = [part.params_shape[0] for part in self.parts]
            pieces = params.movedim(-self.event_rank, -1).split(sizes, dim=-1)
            return [part(piece) for part, piece in zip(self.parts, pieces, strict=True)]

        groups = [(group.at, group.distribution(params)) for group in self.groups]
        return Row(columns if groups else columns(), self.fillers, self.event_rank - 1, groups)


def _start_or_zero(part: Likelihood, mean: torch.Tensor) -> torch.Tensor:
    params = part.start(mean) if mean.isfinite().all() else None
    return part.zero.new_zeros(part.params_shape) if params is None else params
