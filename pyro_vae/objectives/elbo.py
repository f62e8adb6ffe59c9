"""The evidence lower bound: by draws, in closed form, summed over discrete latents; weighted and annealed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro.infer
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger

from pyro_vae.errors import InputError, one_of, positive, positive_int
from pyro_vae.objectives.base import (
    Handled,
    Objective,
    Program,
    Schedule,
    not_negative,
)
from pyro_vae.objectives.divergences import FreeBits
from pyro_vae.objectives.weights import family
from pyro_vae.pair import Pair, evaluating, kept_random_state, sample_sites
from pyro_vae.pair.hooks import final_weight, tell_progress


class ELBO(Trace_ELBO, Objective):
    """E_q[log p(x, z) − log q(z | x)], at draws (Kingma & Welling 2014, eq. 6): `pyro.infer.Trace_ELBO`.

    Latents that are not reparameterised get the score-function gradient, with its high variance.

    Args:
        num_samples: draws per datum, averaged.
    """

    is_bound = True

    def __init__(self, num_samples: int = 1):
        self.num_samples = positive_int("num_samples", num_samples)
        super().__init__(num_particles=num_samples)


class MeanFieldELBO(TraceMeanField_ELBO, Objective):
    """E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)) with the KL in closed form (Kingma & Welling 2014, eq. 7, SGVB B).

    This is `pyro.infer.TraceMeanField_ELBO`, but for that it does not fall back to draws where torch knows no KL.

    Args:
        num_samples: draws per datum, averaged.

    Raises:
        InputError: if torch knows no KL for a latent, or a latent is not reparameterised; names the site.
    """

    is_bound = True
    reparameterised = True

    def __init__(self, num_samples: int = 1):
        self.num_samples = positive_int("num_samples", num_samples)
        super().__init__(num_particles=num_samples)

    def _get_traces(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        def check() -> bool:
            pair = Pair(model, guide)
            with evaluating(pair), poutine.block(), kept_random_state(_device(args)):
                guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
                model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args, **kwargs)
            latents = sample_sites(guide_trace, observed=False)
            self.check_latents(latents)
            for name, site in sample_sites(model_trace, observed=False).items():
                self._check_kl(name, latents[name]["fn"], site["fn"])
            return True

        self.once(model, guide, "kl", check)
        return super()._get_traces(model, guide, args, kwargs)

    def _check_kl(self, name: str, q: Any, p: Any) -> None:
        try:
            torch.distributions.kl_divergence(q, p)
        except NotImplementedError:
            raise InputError(
                f"{self!r}: torch knows no KL of the latent {name!r} between the guide's {family(q)} and the model's "
                f"{family(p)}; use objectives.ELBO(), or guides.MeanField() with priors.StandardNormal()."
            ) from None


def _device(args: Any) -> torch.device:
    return next((arg.device for arg in args if isinstance(arg, torch.Tensor)), torch.device("cpu"))


# --- enumeration ------------------------------------------------------------------------------------------


class EnumeratedELBO(Objective):
    """The ELBO with the guide's discrete latents summed over: `pyro.infer.TraceEnum_ELBO` with `config_enumerate`.

    Continuous latents are drawn as usual. Plates are counted by a run of the pair. The model must take latents of
    further batch dimensions on the left.

    Args:
        num_samples: draws of the continuous latents per datum, averaged.
    """

    is_bound = True

    def __init__(self, num_samples: int = 1):
        super().__init__(num_particles=num_samples)
        self.num_samples = positive_int("num_samples", num_samples)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        engine = self._engine(model, guide, args, kwargs)
        total: Any = 0.0
        for traces in engine._get_traces(model, config_enumerate(guide), args, kwargs):
            total = total + pyro.infer.traceenum_elbo._compute_dice_elbo(*traces)
        return -total / self.num_samples

    def _engine(self, model: Program, guide: Program, args: Any, kwargs: Any) -> TraceEnum_ELBO:
        def count() -> int:
            counting = TraceEnum_ELBO()
            with evaluating(Pair(model, guide)), kept_random_state(_device(args)):
                counting._guess_max_plate_nesting(model, guide, args, kwargs)
            return counting.max_plate_nesting

        plates = self.once(model, guide, "plates", count)
        return TraceEnum_ELBO(self.num_samples, max_plate_nesting=plates, strict_enumeration_warning=False)


# --- tempered terms -----------------------------------------------------------------------------------------


class _Factor(Messenger):
    """Multiplies the scale of latent sites, or of all random sites, by a weight."""

    def __init__(self, weight: float | torch.Tensor, of: str, sites: Sequence[str] | None):
        super().__init__()
        self.weight, self.of, self.sites = weight, of, sites
        self.met: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if poutine.util.site_is_subsample(msg) or (msg["is_observed"] and self.of == "kl"):
            return
        self.met.add(msg["name"])
        if self.sites is None or msg["name"] in self.sites:
            msg["scale"] = self.weight * msg["scale"]


class Beta(Objective):
    """E[log p(x | z)] − β KL(q(z | x) ‖ p(z)) (Higgins et al. 2017, eq. 4), or another objective so weighted.

    In importance-weighted objectives the weights are p(x | z) (p(z) / q(z | x))^β.

    Args:
        beta: β; 1 is the inner objective itself, and from 1 on it is a bound if that is.
        inner: the objective whose latent terms are weighted; ELBO() by default.
    """

    def __init__(self, beta: float = 4.0, inner: Objective | None = None):
        super().__init__()
        self.beta = not_negative("beta", beta)
        self.inner = _inner(inner)
        self.is_bound = self.beta >= 1 and isinstance(self.inner, (ELBO, MeanFieldELBO, EnumeratedELBO, FreeBits))

    @property
    def final_weight(self) -> float:
        return final_weight(self.inner)

    def progress(self, done: float) -> None:
        tell_progress(self.inner, done)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        factor = _Factor(self.beta, "kl", None)
        return self.inner.differentiable_loss(Handled(model, factor), Handled(guide, factor), *args, **kwargs)


class Annealed(Schedule, Objective):
    """The inner objective with its KL, or the whole of it, weighted by a schedule (Bowman et al. 2016, section 3.1).

    With t = done / fraction up to 1: "linear" is t, "cosine" (1 − cos πt) / 2; "cyclical" repeats `cycles` linear rises,
    each in the first `fraction` of its cycle (Fu et al. 2019, eq. 6). Whoever trains calls `progress(done)` before
    each step; without that the weight stays `start`.

    Args:
        schedule: "linear", "cosine", "cyclical", or a function of the 0-d tensor `done` that gives the 0-d weight.
        of: "kl", the terms of the latents, or "all", those of the data too.
        sites: names of the sites that are weighted; None for all.
        start: weight at the start; functions ignore this and what follows.
        end: weight that is reached.
        fraction: part of the run, or of a cycle, in which the weight rises.
        cycles: how often, for "cyclical".
        inner: the objective whose terms are weighted; ELBO() by default.

    Raises:
        InputError: at the first loss, if `sites` holds a name that neither model nor guide samples.
    """

    def __init__(
        self,
        schedule: Literal["linear", "cyclical", "cosine"] | Callable[[torch.Tensor], torch.Tensor] = "linear",
        of: Literal["kl", "all"] = "kl",
        sites: Sequence[str] | None = None,
        start: float = 0.0,
        end: float = 1.0,
        fraction: float = 0.5,
        cycles: int = 4,
        inner: Objective | None = None,
    ):
        super().__init__()
        self.schedule = (
            schedule if callable(schedule) else one_of("schedule", schedule, ["linear", "cyclical", "cosine"])
        )
        self.of = one_of("of", of, ["kl", "all"])
        if isinstance(sites, str):
            raise InputError(f"sites={sites!r} must be a list of names, such as [{sites!r}].")
        self.sites = None if sites is None else list(sites)
        self.start, self.end = not_negative("start", start), not_negative("end", end)
        self.fraction = positive("fraction", fraction)
        if self.fraction > 1:
            raise InputError(f"fraction={fraction!r} must be a number above 0 and at most 1.")
        self.cycles = positive_int("cycles", cycles)
        self.inner = _inner(inner)
        self.start_schedule()

    def weight_at(self, done: torch.Tensor) -> torch.Tensor:
        if callable(self.schedule):
            return self.schedule(done)
        if self.schedule == "cyclical":
            turns = done * self.cycles
            done = turns - turns.floor().clamp(max=self.cycles - 1)  # the run's end is the last cycle's, not a start
        rise = (done / self.fraction).clamp(max=1.0)
        if self.schedule == "cosine":
            rise = (1 - (math.pi * rise).cos()) / 2
        return self.start + (self.end - self.start) * rise

    def progress(self, done: float) -> None:
        super().progress(done)
        tell_progress(self.inner, done)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        weight = self.weight_on(_device(args))
        if self.of == "all" and self.sites is None:
            return weight * self.inner.differentiable_loss(model, guide, *args, **kwargs)
        factor = _Factor(weight, self.of, self.sites)
        loss = self.inner.differentiable_loss(Handled(model, factor), Handled(guide, factor), *args, **kwargs)
        if missing := set(self.sites or ()) - factor.met:
            raise InputError(
                f"sites={self.sites!r} names {sorted(missing)}, but the pair samples {sorted(factor.met)}."
            )
        return loss


def _inner(inner: Any) -> Any:
    if inner is not None and not isinstance(inner, pyro.infer.ELBO):
        raise InputError(f"inner={inner!r} must be an objective, such as objectives.IWAE(5).")
    return inner or ELBO()
