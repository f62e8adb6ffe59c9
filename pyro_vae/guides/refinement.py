"""Variational parameters bettered for each datum by gradient steps on its own bound."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pyro.distributions import TorchDistribution

from pyro_vae.pair import kept_random_state


def refined(
    family: Callable[[torch.Tensor], TorchDistribution],
    params: torch.Tensor,
    log_joint: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    lr: float,
    *,
    through: bool = False,
    adam: bool = False,
    num_samples: int = 1,
) -> torch.Tensor:
    """The params after steps up log p(x, z) − log q(z), z fresh draws at each step and datum.

    Data do not touch each other, so one gradient of the sum over the batch is each datum's own.

    Args:
        family: from params to q.
        params: where to start, (..., *params_shape).
        log_joint: log p(x, z), for the params' own x.
        steps: how many.
        lr: their length.
        through: whether to keep the steps differentiable.
        adam: take Adam's steps rather than plain ones, their length falling to a hundredth by a cosine; not with `through`.
        num_samples: draws at each step.
    """
    first = second = torch.zeros_like(params)
    for step in range(1, steps + 1):
        with torch.enable_grad():
            at = params if through and params.requires_grad else params.detach().requires_grad_()
            q = family(at)
            z = q.rsample() if num_samples == 1 else q.rsample(torch.Size([num_samples]))
            bound = (log_joint(z) - q.log_prob(z)).sum() / num_samples
            (slope,) = torch.autograd.grad(bound, at, create_graph=through)
        if adam:
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope.square()
            slope = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            slope = slope * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
        params = params + lr * slope
    return params if through else params.detach()


def better_of(
    family: Callable[[torch.Tensor], TorchDistribution],
    start: torch.Tensor,
    found: torch.Tensor,
    log_joint: Callable[[torch.Tensor], torch.Tensor],
    num_samples: int = 64,
) -> torch.Tensor:
    """For each datum the params with the higher bound, by draws that share their noise; random state is left as it was.

    Args:
        family: from params to q.
        start, found: (..., *params_shape).
        log_joint: log p(x, z), for the params' own x.
        num_samples: draws of each.
    """

    def bound(params: torch.Tensor) -> torch.Tensor:
        q = family(params)
        with kept_random_state(params.device, 0):
            z = q.rsample(torch.Size([num_samples]))
        return (log_joint(z) - q.log_prob(z)).mean(0)

    with torch.no_grad():
        better = bound(found) > bound(start)
    return torch.where(better.reshape(*better.shape, *(1,) * (start.dim() - better.dim())), found, start)
