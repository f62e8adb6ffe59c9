"""What is ranked under a guide: latents as columns of one table, and functions of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyro_vae.inference.importance import Layout, Values
from pyro_vae.inference.simulation import Simulated

JOINT, DENSITY = "log p(x, z)", "log q(z | x)"
PRODUCTS, TARP = "products of latents", "TARP"
MOST_PAIRS = 300  # of latents whose products are ranked; beyond it, so many at random


@dataclass(frozen=True)
class Columns:
    """All latents of a pair as columns of one table, (N, Q).

    Attributes:
        layout: how draws are laid out.
        sizes: shape of one datum's latent, by site.
        continuous: whether each column is of a continuous latent, (Q,).
        masked: sites that are left out, since a mask takes them away for some data.
    """

    layout: Layout
    sizes: dict[str, torch.Size]
    continuous: torch.Tensor
    masked: tuple[str, ...] = ()

    def data_first(self, site: str, value: torch.Tensor) -> torch.Tensor:
        """(K, ..., N, *event) to (K, N, ..., *event)."""
        event = self.layout.event_dims[site]
        return value.movedim(value.dim() - event + self.layout.plate.dim, 1)

    def flat(self, values: Values) -> torch.Tensor:
        """Values of all sites, (K, ..., N, *event) or without K, as (K, N, Q) in one dtype."""
        columns = []
        for name in self.sizes:
            rank = -self.layout.particle_dim - 1 + self.layout.event_dims[name]  # without K
            value = values[name]
            value = value.reshape((1,) * (rank + 1 - value.dim()) + tuple(value.shape))
            columns.append(
                self.data_first(name, value).flatten(2) if rank > 1 else self.data_first(name, value)[..., None]
            )
        dtype = torch.promote_types(torch.get_default_dtype(), columns[0].dtype)
        return torch.cat([column.to(dtype) for column in columns], -1)

    def rows(self, site: str, value: torch.Tensor, part: slice) -> torch.Tensor:
        """The data in `part` of one site's values, (..., N, *event)."""
        at = value.dim() - self.layout.event_dims[site] + self.layout.plate.dim
        return value.narrow(at, part.start, min(part.stop, value.shape[at]) - part.start)

    def split(self, table: torch.Tensor) -> dict[str, torch.Tensor]:
        """(..., Q) by site, each (..., *shape)."""
        parts = table.split([shape.numel() for shape in self.sizes.values()], -1)
        return {
            name: part.reshape(part.shape[:-1] + shape)
            for (name, shape), part in zip(self.sizes.items(), parts, strict=True)
        }


def columns_of(drawn: Simulated, layout: Layout) -> Columns:
    """The columns of all latents that are there for every datum."""
    sizes, continuous, masked = {}, [], []
    for name, site in drawn.latents.items():
        mask = site["mask"]
        if isinstance(mask, torch.Tensor) and not mask.all():
            masked.append(name)
            continue
        value, event = site["value"], layout.event_dims[name]
        at = value.dim() - event + layout.plate.dim
        sizes[name] = torch.Size([*value.shape[:at], *value.shape[at + 1 :]])
        discrete = bool(getattr(site["fn"].support, "is_discrete", not value.is_floating_point()))
        continuous += [not discrete] * sizes[name].numel()
    return Columns(layout, sizes, torch.tensor(continuous), tuple(masked))


def product_pairs(columns: Columns) -> torch.Tensor:
    """Pairs of continuous columns, (P, 2), at most `MOST_PAIRS`, which are then drawn at random."""
    places = columns.continuous.nonzero().flatten()
    num = len(places)
    total = num * (num - 1) // 2
    if total <= MOST_PAIRS:
        return torch.combinations(places, 2) if num > 1 else places.new_zeros(0, 2)
    first = torch.randint(num, (MOST_PAIRS,))
    second = (first + torch.randint(1, num, (MOST_PAIRS,))) % num
    return torch.stack([places[first], places[second]], 1)


def residual_products(flat: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """(z_i − m_i)(z_j − m_j) for each pair, (K, N, P) from (K, N, Q), m the mean over the K.

    With the truth among the K, the mean is a symmetric function of truth and draws, so ranks stay exactly uniform.
    """
    rest = (flat - flat.mean(0)).movedim(-1, 0).contiguous()  # (Q, K, N), whose rows are taken fast
    return (rest[pairs[:, 0]] * rest[pairs[:, 1]]).movedim(0, -1)
