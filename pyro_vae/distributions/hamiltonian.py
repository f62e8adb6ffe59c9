"""Draws carried by Hamiltonian dynamics towards where log p(x, z) is large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from typing_extensions import Self


class Leapt(TorchDistribution):
    """z_K after K leapfrog steps of (z, ρ) from z_0 ~ base, ρ_0 ~ N(0, I / β_0), with quadratic tempering.

    log q(z_K) stands for log q_0(z_0) + log N(√β_0 ρ_0 | 0, I) − log N(ρ_K | 0, I): the momentum is an auxiliary variable of
    model and guide alike, and tempering's volume cancels that of ρ_0's scale (Caterini et al. 2018, eqs. 7 to 9). So
    E[p(x, z) / q(z)] = p(x) exactly.

    Args:
        base: q_0, event shape (D,).
        log_joint: log p(x, z) for z of shape (*samples, *batch, D).
        step: length of a step in each dimension, (D,).
        start: β_0, in (0, 1].
        steps: K.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        base: TorchDistribution,
        log_joint: Callable[[torch.Tensor], torch.Tensor],
        step: torch.Tensor,
        start: torch.Tensor,
        steps: int,
    ):
        self.base, self.log_joint, self.step, self.start, self.steps = base, log_joint, step, start, steps
        self._drawn: tuple[torch.Tensor, torch.Tensor] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        """The same with another batch shape."""
        return type(self)(self.base.expand(torch.Size(batch_shape)), self.log_joint, self.step, self.start, self.steps)

    @property
    def mean(self) -> torch.Tensor:
        """Not known."""
        raise NotImplementedError("A Hamiltonian guide has no mean in closed form; average its draws.")

    def rsample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Draws; their densities are kept for `log_prob`."""
        z = self.base.rsample(torch.Size(sample_shape))
        noise = torch.randn_like(z)
        log_q = self.base.log_prob(z) + _log_normal(noise)
        root = self.start.sqrt()
        rho = noise / root
        slope = self._slope(z)
        for k in range(1, self.steps + 1):
            rho = rho + self.step / 2 * slope
            z = z + self.step * rho
            slope = self._slope(z)
            rho = rho + self.step / 2 * slope
            after = 1 / ((1 - 1 / self.start.sqrt()) * (k / self.steps) ** 2 + 1 / self.start.sqrt())  # √β_k
            rho, root = rho * root / after, after
        self._drawn = (z, log_q - _log_normal(rho))
        return z

    def _slope(self, z: torch.Tensor) -> torch.Tensor:
        """∂/∂z log p(x, z)."""
        through = torch.is_grad_enabled()
        with torch.enable_grad():
            z = z if through and z.requires_grad else z.detach().requires_grad_()
            return torch.autograd.grad(self.log_joint(z).sum(), z, create_graph=through)[0]

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Draws without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log q of its latest draws, in nats, with the momentum in it.

        Raises:
            NotImplementedError: for other values.
        """
        if self._drawn is None or value is not self._drawn[0]:
            raise NotImplementedError("A Hamiltonian guide knows the density of its latest draws alone.")
        return self._drawn[1]


def _log_normal(value: torch.Tensor) -> torch.Tensor:
    return dist.Normal(torch.zeros_like(value), 1.0).log_prob(value).sum(-1)
