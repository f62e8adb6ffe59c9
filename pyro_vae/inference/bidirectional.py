"""Bounds on log p(x) from both sides, by annealed chains in both directions on data whose latents are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine

from pyro_vae import data
from pyro_vae.data import Binarization
from pyro_vae.engine.replay import Compile
from pyro_vae.errors import InputError, positive_int
from pyro_vae.inference.annealing import Annealer, Annealing, annealing_on, bar
from pyro_vae.inference.checked import scored_data
from pyro_vae.inference.estimates import log_mean_error
from pyro_vae.inference.importance import Values
from pyro_vae.inference.results import Result, mean_and_error, nats
from pyro_vae.inference.sampling import observed_in
from pyro_vae.pair import Batch, ModelAndGuide, PairLike, as_pair, evaluating, kept_random_state, sample_sites

MIXING = 10  # steps at the posterior that draw the chains of one datum apart before they go back


@dataclass(frozen=True)
class Bidirectional(Result):
    """log p(x) of each datum from below and from above, in nats.

    Attributes:
        lower: (N,) `forward` less its sampling error at the stated confidence.
        upper: (N,) `reverse` plus its own.
        forward: (N,) log 1/K Σ_k w_k of chains to the posterior: below log p(x) on average.
        reverse: (N,) −log 1/K Σ_k 1/w_k of chains from the posterior: above log p(x) on average.
        forward_stderr, reverse_stderr: (N,) their Monte Carlo standard errors.
        x: the data that were bounded: simulated from the model, unless exact posterior draws were given.
        confidence: with which `lower` and `upper` hold the exact value, for one datum.
        num_chains: K, in each direction.
        temperatures: T.
        acceptance: mean acceptance of the chains' proposals.
        notes: what the reader must know.
    """

    lower: torch.Tensor
    upper: torch.Tensor
    forward: torch.Tensor
    reverse: torch.Tensor
    forward_stderr: torch.Tensor
    reverse_stderr: torch.Tensor
    x: torch.Tensor
    confidence: float
    num_chains: int
    temperatures: int
    acceptance: float
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        """Mean over the data of `reverse` − `forward`: on average it bounds the error of either."""
        return (self.reverse - self.forward).mean().item()

    @property
    def gap_stderr(self) -> float:
        """Standard error of `gap`, from its spread over the data."""
        return mean_and_error(self.reverse - self.forward)[1]

    def rows(self) -> list[tuple[str, str]]:
        return [
            ("from below, nats per datum", f"{self.forward.mean():.3f}"),
            ("from above", f"{self.reverse.mean():.3f}"),
            ("gap", nats(self.gap, self.gap_stderr)),
            (f"{self.confidence:.0%} interval of one datum", f"{(self.upper - self.lower).mean():.3f} wide"),
            ("data, chains, temperatures", f"{len(self.lower)}, {self.num_chains}, {self.temperatures}"),
            ("acceptance", f"{self.acceptance:.0%}"),
        ]

    def as_dict(self, max_values: int | None = None) -> dict[str, Any]:
        return {name: value for name, value in super().as_dict(max_values).items() if name != "x"}


def bidirectional(
    pair: PairLike,
    x: Any,
    num_chains: int = 16,
    *,
    annealing: Annealing | None = None,
    latents: Mapping[str, torch.Tensor] | None = None,
    confidence: float = 0.99,
    binarize: Binarization | None = None,
    seed: int = 0,
    max_memory: int = 2**26,
    compile: Compile = "auto",
    progress: bool = False,
) -> Bidirectional:
    """Annealed chains in both directions bound log p(x) from both sides (Grosse et al. 2015; Wu et al. 2017, section 4).

    Chains back from the posterior must start at exact draws from it, which are known for simulated data: z ~ p(z),
    x ~ p(x | z). So as many data as there are in x are simulated, and the gap that is found says how far the same settings
    can be trusted on x itself, as far as x looks like what the model simulates.

    The K chains of a datum leave one exact draw, drawn apart by ten steps of Hamiltonian Monte Carlo at the posterior.
    Where these do not mix, as between far modes, `reverse_stderr` is too small; `gap_stderr` does not suffer from it.

    Args:
        pair: model and guide.
        x: data in any form that `fit` takes: how many to simulate, and the further tensors of a batch, such as labels.
        num_chains: K, in each direction.
        annealing: how chains are annealed; Annealing() by default.
        latents: exact draws from p(z | x) of x itself, by site, each (N, *event); then x itself is bounded.
        confidence: of `lower` and `upper`, from the chains' spread by Student's t distribution.
        binarize, seed, max_memory, compile, progress: as in `log_likelihood`.

    Raises:
        InputError: as from `log_likelihood(method="annealed")`; if observed sites can't be put together to data; if K is 1.
    """
    pair = as_pair(pair)
    if positive_int("num_chains", num_chains) < 2:
        raise InputError("num_chains=1 must be at least 2, since errors come from the spread of a datum's chains.")
    if not isinstance(confidence, float) or not 0 < confidence < 1:
        raise InputError(f"confidence={confidence!r} must be a number between 0 and 1, such as 0.99.")
    settings = annealing or Annealing()
    examples = scored_data(pair, x, binarize, seed)
    batch, draws, notes = _known_draws(pair, examples, latents, seed)
    examples = data.as_examples(batch, device=examples.device)
    forward, reverse, acceptance = _both_ways(
        pair, examples, draws, num_chains, settings, seed, compile, max_memory, progress
    )
    low, high = forward.logsumexp(0) - math.log(num_chains), math.log(num_chains) - (-reverse).logsumexp(0)
    low_error, high_error = log_mean_error(forward), log_mean_error(-reverse)
    margin = student_quantile((1 + confidence) / 2, num_chains - 1)
    return Bidirectional(
        low - margin * low_error,
        high + margin * high_error,
        low,
        high,
        low_error,
        high_error,
        next(iter(examples.batches(len(examples))))[1][0],
        confidence,
        num_chains,
        settings.temperatures,
        acceptance,
        notes,
    )


def _both_ways(
    pair: ModelAndGuide,
    examples: Any,
    draws: Values,
    num_chains: int,
    settings: Annealing,
    seed: int,
    compile: Compile,
    max_memory: int,
    progress: bool,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """log w of the chains to the posterior and of those from it, each (K, N), and the mean acceptance."""
    forward, reverse = [], []
    with annealing_on(pair, examples, seed):
        annealer = Annealer(pair, examples, num_chains, settings, compile, max_memory)
        coordinates = annealer.path.coordinates
        nothing = torch.empty(len(examples), 0, device=examples.device)
        u = coordinates.pack_one(draws) if coordinates.size else nothing
        with kept_random_state(examples.device, (seed + 1_000_003) % 2**32):
            schedule = annealer.tune()
        done = 0
        for batch in bar(examples.batches(annealer.rows), -(-len(examples) // annealer.rows), progress):
            rows = slice(done, done + len(batch[0]))
            forward.append(annealer.forward(batch, schedule))
            reverse.append(annealer.reverse(batch, u[rows], schedule, MIXING))
            done = rows.stop
    acceptance = annealer.acceptance
    mean = sum(acceptance) / len(acceptance) if acceptance else math.nan
    return torch.cat(forward, 1), torch.cat(reverse, 1), mean


def _known_draws(
    pair: ModelAndGuide, examples: Any, latents: Mapping[str, torch.Tensor] | None, seed: int
) -> tuple[Batch, Values, tuple[str, ...]]:
    """All data as one batch, with one exact draw from each one's posterior: the latents that made them."""
    parts = [batch for _, batch in examples.batches(4096)]
    whole = tuple(map(torch.cat, zip(*parts, strict=True)))
    if latents is not None:
        return whole, dict(latents), ()
    with evaluating(pair), kept_random_state(examples.device, (seed + 2_000_003) % 2**32):
        made, draws = simulate(pair, whole)
    note = "the bounds are those of data that the model simulated; they tell of x as far as x looks like these"
    return made, draws, (note,)


def simulate(pair: ModelAndGuide, batch: Batch) -> tuple[Batch, Values]:
    """(x, z) ~ p(x, z) for as many data as the batch has, given its further tensors: a batch, and the latents by site.

    Raises:
        InputError: if observed sites can't be put together to data of the batch's form.
    """
    trace = poutine.trace(poutine.uncondition(pair.model)).get_trace(*batch)
    sites = sample_sites(trace, observed=False)
    latents = {name: site["value"] for name, site in sites.items() if not site["infer"].get("was_observed")}
    x = observed_in(pair, trace, batch)
    if not isinstance(x, torch.Tensor) or x.shape != batch[0].shape:
        raise InputError(
            "The sites that the model observes can't be put together to data of x's shape; a pair says how by a "
            "method `joined_outputs` (docs/hooks.md)."
        )
    return (x.to(batch[0]), *batch[1:]), latents


def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution."""
    from scipy import stats

    return float(stats.t.ppf(probability, degrees))
