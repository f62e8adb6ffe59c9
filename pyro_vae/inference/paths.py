"""The two ends of an annealing path: log densities of unconstrained latents, with gradients, captured and replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro import distributions as dist

from pyro_vae.engine.kept import kept_with
from pyro_vae.engine.replay import Compile, Replay
from pyro_vae.errors import InputError
from pyro_vae.inference.coordinates import Coordinates
from pyro_vae.inference.enumeration import log_densities
from pyro_vae.inference.importance import Draws, Layout, Values, per_datum, run, unfold
from pyro_vae.pair import Batch, ModelAndGuide, Sites, sample_sites, trace_pair
from pyro_vae.pair.hooks import optimises

Start = Literal["guide", "prior"]
Slopes = tuple[torch.Tensor, torch.Tensor]


@dataclass
class State:
    """Chains at one place: u, (K, N, D), and what is known there.

    Attributes:
        u: unconstrained latents.
        log_start, log_joint: log f_0(u) and log f_1(u) = log p(x, u) in nats, with the Jacobian of the bijection, (K, N).
        slope_start, slope_joint: their gradients in u.
    """

    u: torch.Tensor
    log_start: torch.Tensor
    log_joint: torch.Tensor
    slope_start: torch.Tensor
    slope_joint: torch.Tensor

    def log_density(self, beta: float) -> torch.Tensor:
        """log f_β = (1 − β) log f_0 + β log f_1, (K, N)."""
        return (1 - beta) * self.log_start + beta * self.log_joint

    def where(self, chosen: torch.Tensor, other: State) -> State:
        """This state where `chosen`, (K, N), is true, else the other."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return State(*(torch.where(chosen if a.dim() == 2 else chosen[..., None], a, b) for a, b in pairs))


