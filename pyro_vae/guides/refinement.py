"""Variational parameters bettered for each datum by gradient steps on its own bound."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import TorchDistribution


def refined(
    family: Callable[[torch.Tensor], TorchDistribution],
    params: torch.Tensor,
    log_joint: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    lr: float,
    *,
    through: bool = False,
    adam: bool = False,
) -> torch.Tensor:
    """The params after steps up log p(x, z) − log q(z), z one fresh draw at each step and datum.

    Data do not touch each other, so one gradient of the sum over the batch is each datum's own.

    Args:
        family: from params to q.
        params: where to start, (..., *params_shape).
        log_joint: log p(x, z), for the params' own x.
        steps: how many.
        lr: their length.
        through: whether to keep the steps differentiable.
        adam: take Adam's steps rather than plain ones; not with `through`.
    """
    first = second = torch.zeros_like(params)
    for step in range(1, steps + 1):
        with torch.enable_grad():
            at = params if through and params.requires_grad else params.detach().requires_grad_()
            q = family(at)
            z = q.rsample()
            bound = (log_joint(z) - q.log_prob(z)).sum()
            (slope,) = torch.autograd.grad(bound, at, create_graph=through)
        if adam:
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope.square()
            slope = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        params = params + lr * slope
    return params if through else params.detach()
