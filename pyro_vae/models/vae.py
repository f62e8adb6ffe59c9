"""The variational autoencoder, put together from a prior, a likelihood, a guide family and two networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution

from pyro_vae.checks import InputError, positive_int
from pyro_vae.guides import Guide, MeanField
from pyro_vae.likelihoods import Bernoulli, Likelihood
from pyro_vae.models.base import ComposedPair
from pyro_vae.networks import MLP, Network, as_network
from pyro_vae.priors import Prior, StandardNormal


class VAE(ComposedPair):
    """p(x, z) = p(z) p(x | decoder(z)) with guide q(z | encoder(x)) (Kingma & Welling 2014).

    Sizes are said once, here; the components are built to them.

    Args:
        event_shape: shape of one datum, such as (784,) or (1, 28, 28).
        latent_dim: number of latent dimensions D.
        prior: p(z); StandardNormal() by default.
        likelihood: p(x | params); Bernoulli() by default.
        guide: family of q(z | params); MeanField() by default.
        encoder: network from data to the guide's params; in Python any torch.nn.Module will do; MLP([400]) by default.
        decoder: network from latents to the likelihood's params, likewise; MLP([400]) by default.

    Raises:
        InputError: if sizes are not positive, a component is of the wrong kind or built already, or a module does not
            map the shapes it should.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int = 20,
        prior: Prior | None = None,
        likelihood: Likelihood | None = None,
        guide: Guide | None = None,
        encoder: Network | None = None,
        decoder: Network | None = None,
    ):
        super().__init__(event_shape)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        latent_shape = torch.Size([latent_dim])
        likelihood = self.place(likelihood or Bernoulli(), Likelihood, "likelihood")
        posterior = self.place(guide or MeanField(), Guide, "guide")
        prior = self.place(prior or StandardNormal(), Prior, "prior")
        encoder = self.place(as_network(encoder or MLP()), Network, "encoder")
        decoder = self.place(as_network(decoder or MLP()), Network, "decoder")
        if encoder is decoder:
            raise InputError("encoder and decoder are one instance; give each place its own.")

        self.likelihood = likelihood.build(event_shape=self.event_shape)
        self.posterior = posterior.build(latent_shape=latent_shape)
        self.encoder = encoder.build(in_shape=likelihood.input_shape, out_shape=posterior.params_shape)
        self.decoder = decoder.build(in_shape=latent_shape, out_shape=likelihood.params_shape)
        self.prior = prior.build(
            latent_shape=latent_shape,
            input_shape=likelihood.input_shape,
            pseudo_input=self.likelihood.pseudo_input,
            posterior=self.encode_input,
        )

    def model(self, x: torch.Tensor) -> None:
        """p(x, z), x of shape (N, *event_shape)."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """q(z | x)."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode_input(self.likelihood.as_input(x)))

    def encode_input(self, inputs: torch.Tensor) -> TorchDistribution:
        """q(z | x) where `inputs` is what the encoder reads of x, shape (..., *input_shape)."""
        return self.posterior(self.encoder(inputs))

    def check(self, x: torch.Tensor, *further: torch.Tensor) -> None:
        if further:
            raise InputError(f"VAE takes one tensor x, but the batch holds {1 + len(further)}.")
        if x.is_floating_point() and x.dtype != (own := next(self.parameters()).dtype):
            raise InputError(
                f"x is {x.dtype}, but the VAE's parameters are {own}; convert one: x.to({own}) or vae.to({x.dtype})."
            )
        self.likelihood.check(x)

    def arguments(self) -> dict[str, Any]:
        names = ("event_shape", "latent_dim", "prior", "likelihood", "encoder", "decoder")
        return {**{name: getattr(self, name) for name in names}, "guide": self.posterior}
