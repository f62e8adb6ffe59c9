"""Several latents one above the other: p(z) = p(z_0) Π_t p(z_t | z_<t), with a guide that factors alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vae.distributions.spaces import Reals, as_space
from pyro_vae.errors import InputError, one_of, positive_int, widths
from pyro_vae.guides import Guide, MeanField
from pyro_vae.likelihoods import Bernoulli, Likelihood
from pyro_vae.models.base import ComposedPair
from pyro_vae.models.matching import prior_on, refuse_strangers, wanted_by
from pyro_vae.networks import MLP, Condition, Network, as_network
from pyro_vae.networks.layers import side_by_side
from pyro_vae.priors import Normal, Prior, StandardNormal


class Level(nn.Module):
    """One latent: its prior given what lies above, its guide's family, and the networks that meet here.

    Attributes:
        prior: p(z_t | state), the state being what is handed down; the highest has none.
        guide_family: family of q(z_t | ...).
        up: from the level below (at the lowest, from x) upwards.
        merge: from what comes up and the state that comes down to the guide family's params; "top-down" alone has it.
        down: to the level below (at the lowest, to the likelihood's params).
    """

    def __init__(self, prior: Prior, guide_family: Guide, up: Network, merge: Network | None, down: Network):
        super().__init__()
        self.prior, self.guide_family, self.up, self.merge, self.down = prior, guide_family, up, merge, down


class HierarchicalVAE(ComposedPair):
    """p(x, z_0, ..., z_T) = p(z_0) Π_t p(z_t | z_<t) p(x | z) with guide q(z | x).

    "top-down": model and guide go down one path of states, h_{t+1} = h_t + down_t(h_t, z_t) from a learned h_0, and

        p(z_t | z_<t) = prior_t(h_t),  q(z_t | z_<t, x) = guide_t(merge_t(h_t, d_t)),  p(x | z) = p(x | down_T(h_T, z_T)),

    where d_t is what x says on its way up, layer by layer (a ladder: Sønderby et al. 2016, section 2; Child 2020, eq. 1
    and 2). "bottom-up" is the plain stack, a chain both ways (Rezende et al. 2014, section 3; Burda et al. 2016, section 2):

        p(z_t | z_<t) = prior_t(down_{t−1}(z_{t−1})),  q(z | x) = guide_T(up_T(x)) Π_{t<T} guide_t(up_t(z_{t+1})).

    Lists are written from the data upwards, as both papers print them: `latent_dims=[32, 16, 8]` has 32 next to x. Sites are
    numbered as they are drawn: z_0 is the highest, here of 8.

    Args:
        event_shape: shape of one datum.
        latent_dims: number of latent dimensions of each level, from the data upwards.
        order: "top-down" or "bottom-up".
        width: how many numbers h_t, d_t and what conditions a level's prior have.
        prior: of the highest level, StandardNormal() by default, those below being Normal() with location and scale linear
            in the state; or a list, one for each level from the data upwards.
        likelihood: p(x | params); Bernoulli() by default.
        guide: family at every level, MeanField() by default, or a list.
        encoder: network of every step up, MLP([width], "SiLU", init="glorot") by default, or a list: each entry adds to the
            depth that a gradient goes through, so how weights start decides how fast the ladder learns.
        decoder: network of every step down, likewise.
        merge: network from (h_t, d_t) to the guide's params, linear by default, or a list; for "top-down" alone.
        condition: network of y, as for VAE: x's first encoder and last decoder read y too.
        conditional_prior: whether all steps down, and the highest prior, read y as well.

    Raises:
        InputError: if sizes are not positive, lists do not have one entry a level, or parts do not fit together.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dims: Sequence[int] = (32, 16, 8),
        order: Literal["top-down", "bottom-up"] = "top-down",
        width: int = 200,
        prior: Prior | list[Prior] | None = None,
        likelihood: Likelihood | None = None,
        guide: Guide | list[Guide] | None = None,
        encoder: Network | list[Network] | None = None,
        decoder: Network | list[Network] | None = None,
        merge: Network | list[Network] | None = None,
        condition: Condition | None = None,
        conditional_prior: bool = False,
    ):
        super().__init__(event_shape)
        self.latent_dims = widths("latent_dims", latent_dims)
        if not self.latent_dims:
            raise InputError("latent_dims=[] must name at least one level.")
        self.order = one_of("order", order, ["top-down", "bottom-up"])
        self.width = positive_int("width", width)
        if merge is not None and order == "bottom-up":
            raise InputError(f"merge={merge!r} has nothing to merge: order='bottom-up' has no states that come down.")
        self.condition_on(condition, conditional_prior)
        self.likelihood = self.place(likelihood or Bernoulli(), Likelihood, "likelihood").build(
            event_shape=self.event_shape
        )
        # In a dict, which torch does not take for parts of the model: these are patterns, and copies of them are built.
        self._patterns = {"prior": prior, "guide": guide, "encoder": encoder, "decoder": decoder, "merge": merge}
        self.start = nn.Parameter(torch.zeros(self.width)) if order == "top-down" else None
        self.levels = nn.ModuleList(self._levels()[::-1])

    # --- putting it together ------------------------------------------------------------------------------------------

    def _levels(self) -> list[Level]:
        """The levels from the data upwards."""
        families = self._copies("guide", Guide, MeanField)
        for family in families:
            if type(family).refine is not Guide.refine:
                raise InputError(f"guide={family!r} seeks z in the whole joint, which a level can't; use MeanField().")
            if not family.evaluable:
                raise InputError(
                    f"guide={family!r} has a density at its own draws alone, which does not do where latents depend on "
                    "each other; use guides.InverseAutoregressive() or guides.MeanField()."
                )
        network = lambda: MLP([self.width], "SiLU", init="glorot")  # noqa: E731
        linear = lambda: MLP([], init="glorot")  # noqa: E731
        encoders, decoders = (self._copies(name, Network, network) for name in ("encoder", "decoder"))
        merges = self._copies("merge", Network, linear) if self.order == "top-down" else [None] * len(encoders)
        given = self._patterns["prior"]
        if isinstance(given, (list, tuple)):
            priors = self._copies("prior", Prior, StandardNormal)
        else:
            top = copy.deepcopy(self.place(given or StandardNormal(), Prior, "prior"))
            lower = [
                Normal() if as_space(family.space) == Reals() else prior_on(as_space(family.space))
                for family in families[:-1]
            ]
            priors = [*lower, top]
        parts = zip(priors, families, encoders, merges, decoders, strict=True)
        return [self._built(i, Level(*part)) for i, part in enumerate(parts)]

    def _copies(self, name: str, kind: type, default: Callable[[], Any]) -> list[Any]:
        """One part for each level: copies of the one pattern, or those of the list."""
        given, count = self._patterns[name], len(self.latent_dims)
        if isinstance(given, (list, tuple)) and len(given) != count:
            raise InputError(f"{name} has {len(given)} entries, but latent_dims={self.latent_dims} has {count} levels.")
        patterns = given if isinstance(given, (list, tuple)) else [given] * count
        parts = [default() if part is None else part for part in patterns]
        return [copy.deepcopy(self.place(as_network(p) if kind is Network else p, kind, name)) for p in parts]

    def _built(self, i: int, level: Level) -> Level:
        """The level at place `i` from the data, built to its sizes."""
        lowest, highest, ladder = i == 0, i == len(self.latent_dims) - 1, self.order == "top-down"
        refuse_strangers(level.prior, level.guide_family)
        latent, state = torch.Size([self.latent_dims[i]]), torch.Size([self.width])
        level.guide_family.build(latent_shape=latent)
        below = state if ladder else torch.Size([self.latent_dims[i - 1]])
        reads = self.joined_shape(level.up, self.likelihood.input_shape if lowest else below)
        level.up.build(in_shape=reads, out_shape=state if ladder else level.guide_family.params_shape)
        if ladder:
            both = torch.Size([2 * self.width])
            level.merge.build(in_shape=both, out_shape=level.guide_family.params_shape)
        comes = torch.Size([self.width + latent[0]]) if ladder else latent
        reads = self.joined_shape(level.down, comes) if lowest or self.conditional_prior else comes
        looks = {"event_shape": self.event_shape, "input_shape": self.likelihood.input_shape} if lowest else {}
        level.down.build(in_shape=reads, out_shape=self.likelihood.params_shape if lowest else state, **looks)
        if level.prior.needs_posterior and not (highest and ladder and self.condition is None):
            raise InputError(
                f"prior={level.prior!r} wants q(z | x) of the highest level, which only order='top-down' without condition "
                "gives; use priors.Mixture()."
            )
        above = self.prior_condition_shape if highest else state
        offered = {
            "latent_shape": latent,
            "input_shape": self.likelihood.input_shape,
            "pseudo_input": self.likelihood.pseudo_input,
            "posterior": self._highest_posterior,
            "relaxation": level.guide_family.relaxation,
            "condition_shape": above,
        }
        level.prior.build(**wanted_by(level.prior, offered))
        return level

    def _highest_posterior(self, inputs: torch.Tensor) -> TorchDistribution:
        """q(z_0 | x) of what the encoder reads of x."""
        for level in reversed(self.levels):
            inputs = level.up(inputs)
        return self._merged(self.levels[0], self.start, inputs)

    # --- the pair -----------------------------------------------------------------------------------------------------

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """p(z_0) Π p(z_t | z_<t) p(x | z), x of shape (N, *event_shape)."""
        pyro.module(self.name, self)
        c = self.context(y)
        with pyro.plate("data", len(x), dim=-1):
            h, above = self.start, (c,) if self.conditional_prior else ()
            for t, level in enumerate(self.levels):
                z = pyro.sample(f"z_{t}", level.prior(*above))
                if level is not self.levels[-1]:
                    h = self.step_down(level, h, z, c)
                    above = (h,)
            pyro.sample("x", self.p_x(h, z, c), obs=x)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Top-down Π q(z_t | z_<t, x), or bottom-up q(z_T | x) Π q(z_t | z_{t+1})."""
        pyro.module(self.name, self)
        c = self.context(y)
        with pyro.plate("data", len(x), dim=-1):
            if self.order == "top-down":
                h, deterministic = self.start, self.way_up(x, c)
                for t, (level, d) in enumerate(zip(self.levels, deterministic, strict=True)):
                    z = pyro.sample(f"z_{t}", self._merged(level, h, d))
                    if level is not self.levels[-1]:
                        h = self.step_down(level, h, z, c)
            else:
                z, shape = self.likelihood.as_input(x), self.likelihood.input_shape
                for t, level in reversed(list(enumerate(self.levels))):
                    z = pyro.sample(f"z_{t}", level.guide_family(level.up(self.joined(level.up, z, shape, c))))
                    shape = z.shape[-1:]

    def way_up(self, x: torch.Tensor, c: torch.Tensor | None) -> list[torch.Tensor]:
        """What x says at each level, from the highest down, each (N, width)."""
        found: list[torch.Tensor] = []
        d, shape = self.likelihood.as_input(x), self.likelihood.input_shape
        for level in reversed(self.levels):
            d = level.up(self.joined(level.up, d, shape, c))
            shape = d.shape[-1:]
            found.insert(0, d)
        return found

    def step_down(self, level: Level, h: torch.Tensor | None, z: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """The state after z_t, which the prior of the next level is given."""
        inputs = self._below(h, z)
        step = level.down(self.joined(level.down, inputs, inputs.shape[-1:], c if self.conditional_prior else None))
        return step if self.start is None else h + step

    def p_x(self, h: torch.Tensor | None, z: torch.Tensor, c: torch.Tensor | None) -> TorchDistribution:
        """p(x | z), of the lowest latent and the state that came down to it."""
        inputs = self._below(h, z)
        return self.decoder.distribution(self.joined(self.decoder, inputs, inputs.shape[-1:], c), self.likelihood)

    def _below(self, h: torch.Tensor | None, z: torch.Tensor) -> torch.Tensor:
        """What is handed down from a level: z alone in a chain, the state beside it on a ladder."""
        return z if self.start is None else side_by_side(h, z)

    @property
    def decoder(self) -> Network:
        """The network that says the likelihood's params."""
        return self.levels[-1].down

    def _merged(self, level: Level, h: torch.Tensor, d: torch.Tensor) -> TorchDistribution:
        return level.guide_family(level.merge(side_by_side(h, d)))

    def argument(self, name: str) -> Any:
        return self._patterns[name] if name in self._patterns else super().argument(name)
