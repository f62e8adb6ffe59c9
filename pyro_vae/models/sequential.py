"""Sequences: the deep Markov model and the variational recurrent network.

A batch is x (N, T, *step_shape), sequences padded at their ends to the longest, and `lengths` (N,). Each step has a
latent site z_t and an observed one x_t, t = 1 ... T; the steps beyond a sequence's length are masked, and what x
holds there is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch
from pyro import poutine
from torch import nn

from pyro_vae.errors import positive_int
from pyro_vae.guides import Guide, normal
from pyro_vae.likelihoods import Likelihood
from pyro_vae.models.forecasts import forecast
from pyro_vae.models.steps import Cell, Combiner, SequentialPair
from pyro_vae.models.transitions import Gated, Transition
from pyro_vae.networks import MLP, Network, as_network
from pyro_vae.networks.layers import side_by_side

__all__ = ["DeepMarkovModel", "SequentialPair", "VariationalRNN", "forecast"]


class DeepMarkovModel(SequentialPair):
    """p(x, z) = Π_t p(z_t | z_{t−1}) p(x_t | z_t), guide Π_t q(z_t | z_{t−1}, x_{t:T}) (Krishnan et al. 2017).

    The guide is the paper's DKS ("Structured Inference Networks"): a recurrent network reads each sequence from its own
    end back to step t, and ½ (tanh(W z_{t−1} + b) + h_t) goes linearly into the params of q. InverseAutoregressive as
    `guide` puts flows on q, as Pyro's tutorial does; unlike there, a flow's context also sees h_t.

    Args:
        event_shape: (T, *step_shape), T the length of the longest sequence; batches may have any number of steps.
        latent_dim: number of latent dimensions D of each step.
        transition: p(z_t | z_{t−1}), from a learned z_0; transitions.Gated() by default.
        likelihood: p(x_t | params) of one step; Bernoulli() by default.
        guide: family of q(z_t | z_{t−1}, x_{t:T}); MeanField() by default.
        emission: network from z_t to the likelihood's params; MLP([100, 100], "ReLU") by default.
        hidden: width of the state h_t of the guide's recurrent network, a GRU.

    Raises:
        InputError: if sizes are not positive, or a component is of the wrong kind, built already, or can't be a step's.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int = 20,
        transition: Transition | None = None,
        likelihood: Likelihood | None = None,
        guide: Guide | None = None,
        emission: Network | None = None,
        hidden: int = 100,
    ):
        super().__init__(event_shape, latent_dim, likelihood, guide, emission)
        self.hidden = positive_int("hidden", hidden)
        self.transition = self.place(transition or Gated(), Transition, "transition").build(
            latent_shape=torch.Size([self.latent_dim])
        )
        self.build_emission(self.latent_dim)
        self.z_0 = nn.Parameter(torch.zeros(self.latent_dim))
        self.z_q_0 = nn.Parameter(torch.zeros(self.latent_dim))
        self.cell = Cell(self.likelihood.input_shape.numel(), self.hidden)
        self.combiner = Combiner(self.latent_dim, self.hidden, self.guide_family.params_shape)

    def model(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> None:
        """p(x, z), x of shape (N, T, *step_shape), lengths of shape (N,); without them all reach step T."""
        pyro.module(self.name, self)
        z = self.z_0
        with pyro.plate("data", len(x), dim=-1):
            for t, x_t, there in pyro.markov(self.steps(x, lengths)):
                with poutine.mask(mask=there):
                    z = pyro.sample(f"z_{t}", self.transition(z))
                    pyro.sample(f"x_{t}", self.emission.distribution(z, self.likelihood), obs=x_t)

    def guide(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> None:
        """q(z | x) = Π_t q(z_t | z_{t−1}, x_{t:T})."""
        pyro.module(self.name, self)
        h = self.backwards(x, lengths)
        z = self.z_q_0
        with pyro.plate("data", len(x), dim=-1):
            for t, _, there in pyro.markov(self.steps(x, lengths)):
                with poutine.mask(mask=there):
                    z = pyro.sample(f"z_{t}", self.guide_family(self.combiner(z, h[t])))

    def backwards(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> dict[int, torch.Tensor]:
        """h_t of x_{t:T}, each (N, hidden), by t: the network's state stays at its start until a sequence's own end."""
        states, h = {}, self.cell.start
        for t, x_t, there in reversed(list(self.steps(x, lengths))):
            h = states[t] = self.cell(h, self.read(x_t)).where(there.unsqueeze(-1), h)
        return states


class VariationalRNN(SequentialPair):
    """p(x, z) = Π_t p(z_t | h_{t−1}) p(x_t | z_t, h_{t−1}), guide Π_t q(z_t | x_t, h_{t−1}), in both of which
    h_t = GRU(h_{t−1}, φ_x(x_t), φ_z(z_t)) (Chung et al. 2015, eqs. 5 to 9).

    Each step depends on all before it, x_{<t} included; data that are drawn are fed back.

    Args:
        event_shape: (T, *step_shape), T the length of the longest sequence; batches may have any number of steps.
        latent_dim: number of latent dimensions D of each step.
        hidden: width of the state h_t.
        likelihood: p(x_t | params) of one step; Bernoulli() by default.
        guide: family of q(z_t | x_t, h_{t−1}); MeanField() by default.
        emission: network from φ_z(z_t) and h_{t−1}, side by side, to the likelihood's params; MLP([100, 100], "ReLU")
            by default.
        encoder: network from φ_x(x_t) and h_{t−1}, side by side, to the guide's params; likewise.
        prior: network from h_{t−1} to the params of p(z_t | h_{t−1}), a diagonal Normal; MLP([100], "ReLU") by default.
        features_of_x, features_of_z: the networks φ_x and φ_z, to `hidden` numbers each; MLP([100], "ReLU") by default.

    Raises:
        InputError: if sizes are not positive, or a component is of the wrong kind, built already, or can't be a step's.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int = 20,
        hidden: int = 100,
        likelihood: Likelihood | None = None,
        guide: Guide | None = None,
        emission: Network | None = None,
        encoder: Network | None = None,
        prior: Network | None = None,
        features_of_x: Network | None = None,
        features_of_z: Network | None = None,
    ):
        super().__init__(event_shape, latent_dim, likelihood, guide, emission)
        self.hidden = positive_int("hidden", hidden)
        self.build_emission(2 * self.hidden)
        z, h, both = (torch.Size([size]) for size in (self.latent_dim, self.hidden, 2 * self.hidden))
        for name, given, width, in_shape, out_shape in (
            ("encoder", encoder, [100, 100], both, self.guide_family.params_shape),
            ("prior", prior, [100], h, torch.Size([2 * self.latent_dim])),
            ("features_of_x", features_of_x, [100], self.likelihood.input_shape, h),
            ("features_of_z", features_of_z, [100], z, h),
        ):
            network = self.place(as_network(given or MLP(width, "ReLU")), Network, name)
            setattr(self, name, network.build(in_shape=in_shape, out_shape=out_shape))
        self.cell = Cell(2 * self.hidden, self.hidden)

    def model(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> None:
        """p(x, z), x of shape (N, T, *step_shape), lengths of shape (N,); without them all reach step T."""
        pyro.module(self.name, self)
        h = self.cell.start
        with pyro.plate("data", len(x), dim=-1):
            for t, x_t, there in self.steps(x, lengths):
                with poutine.mask(mask=there):
                    z = pyro.sample(f"z_{t}", normal(self.prior(h)).to_event(1))
                    seen = side_by_side(self.features_of_z(z), h)
                    x_t = pyro.sample(f"x_{t}", self.emission.distribution(seen, self.likelihood), obs=x_t)
                h = self.advanced(h, x_t, z)

    def guide(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> None:
        """q(z | x) = Π_t q(z_t | x_t, h_{t−1})."""
        pyro.module(self.name, self)
        h = self.cell.start
        with pyro.plate("data", len(x), dim=-1):
            for t, x_t, there in self.steps(x, lengths):
                seen = side_by_side(self.features_of_x(self.likelihood.as_input(x_t)), h)
                with poutine.mask(mask=there):
                    z = pyro.sample(f"z_{t}", self.guide_family(self.encoder(seen)))
                h = self.advanced(h, x_t, z)

    def advanced(self, h: torch.Tensor, x_t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """h_t = GRU(h_{t−1}, φ_x(x_t), φ_z(z_t)), (..., hidden)."""
        return self.cell(h, self.features_of_x(self.likelihood.as_input(x_t)), self.features_of_z(z))
