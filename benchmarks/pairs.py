"""Four variational autoencoders, each as a Pyro model and guide, and as the same loss written by hand in PyTorch.

The hand-written `loss` is the sampled objective of Pyro's, summed over the batch: log q(z | x) − log p(x, z) at one draw.
"""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn import functional as F

_numbers = itertools.count()


def normal_log_prob(z: torch.Tensor, loc: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """log N(z | loc, exp(log_scale)²), summed over the last dimension."""
    squares = ((z - loc) * (-log_scale).exp()).square()
    return (-0.5 * squares - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


def standard_log_prob(z: torch.Tensor) -> torch.Tensor:
    """log N(z | 0, 1), summed over the last dimension."""
    return (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(-1)


def bernoulli_log_prob(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """log p(x | logits), summed over the last dimension."""
    return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


class Heads(nn.Module):
    """Hidden layers, then a location and the logarithm of a scale."""

    def __init__(self, hidden: nn.Module, width: int, latent: int):
        super().__init__()
        self.hidden = hidden
        self.loc, self.log_scale = nn.Linear(width, latent), nn.Linear(width, latent)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.hidden(x)
        return self.loc(hidden), self.log_scale(hidden)


class Tutorial(nn.Module):
    """The VAE of Pyro's tutorial, with logits instead of probabilities; its pairs differ in their networks only.

    Args:
        encoder: Heads.
        decoder: from z to logits.
        grey: whether pixels lie between 0 and 1, as in the tutorial, which switches off their validation.
    """

    latent, event_shape = 50, (784,)

    def __init__(self, encoder: nn.Module | None = None, decoder: nn.Module | None = None, grey: bool = False):
        super().__init__()
        self.encoder = encoder or Heads(nn.Sequential(nn.Linear(784, 400), nn.Softplus()), 400, self.latent)
        self.decoder = decoder or nn.Sequential(nn.Linear(self.latent, 400), nn.Softplus(), nn.Linear(400, 784))
        self.validate = False if grey else None
        # Pyro's store is global: under one name, two instances would train the same weights.
        self.number = next(_numbers)

    def model(self, x: torch.Tensor) -> None:
        pyro.module(f"decoder {self.number}", self.decoder)
        with pyro.plate("data", x.shape[0]):
            zeros, ones = x.new_zeros(x.shape[0], self.latent), x.new_ones(x.shape[0], self.latent)
            z = pyro.sample("latent", dist.Normal(zeros, ones).to_event(1))
            likelihood = dist.Bernoulli(logits=self.decoder(z), validate_args=self.validate)
            pyro.sample("obs", likelihood.to_event(len(self.event_shape)), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.module(f"encoder {self.number}", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    def log_weights(self, x: torch.Tensor, *samples: int) -> torch.Tensor:
        """log p(x, z) − log q(z | x) at z ~ q, shape (*samples, N)."""
        loc, log_scale = self.encoder(x)
        z = loc + log_scale.exp() * torch.randn(*samples, *loc.shape, device=x.device)
        logits = self.decoder(z)
        rank = len(self.event_shape)
        terms = standard_log_prob(z) - normal_log_prob(z, loc, log_scale)
        return terms + bernoulli_log_prob(logits.flatten(-rank), x.flatten(-rank))

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        return -self.log_weights(x).sum()

    def objective(self) -> pyro.infer.ELBO:
        return pyro.infer.Trace_ELBO()


class Convolutional(Tutorial):
    """Two convolutions of stride 2 each way, 32 and 64 channels, 16 latents."""

    latent, event_shape = 16, (1, 28, 28)

    def __init__(self) -> None:
        down = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(), nn.Flatten())
        up = nn.Sequential(
            nn.Linear(self.latent, 64 * 49),
            nn.ReLU(),
            nn.Unflatten(-1, (64, 7, 7)),
            nn.ConvTranspose2d(64, 32, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, 2, 1),
        )
        super().__init__(Heads(down, 64 * 49, self.latent), up)


def tanh_layers(size: int) -> nn.Module:
    """Two layers of 200."""
    return nn.Sequential(nn.Linear(size, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())


class ImportanceWeighted(Tutorial):
    """The network of the IWAE paper with one stochastic layer, trained with K = 50 (Burda et al. 2016)."""

    particles = 50

    def __init__(self) -> None:
        encoder = Heads(tanh_layers(784), 200, self.latent)
        super().__init__(encoder, nn.Sequential(tanh_layers(self.latent), nn.Linear(200, 784)))

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        log_weights = self.log_weights(x, self.particles)
        return -(log_weights.logsumexp(0) - math.log(self.particles)).sum()

    def objective(self) -> pyro.infer.ELBO:
        return pyro.infer.RenyiELBO(alpha=0, num_particles=self.particles, vectorize_particles=True)


class Hierarchical(nn.Module):
    """Latents z_1 ... z_12 of 8 dimensions: p(z_t | z_<t) top down, q(z_t | z_<t, x) from that and features of x."""

    levels, latent, width, event_shape = 12, 8, 64, (784,)
    share = 12**-0.5  # of a level in the state: twelve of them leave it of size one

    def __init__(self) -> None:
        super().__init__()
        width, latent = self.width, self.latent
        self.features = nn.Sequential(nn.Linear(784, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.priors = nn.ModuleList(Heads(nn.Identity(), width, latent) for _ in range(self.levels))
        self.posteriors = nn.ModuleList(
            Heads(nn.Sequential(nn.Linear(2 * width, width), nn.ELU()), width, latent) for _ in range(self.levels)
        )
        self.advances = nn.ModuleList(nn.Sequential(nn.Linear(latent, width), nn.ELU()) for _ in range(self.levels))
        self.decoder = nn.Linear(width, 784)
        self.top_down = nn.ModuleList([self.priors, self.advances, self.decoder])
        self.bottom_up = nn.ModuleList([self.features, self.posteriors])
        self.number = next(_numbers)

    def model(self, x: torch.Tensor) -> None:
        pyro.module(f"top down {self.number}", self.top_down)
        with pyro.plate("data", x.shape[0]):
            state = x.new_zeros(x.shape[0], self.width)
            for level in range(self.levels):
                loc, log_scale = self.priors[level](state)
                z = pyro.sample(f"z{level}", dist.Normal(loc, log_scale.exp()).to_event(1))
                state = state + self.advances[level](z) * self.share
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(state)).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.module(f"top down {self.number}", self.top_down)
        pyro.module(f"bottom up {self.number}", self.bottom_up)
        with pyro.plate("data", x.shape[0]):
            state, features = x.new_zeros(x.shape[0], self.width), self.features(x)
            for level in range(self.levels):
                loc, log_scale = self.posteriors[level](torch.cat([state, features], -1))
                z = pyro.sample(f"z{level}", dist.Normal(loc, log_scale.exp()).to_event(1))
                state = state + self.advances[level](z) * self.share

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        state, features = x.new_zeros(x.shape[0], self.width), self.features(x)
        total = x.new_zeros(x.shape[0])
        for prior, posterior, advance in zip(self.priors, self.posteriors, self.advances, strict=True):
            loc, log_scale = posterior(torch.cat([state, features], -1))
            z = loc + log_scale.exp() * torch.randn_like(loc)
            total = total + normal_log_prob(z, loc, log_scale) - normal_log_prob(z, *prior(state))
            state = state + advance(z) * self.share
        return (total - bernoulli_log_prob(self.decoder(state), x)).sum()

    def objective(self) -> pyro.infer.ELBO:
        return pyro.infer.Trace_ELBO()
