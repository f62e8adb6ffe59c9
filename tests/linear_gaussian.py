"""Factor analysis as a pair: log p(x), the posterior and every bound are known in closed form."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from pyro_vae import Pair


class LinearGaussian:
    """z ~ N(0, I), x | z ~ N(W z + b, diag s²); float64, so that truth can be compared to ten digits."""

    def __init__(self, latent_dim: int, data_dim: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.weight, self.bias = draw(data_dim, latent_dim), draw(data_dim)
        self.noise = 0.3 + draw(data_dim).abs()
        self.latent_dim, self.data_dim = latent_dim, data_dim
        precision = torch.eye(latent_dim).double() + self.weight.T @ (self.weight / self.noise[:, None] ** 2)
        self.posterior_cov = torch.linalg.inv(precision)
        self.gain = self.posterior_cov @ (self.weight / self.noise[:, None] ** 2).T

    def data(self, size: int, seed: int = 1) -> torch.Tensor:
        """Draws from the model, (size, data_dim)."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(size, self.latent_dim, generator=generator, dtype=torch.float64)
        e = torch.randn(size, self.data_dim, generator=generator, dtype=torch.float64)
        return z @ self.weight.T + self.bias + e * self.noise

    def marginal(self) -> torch.distributions.Distribution:
        """p(x)."""
        cov = self.weight @ self.weight.T + torch.diag(self.noise**2)
        return dist.MultivariateNormal(self.bias, cov)

    def posterior(self, x: torch.Tensor) -> torch.distributions.Distribution:
        """p(z | x)."""
        return dist.MultivariateNormal((x - self.bias) @ self.gain.T, self.posterior_cov)

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_dim).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T + self.bias, self.noise).to_event(1), obs=x)

    def exact_guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    def poor_guide(self, x: torch.Tensor) -> None:
        """Mean field, off-centre and too wide."""
        exact = self.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(exact.mean + 0.2, 1.6 * self.posterior_cov.diagonal().sqrt()).to_event(1))

    def exact_pair(self) -> Pair:
        return Pair(self.model, self.exact_guide)

    def poor_pair(self) -> Pair:
        return Pair(self.model, self.poor_guide)

    def kl_of_poor_guide(self, x: torch.Tensor) -> torch.Tensor:
        """KL(q(z | x) ‖ p(z | x)) of the poor guide, (N,)."""
        exact = self.posterior(x)
        scale = torch.diag_embed(1.6 * self.posterior_cov.diagonal().sqrt())
        poor = torch.distributions.MultivariateNormal(exact.mean + 0.2, scale_tril=scale)
        return torch.distributions.kl_divergence(poor, exact)
