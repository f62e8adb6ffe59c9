"""Discrete latents: groups of one-hot codes, hard or relaxed, laid end to end in one vector of G · C numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch.distributions import register_kl
from torch.distributions.constraints import Constraint
from typing_extensions import Self


class _Codes(Constraint):
    """Vectors of G one-hot codes of C entries each, laid end to end."""

    is_discrete = True
    event_dim = 1

    def __init__(self, categories: int):
        self.categories = categories
        super().__init__()

    def check(self, value: torch.Tensor) -> torch.Tensor:
        groups = value.unflatten(-1, (-1, self.categories))
        return (((groups == 0) | (groups == 1)).all(-1) & (groups.sum(-1) == 1)).all(-1)


class OneHotGroups(TorchDistribution):
    """p(z) = Π_g Categorical(z_g | softmax(logits_g)), z the G one-hot codes laid end to end, shape (G · C,).

    Args:
        logits: shape (*batch, G, C).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.independent(constraints.real, 2)}
    has_enumerate_support = True

    def __init__(self, logits: torch.Tensor, validate_args: bool | None = None):
        self.logits = logits - logits.logsumexp(-1, keepdim=True)
        groups, self.categories = logits.shape[-2:]
        super().__init__(logits.shape[:-2], torch.Size([groups * self.categories]), validate_args=validate_args)

    @property
    def support(self) -> Constraint:
        """One-hot codes."""
        return _Codes(self.categories)

    @property
    def probs(self) -> torch.Tensor:
        """(*batch, G, C)."""
        return self.logits.exp()

    @property
    def mean(self) -> torch.Tensor:
        """The probabilities, laid end to end."""
        return self.probs.flatten(-2)

    @property
    def mode(self) -> torch.Tensor:
        """The likeliest codes."""
        return self._one_hot(self.logits.argmax(-1))

    @property
    def variance(self) -> torch.Tensor:
        """p (1 − p) of each entry."""
        return self.mean * (1 - self.mean)

    def _one_hot(self, which: torch.Tensor) -> torch.Tensor:
        codes = torch.zeros(*which.shape, self.categories, dtype=self.logits.dtype, device=which.device)
        return codes.scatter(-1, which.unsqueeze(-1), 1.0).flatten(-2)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        """The same with another batch shape."""
        return type(self)(self.logits.expand(*batch_shape, *self.logits.shape[-2:]), validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Codes, by the largest of the logits with Gumbel noise."""
        with torch.no_grad():
            shape = torch.Size([*sample_shape, *self.logits.shape])
            noise = -torch.empty(shape, dtype=self.logits.dtype, device=self.logits.device).exponential_().log()
            return self._one_hot((self.logits + noise).argmax(-1))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return (value.unflatten(-1, (-1, self.categories)) * self.logits).sum((-2, -1))

    def enumerate_support(self, expand: bool = True) -> torch.Tensor:
        """All C^G codes, shape (C^G, *batch, G · C)."""
        groups = self.logits.shape[-2]
        categories = torch.arange(self.categories, device=self.logits.device)
        codes = self._one_hot(torch.cartesian_prod(*[categories] * groups).reshape(-1, groups))
        codes = codes.reshape(-1, *(1,) * len(self.batch_shape), *self.event_shape)
        return codes.expand(-1, *self.batch_shape, *self.event_shape) if expand else codes

    def entropy(self) -> torch.Tensor:
        """In nats."""
        return -(self.probs * self.logits).sum((-2, -1))


@register_kl(OneHotGroups, OneHotGroups)  # type: ignore[untyped-decorator]
def _kl_between_codes(p: OneHotGroups, q: OneHotGroups) -> torch.Tensor:
    return (p.probs * (p.logits - q.logits)).sum((-2, -1))


class RelaxedGroups(TorchDistribution):
    """Each code relaxed to a point in the simplex, z_g = softmax((logits_g + Gumbel noise) / temperature).

    The density of Maddison et al. 2017 (eq. 10; Jang et al. 2017), which nears the codes as the temperature falls.

    Args:
        temperature: positive scalar tensor.
        logits: shape (*batch, G, C).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.independent(constraints.real, 2)}
    support = constraints.independent(constraints.unit_interval, 1)
    has_rsample = True

    def __init__(self, temperature: torch.Tensor, logits: torch.Tensor, validate_args: bool | None = None):
        self.temperature = temperature
        self.logits = logits - logits.logsumexp(-1, keepdim=True)
        groups, self.categories = logits.shape[-2:]
        super().__init__(logits.shape[:-2], torch.Size([groups * self.categories]), validate_args=validate_args)

    @property
    def mean(self) -> torch.Tensor:
        """The probabilities of the codes that it relaxes, which its own mean nears as the temperature falls."""
        return self.logits.exp().flatten(-2)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        """The same with another batch shape."""
        logits = self.logits.expand(*batch_shape, *self.logits.shape[-2:])
        return type(self)(self.temperature, logits, validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Draws, differentiable in the logits; none is 0 in float32, so that their density stays finite."""
        shape = torch.Size([*sample_shape, *self.logits.shape])
        noise = -torch.empty(shape, dtype=self.logits.dtype, device=self.logits.device).exponential_().log()
        scores = (self.logits + noise) / self.temperature
        return self._off_zero(scores.softmax(-1)).flatten(-2)

    @staticmethod
    def _off_zero(value: torch.Tensor) -> torch.Tensor:
        return value.clamp_min(torch.finfo(value.dtype).tiny)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log density in nats on the product of simplices."""
        log_z = self._off_zero(value.unflatten(-1, (-1, self.categories))).log()
        c, t = self.categories, self.temperature
        scores = self.logits - t * log_z
        constant = torch.lgamma(torch.full_like(t, float(c))) + (c - 1) * t.log()
        density = constant + (scores - log_z).sum(-1) - c * scores.logsumexp(-1)
        return density.sum(-1)
