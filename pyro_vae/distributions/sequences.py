"""p(z) = Π_t p(z_t | z_<t) over the entries of a vector, by a masked network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import nn
from torch.nn import functional as F
from typing_extensions import Self

from pyro_vae.distributions.flows import zuko

MIN_SCALE = 1e-3  # keeps a component from collapsing on a point, in latent units


class Sequential(TorchDistribution):
    """Each entry a mixture of Gaussians whose weights, means and scales a masked network says from the entries before.

    Densities take one pass of the network, draws one per entry.

    Args:
        network: from (z, y) to 3 · components numbers for each entry; see `Sequential.network`.
        zero: zeros of shape (*batch, D).
        components: of each entry's mixture.
        context: y, shape (*batch, C), or None.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(self, network: nn.Module, zero: torch.Tensor, components: int, context: torch.Tensor | None = None):
        self.network, self.zero, self.components, self.given = network, zero, components, context
        super().__init__(zero.shape[:-1], zero.shape[-1:], validate_args=False)

    @staticmethod
    def network(size: int, context: int, components: int, hidden: Sequence[int]) -> nn.Module:
        """A masked network whose outputs for entry t see the entries before t and all of y (MADE)."""
        before = torch.ones(size, size).tril(-1).bool()
        sees = torch.cat([before, torch.ones(size, context).bool()], dim=1)
        return zuko().nn.MaskedMLP(
            sees.repeat_interleave(3 * components, dim=0), hidden_features=tuple(hidden), activation=nn.ELU
        )

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        """The same with another batch shape."""
        batch = torch.Size(batch_shape)
        given = None if self.given is None else self.given.expand(*batch, self.given.shape[-1])
        return type(self)(self.network, self.zero.expand(*batch, *self.event_shape), self.components, given)

    def conditionals(self, value: torch.Tensor) -> TorchDistribution:
        """p(z_t | z_<t) for all t, batch shape (..., D)."""
        inputs = value
        if self.given is not None:
            inputs = torch.cat([value, self.given.expand(*value.shape[:-1], self.given.shape[-1])], dim=-1)
        logits, loc, raw = self.network(inputs).unflatten(-1, (-1, 3, self.components)).unbind(-2)
        # Components start apart, or they would stay alike; together they start as about a standard normal.
        start = torch.linspace(-1, 1, self.components, dtype=loc.dtype, device=loc.device) * (self.components > 1)
        parts = dist.Normal(loc + start, F.softplus(raw + 0.5) + MIN_SCALE)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p in nats."""
        shape = torch.broadcast_shapes(value.shape, self.zero.shape)
        return self.conditionals(value.expand(shape)).log_prob(value.expand(shape)).sum(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Draws, entry by entry."""
        with torch.no_grad():
            value = self.zero.expand(self._extended_shape(torch.Size(sample_shape)))
            for t in range(self.event_shape[0]):
                drawn = self.conditionals(value).sample()
                value = torch.cat([value[..., :t], drawn[..., t : t + 1], value[..., t + 1 :]], dim=-1)
            return value
