"""Mixtures of diagonal Gaussians whose draws are differentiable in all of their parameters, the weights too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch.nn import functional as F
from typing_extensions import Self


class DiagonalMixture(TorchDistribution):
    """q(z) = Σ_k π_k N(z | loc_k, diag scale_k²), with implicitly reparameterised draws.

    A draw z solves F_d(z_d | z_<d; θ) = u_d, d = 1 … D, with F_d the conditional distribution functions, so
    dz/dθ = −(∂F/∂z)⁻¹ ∂F/∂θ with a triangular ∂F/∂z (Graves 2016; Figurnov et al. 2018, eq. 5). Pyro's
    MixtureOfDiagNormals is another such family; its gradient in the weights was found to be off by many standard errors.

    Args:
        loc, scale: shape (*batch, K, D).
        logits: of the weights π, shape (*batch, K).
        stratified: whether a batch's draws choose components by systematic sampling: each by its own weights, and
            together nearer to these than independent draws are.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
        "logits": constraints.real_vector,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: torch.Tensor,
        scale: torch.Tensor,
        logits: torch.Tensor,
        stratified: bool = False,
        validate_args: bool | None = None,
    ):
        self.loc, self.scale, self.logits = loc, scale, logits.log_softmax(-1)
        self.stratified = stratified
        super().__init__(logits.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        """The same with another batch shape."""
        loc, scale = (t.expand(*batch_shape, *t.shape[-2:]) for t in (self.loc, self.scale))
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return type(self)(loc, scale, logits, self.stratified, validate_args=False)

    @property
    def mean(self) -> torch.Tensor:
        """Σ_k π_k loc_k."""
        return (self.logits.exp().unsqueeze(-1) * self.loc).sum(-2)

    @property
    def variance(self) -> torch.Tensor:
        """Of each coordinate."""
        second = self.scale.square() + self.loc.square()
        return (self.logits.exp().unsqueeze(-1) * second).sum(-2) - self.mean.square()

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log q in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return (self.logits + self._log_parts(value).sum(-1)).logsumexp(-1)

    def _log_parts(self, value: torch.Tensor) -> torch.Tensor:
        """log N(z_d | k), shape (..., K, D)."""
        z = (value.unsqueeze(-2) - self.loc) / self.scale
        return -0.5 * z.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)

    def _components(self, shape: torch.Size) -> torch.Tensor:
        """One component for each draw, (*shape,)."""
        edges = self.logits.exp().cumsum(-1)[..., :-1]
        u = torch.rand(shape, dtype=edges.dtype, device=edges.device)
        if self.stratified and shape.numel() > 1:
            # One u in each of as many equal parts of [0, 1], dealt out at random.
            u = (u.flatten().argsort() + torch.rand_like(u.flatten()[:1])).reshape(shape) / shape.numel()
        return (u.unsqueeze(-1) > edges).sum(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Draws without gradients."""
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            which = self._components(shape)[..., None, None].expand(*shape, 1, *self.event_shape)
            loc, scale = (t.expand(*shape, *t.shape[-2:]).gather(-2, which)[..., 0, :] for t in (self.loc, self.scale))
            return loc + scale * torch.randn_like(loc)

    def rsample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Draws, differentiable in loc, scale and logits."""
        z = self.sample(sample_shape)
        if not torch.is_grad_enabled():
            return z
        log_parts = self._log_parts(z)
        before = F.pad(log_parts.cumsum(-1)[..., :-1], (1, 0))  # log N(z_<d | k)
        weights = (self.logits.unsqueeze(-1) + before).softmax(-2)  # p(k | z_<d), (..., K, D)
        below = torch.special.ndtr((z.unsqueeze(-2) - self.loc) / self.scale)
        level = (weights * below).sum(-2)  # F_d(z_d | z_<d)
        with torch.no_grad():
            slope = -(z.unsqueeze(-2) - self.loc) / self.scale.square()  # ∂/∂z_j log N(z_j | k)
            joint = torch.einsum("...kd,...kj->...dj", weights * below, slope)
            alone = torch.einsum("...kd,...kj->...dj", weights, slope)
            jacobian = (joint - level.unsqueeze(-1) * alone).tril(-1)
            density = (weights * log_parts.exp()).sum(-2)  # ∂F_d/∂z_d
            jacobian = jacobian + torch.diag_embed(density.clamp_min(torch.finfo(z.dtype).tiny))
        change = torch.linalg.solve_triangular(jacobian, (level - level.detach()).unsqueeze(-1), upper=False)
        return z - change.squeeze(-1)
