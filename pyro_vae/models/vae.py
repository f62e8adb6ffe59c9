"""The variational autoencoder, put together from a prior, a likelihood, a guide family and two networks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution

from pyro_vae.checks import InputError, one_of, positive_int
from pyro_vae.guides import Guide, MeanField
from pyro_vae.likelihoods import Bernoulli, Likelihood
from pyro_vae.models.base import ComposedPair
from pyro_vae.networks import MLP, Network, as_network
from pyro_vae.priors import Prior, StandardNormal, Vamp


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
        likelihood = self.place(likelihood or Bernoulli(), Likelihood, "likelihood")
        posterior = self.place(guide or MeanField(), Guide, "guide")
        prior = self.place(prior or StandardNormal(), Prior, "prior")
        decoder = self.place(as_network(decoder or MLP()), Network, "decoder")
        if posterior.amortized:
            encoder = self.place(as_network(encoder or MLP()), Network, "encoder")
        elif encoder is not None:
            raise InputError(
                f"encoder={encoder!r} has nothing to do: guide={posterior!r} seeks its params for each datum."
            )
        if encoder is decoder:
            raise InputError("encoder and decoder are one instance; give each place its own.")
        self._assemble(prior, likelihood, posterior, encoder, decoder)

    def _assemble(
        self, prior: Prior, likelihood: Likelihood, guide: Guide, encoder: Network | None, decoder: Network
    ) -> None:
        """Builds what is not built yet to the sizes that all agree on."""
        refuse_strangers(prior, guide)
        latent_shape = torch.Size([self.latent_dim])
        self.likelihood = _built(likelihood, event_shape=self.event_shape)
        self.posterior = _built(guide, latent_shape=latent_shape)
        self.encoder = None
        if guide.amortized:
            sizes = {"in_shape": likelihood.input_shape, "out_shape": guide.params_shape}
            self.encoder = _built(encoder, "encoder", **sizes)
        self.decoder = _built(
            decoder,
            "decoder",
            in_shape=latent_shape,
            out_shape=likelihood.params_shape,
            event_shape=likelihood.event_shape,
            input_shape=likelihood.input_shape,
        )
        if prior.built:  # one that is shared keeps its parameters, and looks through this VAE's guide
            prior = copy.copy(prior)
        self.prior = _built(
            prior,
            latent_shape=latent_shape,
            input_shape=likelihood.input_shape,
            pseudo_input=self.likelihood.pseudo_input,
            posterior=self.encode_input,
            relaxation=self.posterior.relaxation,
        )

    def model(self, x: torch.Tensor) -> None:
        """p(x, z), x of shape (N, *event_shape)."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder.distribution(z, self.likelihood), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """q(z | x)."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(x), dim=-1):
            params = self.params_of(self.likelihood.as_input(x))
            pyro.sample("z", self.posterior.refine(params, functools.partial(self.log_joint, x)))

    def params_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the encoder says of what it reads, (..., *params_shape); zeros where no encoder is wanted."""
        if self.encoder is not None:
            return self.encoder(inputs)
        leading = inputs.shape[: inputs.dim() - len(self.likelihood.input_shape)]
        return inputs.new_zeros(*leading, *self.posterior.params_shape, dtype=self.posterior.zero.dtype)

    def encode_input(self, inputs: torch.Tensor) -> TorchDistribution:
        """q(z | x) as the encoder alone sets it; `inputs` is what it reads of x, shape (..., *input_shape)."""
        return self.posterior(self.params_of(inputs))

    def log_joint(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """log p(x, z) in nats, (..., N), for x of shape (N, *event_shape) and z of shape (..., N, latent_dim)."""
        return self.prior().log_prob(z) + self.decoder.distribution(z, self.likelihood).log_prob(x)

    def replace(self, **parts: Prior | Likelihood | Guide | Network) -> VAE:
        """A new VAE with other parts, which shares all else with this one: the same modules, trained as they are.

        Args:
            **parts: prior, likelihood, guide, encoder or decoder; unbuilt.

        Raises:
            InputError: if there is no such part, or a part that stays does not fit a new one in shape.

        Example:
            >>> from pyro_vae import VAE, priors
            >>> vae = VAE(event_shape=(4,), latent_dim=2)
            >>> vae.replace(prior=priors.Mixture(components=3)).decoder is vae.decoder
            True
        """
        kinds = {"prior": Prior, "likelihood": Likelihood, "guide": Guide, "encoder": Network, "decoder": Network}
        for name, part in parts.items():
            one_of("part", name, kinds)
            parts[name] = self.place(as_network(part) if kinds[name] is Network else part, kinds[name], name)
        if self.encoder is None and parts.get("guide", self.posterior).amortized:
            parts.setdefault("encoder", MLP())
        twin = copy.copy(self)
        vars(twin).pop("_replays", None)
        twin._modules = dict(self._modules)
        twin._assemble(
            **{name: parts.get(name, self._modules["posterior" if name == "guide" else name]) for name in kinds}
        )
        return twin

    def start_at(self, mean: torch.Tensor) -> bool:
        """Sets the decoder's output biases so that the likelihood starts at the data's mean, if both can say how.

        Args:
            mean: of the data, shape `event_shape`.
        """
        bias = self.likelihood.start(mean)
        return bias is not None and self.decoder.start_output(bias)

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


def _built(component: Any, place: str = "", **sizes: Any) -> Any:
    """The component built to the sizes; one that is built already must have been built to the same shapes.

    Raises:
        InputError: if it was not.
    """
    if not component.built:
        return component.build(**sizes)
    for name, size in sizes.items():
        if isinstance(size, torch.Size) and getattr(component, name) != size:
            raise InputError(
                f"The {place or type(component).__name__} has {name}={tuple(getattr(component, name))}, but the new parts "
                f"want {tuple(size)}; replace it too{f': {place}=...' if place else ''}."
            )
        if not isinstance(size, torch.Size):
            setattr(component, name, size)
    return component


def refuse_strangers(prior: Prior, guide: Guide) -> None:
    """Refuses a prior and a guide that live in different spaces, or a prior that asks of the guide what it can't give.

    Raises:
        InputError: naming what would fit.
    """
    if isinstance(prior, Vamp):
        if not guide.evaluable:
            raise InputError(
                f"prior={prior!r} needs the guide's density at any z, which guide={guide!r} has at its own draws alone; use "
                "guides.InverseAutoregressive() or guides.MeanField(), or priors.Mixture()."
            )
        if not guide.amortized:
            raise InputError(
                f"prior={prior!r} puts pseudo-inputs through the encoder, but guide={guide!r} has none; use "
                "guides.SemiAmortized() or guides.MeanField(), or priors.Mixture()."
            )
    elif prior.space != guide.space:
        raise InputError(
            f"prior={prior!r} lives on {_SPACES.get(prior.space, prior.space)}, but guide={guide!r} on "
            f"{_SPACES.get(guide.space, guide.space)}; use guides.{_example(prior.space)}, or priors.{_prior_for(guide)}."
        )


_SPACES = {"real": "all of R^D", "simplex": "the simplex", "sphere": "the unit sphere"}


def _example(space: str) -> str:
    """A guide for a space."""
    if space.startswith("one-hot"):
        return f"RelaxedCategorical(categories={space.split()[-1]})"
    return {"real": "MeanField()", "simplex": "LogisticNormal()", "sphere": "Spherical()"}.get(space, "MeanField()")


def _prior_for(guide: Guide) -> str:
    """A prior for a guide's space."""
    if guide.space.startswith("one-hot"):
        return f"Categorical(categories={guide.space.split()[-1]})"
    return {"real": "StandardNormal()", "simplex": "LogisticNormal()", "sphere": "Spherical()"}[guide.space]