class Path:
    """f_0 is the guide's q(z | x) or the prior p(z), f_1 is p(x, z), for K chains on each of N data.

    Args:
        pair: model and guide.
        batch: a few data, to find the latents by.
        layout: of the pair.
        start: "guide" or "prior".
        num_chains: K.
        compile: how densities are computed, as in `log_likelihood`.
        calls: how often gradients of a batch will be asked for.

    Raises:
        InputError: if a latent can't be annealed, or the guide can't say its density at given values.
    """

    def __init__(
        self,
        pair: ModelAndGuide,
        batch: Batch,
        layout: Layout,
        start: Start,
        num_chains: int,
        compile: Compile,
        calls: int,
    ):
        self.pair, self.layout, self.start, self.num_chains = pair, layout, start, num_chains
        guide_trace, model_trace = trace_pair(pair, tuple(t[:3] for t in batch))
        self.coordinates = Coordinates(model_trace, layout)
        if start == "guide":
            _refuse_no_start(sample_sites(guide_trace, observed=False), sample_sites(model_trace, observed=False))
        # A guide with one latent runs once for a batch, and so does one that optimises as it runs.
        self.fixed = layout.one_site and not self.coordinates.discrete
        if start == "guide" and optimises(pair) and not self.fixed:
            raise InputError(
                "A guide that optimises for each datum can start chains only if it has one latent; use start='prior'."
            )
        magnitude = int(math.log2(calls + 1))
        key = (num_chains, start, compile, repr(layout), magnitude)
        self._model = self._replayed(self._model_part, (*key, "model"), compile, calls)
        self._model_slopes = self._replayed(self._slopes_of_model, (*key, "slopes of model"), compile, calls)
        self._guide = self._replayed(self._guide_part, (*key, "guide"), compile, calls)

    def _replayed(self, function: Callable[..., Any], key: tuple[Any, ...], compile: Compile, calls: int) -> Replay:
        kept = kept_with(self.pair)
        if key not in kept:
            programs = (self.pair.model, self.pair.guide)
            kept[key] = Replay(function, programs, compile=compile, calls=lambda *_: calls, what="annealing")
        return kept[key]

    # --- what is captured ---------------------------------------------------------------------------------------------

    def _model_densities(self, u: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        values, log_det = self.coordinates.unpack(u)
        fold = self.layout.fold_model
        prior, joint = log_densities(
            self.pair.model,
            batch,
            self.num_chains,
            self.layout,
            fold=fold,
            values=values,
            discrete=self.coordinates.discrete,
        )
        return prior + log_det, joint + log_det

    def _model_part(self, u: torch.Tensor, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """log p(u) and log p(x, u), (K, N), and their gradients."""
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            prior, joint = self._model_densities(at, batch)
            slope_prior = _slope(prior, at) if self.start == "prior" else torch.zeros_like(u)
            return prior.detach(), joint.detach(), slope_prior, _slope(joint, at)

    def _slopes_of_model(self, u: torch.Tensor, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The gradients alone, whose graph is shorter."""
        return self._model_part(u, *batch)[2:]

    def _guide_part(self, u: torch.Tensor, *batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log q(u | x), (K, N), and its gradient, for guides that must be run at every value."""
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            values, log_det = self.coordinates.unpack(at)
            log_q, _ = log_densities(
                self.pair.guide,
                batch,
                self.num_chains,
                self.layout,
                fold=self.layout.fold_guide,
                values=values,
                discrete=self.coordinates.discrete,
            )
            log_q = log_q + log_det
            return log_q.detach(), _slope(log_q, at)

    # --- chains of one batch ------------------------------------------------------------------------------------------

    def on(self, batch: Batch) -> Chains:
        """The path for one batch of data."""
        return Chains(self, batch)


class Chains:
    """A path for one batch: the densities, and where chains start."""

    def __init__(self, path: Path, batch: Batch):
        self.path, self.batch = path, batch
        self._drawn: Sites = {}
        self._draws: Draws | None = None
        if path.start == "guide" and path.fixed:
            self._draws = Draws(path.pair, batch, path.layout)
            _, self._drawn = self._draws.sample(path.num_chains)

    def first(self) -> State:
        """Chains at independent draws from f_0."""
        if not self.path.coordinates.places:  # all latents are summed over
            return self.at(self.batch[0].new_zeros(self.path.num_chains, len(self.batch[0]), 0, dtype=torch.float64))
        return self.at(self.path.coordinates.pack(self._values()))

    def _values(self) -> Values:
        path, layout, size = self.path, self.path.layout, self.path.num_chains
        if path.start == "guide":
            return (self._draws or Draws(path.pair, self.batch, layout)).sample(size)[0]
        fold = layout.fold_model
        sites = run(path.pair.model, self.batch, size, layout, fold=fold)
        latents = {name: site for name, site in sites.items() if not site["is_observed"]}
        if not fold:
            return {name: site["value"] for name, site in latents.items()}
        return {name: unfold(site["value"], layout, site["fn"].event_dim, size) for name, site in latents.items()}

    def at(self, u: torch.Tensor) -> State:
        """What is known at u, (K, N, D)."""
        prior, joint, slope_prior, slope_joint = self.path._model(u, *self.batch)
        if self.path.start == "prior":
            return State(u, prior, joint, slope_prior, slope_joint)
        log_q, slope_q = self._of_guide(u)
        return State(u, log_q, joint, slope_q, slope_joint)

    def slopes(self, u: torch.Tensor) -> Slopes:
        """The gradients of log f_0 and log f_1 at u."""
        slope_prior, slope_joint = self.path._model_slopes(u, *self.batch)
        return (slope_prior if self.path.start == "prior" else self._of_guide(u)[1]), slope_joint

    def _of_guide(self, u: torch.Tensor) -> Sequence[torch.Tensor]:
        try:
            return self._guide_at(u)
        except NotImplementedError as error:
            raise InputError(
                "The guide does not know its density at given latents, since a transform in it has no inverse; use "
                "start='prior'."
            ) from error

    def _guide_at(self, u: torch.Tensor) -> Sequence[torch.Tensor]:
        if self._draws is None:
            return self.path._guide(u, *self.batch)
        path = self.path
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            values, log_det = path.coordinates.unpack(at)
            sites = self._draws.guide_sites(values, self._drawn, path.num_chains)
            size = (path.num_chains, len(self.batch[0]))
            log_q = per_datum(sites, path.layout, *size, self._draws.fold_guide) + log_det
            return log_q.detach(), _slope(log_q, at)


def _slope(log_density: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """∂ log f / ∂ u of each chain; chains do not touch each other, so the gradient of the sum holds all."""
    if not log_density.requires_grad or not at.numel():
        return torch.zeros_like(at)
    # Ones that owe nothing to the density, so that a captured gradient does not compute what no one asks for.
    ones = at.new_ones(log_density.shape, dtype=log_density.dtype)
    (slope,) = torch.autograd.grad(log_density, at, ones, retain_graph=True, allow_unused=True)
    return torch.zeros_like(at) if slope is None else slope


def _refuse_no_start(latents: Sites, in_model: Sites) -> None:
    for name, site in latents.items():
        fn = site["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        if isinstance(fn, dist.Delta):
            raise InputError(
                f"The guide gives latent {name!r} one value (Delta), where no chain can start; use start='prior'."
            )
        if name not in in_model:
            raise InputError(
                f"The guide's latent {name!r} is auxiliary, so that q(z | x) is not known at given z; use start='prior'."
            )
