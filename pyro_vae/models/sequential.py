"""Sequences: the deep Markov model and the variational recurrent network, and futures drawn from either.

A batch is x (N, T, *step_shape), sequences padded at their ends to the longest, and `lengths` (N,). Each step has a
latent site z_t and an observed one x_t, t = 1 ... T; the steps beyond a sequence's length are masked, and what x
holds there is not looked at.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import nn

from pyro_vae.checks import InputError, check_lengths, positive_int
from pyro_vae.guides import Guide, MeanField, normal
from pyro_vae.layers import side_by_side
from pyro_vae.likelihoods import Bernoulli, Likelihood
from pyro_vae.models.base import ComposedPair
from pyro_vae.models.transitions import Gated, Transition
from pyro_vae.networks import MLP, Network, as_network
from pyro_vae.pair import as_pair, device_of, evaluating, kept_random_state, sample_sites


class SequentialPair(ComposedPair, ABC):
    """What pairs over sequences share: their steps, the check of their data, and sequences made of their sites.

    Args:
        event_shape: (T, *step_shape), T the length of the longest sequence; batches may have any number of steps.
        latent_dim: number of latent dimensions D of each step.
        likelihood: p(x_t | params) of one step; Bernoulli() by default.
        guide: family of each step's q; MeanField() by default.
        emission: network to the likelihood's params; MLP([100, 100], "ReLU") by default.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int,
        likelihood: Likelihood | None,
        guide: Guide | None,
        emission: Network | None,
    ):
        super().__init__(event_shape)
        if len(self.event_shape) < 2:
            raise InputError(
                f"event_shape={tuple(self.event_shape)} must be (T, *step_shape): steps of one number have "
                f"event_shape=({self.event_shape[0]}, 1)."
            )
        self.step_shape = self.event_shape[1:]
        self.latent_dim = positive_int("latent_dim", latent_dim)
        latent_shape = torch.Size([self.latent_dim])
        self.likelihood = self.place(likelihood or Bernoulli(), Likelihood, "likelihood").build(
            event_shape=self.step_shape
        )
        posterior = self.place(guide or MeanField(), Guide, "guide")
        refuse_for_steps(posterior)
        self.posterior = posterior.build(latent_shape=latent_shape)
        self.emission = self.place(as_network(emission or MLP([100, 100], "ReLU")), Network, "emission")

    def build_emission(self, in_size: int) -> None:
        """Builds the emission to read `in_size` numbers."""
        likelihood = self.likelihood
        self.emission.build(
            in_shape=torch.Size([in_size]),
            out_shape=likelihood.params_shape,
            event_shape=likelihood.event_shape,
            input_shape=likelihood.input_shape,
        )

    @abstractmethod
    def model(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> None:
        """p(x, z), x of shape (N, T, *step_shape), lengths of shape (N,)."""

    @abstractmethod
    def guide(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> None:
        """q(z | x)."""

    def steps(
        self, x: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """t, x_t and which sequences reach step t, (N,), for t = 1 ... T.

        Beyond a sequence's end its first step stands in for x_t, a value that the likelihood allows.
        """
        if lengths is None:
            lengths = x.new_full(x.shape[:1], x.shape[1], dtype=torch.long)
        for t, x_t in enumerate(x.unbind(1), 1):
            there = lengths >= t
            yield t, x_t.where(there.reshape(-1, *(1,) * len(self.step_shape)), x[:, 0]), there

    def read(self, x_t: torch.Tensor) -> torch.Tensor:
        """What networks read of x_t (..., *step_shape), as vectors (..., F)."""
        inputs = self.likelihood.as_input(x_t)
        return inputs.flatten(inputs.dim() - len(self.likelihood.input_shape))

    def start_at(self, mean: torch.Tensor) -> bool:
        """Sets the emission's output biases so that each step starts at the data's mean, if both can say how.

        Args:
            mean: of the data, shape (T, *step_shape); NaN where no sequence reaches a step.
        """
        bias = self.likelihood.start(mean.nanmean(0))
        return bias is not None and self.emission.start_output(bias)

    def joined_outputs(
        self, outputs: dict[str, torch.Tensor], x: torch.Tensor | None = None, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Values at the sites x_1, ..., x_T as sequences (N, T, *step_shape), zero beyond their lengths."""
        values = torch.stack([outputs[f"x_{t}"] for t in range(1, len(outputs) + 1)], dim=1)
        return values if lengths is None else self.ended(values, lengths)

    def ended(self, x: torch.Tensor, lengths: torch.Tensor, beyond: float = 0.0) -> torch.Tensor:
        """x (N, T, *step_shape) with one value at all steps beyond each sequence's length, (N,)."""
        there = torch.arange(1, x.shape[1] + 1, device=lengths.device) <= lengths.unsqueeze(-1)
        return x.where(there.reshape(*there.shape, *(1,) * len(self.step_shape)), torch.full_like(x, beyond))

    def check(self, x: torch.Tensor, *further: torch.Tensor) -> None:
        if len(further) > 1:
            raise InputError(
                f"{type(self).__name__} takes x and lengths, but the batch holds {1 + len(further)} tensors."
            )
        own = next(self.parameters()).dtype
        if x.is_floating_point() and x.dtype != own:
            raise InputError(f"x is {x.dtype}, but the model's parameters are {own}; convert one: x.to({own}).")
        if x.dim() < 2 or x.shape[2:] != self.step_shape:
            raise InputError(
                f"x has shape {tuple(x.shape)}, but event_shape={tuple(self.event_shape)} "
                f"wants (N, T, {', '.join(map(str, self.step_shape))})."
            )
        if further:
            check_lengths(*further, x.shape[0], x.shape[1])
        for t, x_t, _ in self.steps(x, *further):
            try:
                self.likelihood.check(x_t)
            except InputError as error:
                raise InputError(f"In step {t} of T={x.shape[1]}, x[:, {t - 1}]: {error}") from None


def refuse_for_steps(guide: Guide) -> None:
    """Refuses guide families that can't be a step's q(z_t | z_{t−1}, x).

    Raises:
        InputError: if its latents are not real numbers, or it looks at the model or at its own draws alone.
    """
    if guide.space != "real":
        raise InputError(f"guide={guide!r} does not cover all of R^D, where z_t lives; use guides.MeanField().")
    if not guide.amortized or not guide.evaluable or type(guide).refine is not Guide.refine:
        raise InputError(
            f"guide={guide!r} has no density of its own at any z_t given params; use guides.MeanField(), "
            "guides.FullCovariance() or guides.InverseAutoregressive()."
        )


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
        self.combiner = Combiner(self.latent_dim, self.hidden, self.posterior.params_shape)

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
                    z = pyro.sample(f"z_{t}", self.posterior(self.combiner(z, h[t])))

    def backwards(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> dict[int, torch.Tensor]:
        """h_t of x_{t:T}, each (N, hidden), by t: the network's state stays at its start until a sequence's own end."""
        states, h = {}, self.cell.start
        for t, x_t, there in reversed(list(self.steps(x, lengths))):
            h = states[t] = self.cell(h, self.read(x_t)).where(there.unsqueeze(-1), h)
        return states

    def arguments(self) -> dict[str, Any]:
        names = ("event_shape", "latent_dim", "transition", "likelihood", "emission", "hidden")
        return {**{name: getattr(self, name) for name in names}, "guide": self.posterior}


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
            ("encoder", encoder, [100, 100], both, self.posterior.params_shape),
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
                    z = pyro.sample(f"z_{t}", self.posterior(self.encoder(seen)))
                h = self.advanced(h, x_t, z)

    def advanced(self, h: torch.Tensor, x_t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """h_t = GRU(h_{t−1}, φ_x(x_t), φ_z(z_t)), (..., hidden)."""
        return self.cell(h, self.features_of_x(self.likelihood.as_input(x_t)), self.features_of_z(z))

    def arguments(self) -> dict[str, Any]:
        first = ("event_shape", "latent_dim", "hidden", "likelihood", "emission", "encoder", "prior")
        names = (*first, "features_of_x", "features_of_z")
        return {**{name: getattr(self, name) for name in names}, "guide": self.posterior}


# --- networks of the steps --------------------------------------------------------------------------------------------


class Cell(nn.Module):
    """h_t = GRU(h_{t−1}, inputs) with a learned h_0, `start`, over any leading dimensions."""

    def __init__(self, size: int, hidden: int):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(hidden))
        self.gru = nn.GRUCell(size, hidden)

    def forward(self, h: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        leading = torch.broadcast_shapes(h.shape[:-1], *(part.shape[:-1] for part in inputs))
        flat = [t.expand(*leading, t.shape[-1]).reshape(-1, t.shape[-1]) for t in (side_by_side(*inputs), h)]
        return self.gru(*flat).reshape(*leading, -1)


class Combiner(nn.Module):
    """The params of q(z_t | z_{t−1}, x_{t:T}), linear in ½ (tanh(W z_{t−1} + b) + h_t) (Krishnan et al. 2017, "DKS")."""

    def __init__(self, latent_dim: int, hidden: int, params_shape: torch.Size):
        super().__init__()
        self.before = nn.Linear(latent_dim, hidden)
        self.params = nn.Linear(hidden, params_shape.numel())
        self.params_shape = params_shape

    def forward(self, z: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return self.params(0.5 * (torch.tanh(self.before(z)) + h)).unflatten(-1, self.params_shape)


# --- futures ----------------------------------------------------------------------------------------------------------


def forecast(
    pair: Any,
    x: torch.Tensor,
    steps: int,
    lengths: torch.Tensor | None = None,
    num_samples: int = 1,
    *,
    seed: int | None = None,
) -> torch.Tensor:
    """Draws from p(x_{L+1:L+steps} | x_{1:L}), each sequence going on from its own end L.

    z_{1:L} ~ q(z | x_{1:L}), so the draws are exact where q is the posterior; the model goes on from there.

    Args:
        pair: model and guide of x and lengths, with sites called z_t and x_t, t = 1 ... T, as those of the classes here.
        x: the sequences' beginnings, (N, T, *step_shape), padded at their ends.
        steps: how many steps to go on.
        lengths: (N,) whole numbers from 1 to T; by default all are T.
        num_samples: futures of each sequence.
        seed: makes the draws repeatable without touching torch's random state; None draws from that state.

    Returns:
        shape (num_samples, N, steps, *step_shape).
    """
    pair = as_pair(pair)
    positive_int("steps", steps)
    positive_int("num_samples", num_samples)
    x = x.to(device_of(pair, x.device))
    lengths = x.new_full(x.shape[:1], x.shape[1], dtype=torch.long) if lengths is None else lengths.to(x.device).long()
    check_lengths(lengths, *x.shape[:2])
    if hasattr(pair, "check"):
        pair.check(x, lengths)
    many, ends = x.repeat(num_samples, *(1,) * (x.dim() - 1)), lengths.repeat(num_samples)
    longer = torch.cat([many, torch.zeros_like(many[:, :1]).repeat_interleave(steps, 1)], dim=1)
    state = contextlib.nullcontext() if seed is None else kept_random_state(x.device, seed)
    with evaluating(pair), state:
        latents = sample_sites(poutine.trace(pair.guide).get_trace(many, ends), observed=False)
        past = {name: site["value"] for name, site in latents.items()}
        past |= {f"x_{t}": x_t for t, x_t in enumerate(many.unbind(1), 1)}
        with poutine.trace() as trace, Continued(past, ends):
            poutine.uncondition(pair.model)(longer, ends + steps)
    whole = torch.stack([trace.trace.nodes[f"x_{t}"]["value"] for t in range(1, longer.shape[1] + 1)], dim=1)
    rows = torch.arange(len(ends), device=x.device).unsqueeze(-1)
    future = whole[rows, ends.unsqueeze(-1) + torch.arange(steps, device=x.device)]
    return future.unflatten(0, (num_samples, -1))


class Continued(Messenger):
    """Holds the sites NAME_t at given values in the sequences that reach step t, and draws them in the others.

    Args:
        past: values (N, ...) by site.
        lengths: (N,).
    """

    def __init__(self, past: dict[str, torch.Tensor], lengths: torch.Tensor):
        super().__init__()
        self.past, self.lengths = past, lengths

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.past:
            there = self.lengths >= int(msg["name"].rpartition("_")[2])
            there = there.reshape(-1, *(1,) * msg["fn"].event_dim)
            msg["value"] = self.past[msg["name"]].where(there, msg["fn"]())
            msg["done"] = True
