"""What pairs over sequences share: steps, masks, checks of their data, and the networks of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from pyro_vae.distributions.spaces import Reals, as_space
from pyro_vae.errors import InputError, check_lengths, positive_int
from pyro_vae.guides import Guide, MeanField
from pyro_vae.likelihoods import Bernoulli, Likelihood
from pyro_vae.models.base import ComposedPair
from pyro_vae.networks import MLP, Network, as_network
from pyro_vae.networks.layers import side_by_side


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
        family = self.place(guide or MeanField(), Guide, "guide")
        refuse_for_steps(family)
        self.guide_family = family.build(latent_shape=latent_shape)
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
            check_lengths(further[0], x.shape[0], x.shape[1])
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
    if as_space(guide.space) != Reals():
        raise InputError(f"guide={guide!r} does not cover all of R^D, where z_t lives; use guides.MeanField().")
    if not guide.amortized or not guide.evaluable or type(guide).refine is not Guide.refine:
        raise InputError(
            f"guide={guide!r} has no density of its own at any z_t given params; use guides.MeanField(), "
            "guides.FullCovariance() or guides.InverseAutoregressive()."
        )


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
