"""Where the bound is loose: the approximation gap and the amortization gap of each datum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from pyro_vae.data import Binarization
from pyro_vae.engine.machine import memory_kept
from pyro_vae.engine.replay import COMPILE, Compile
from pyro_vae.errors import InputError, one_of, positive_int
from pyro_vae.inference.annealing import Annealing, bar
from pyro_vae.inference.best_member import Optimizer, Search, draws_at_once
from pyro_vae.inference.checked import scored_data
from pyro_vae.inference.estimates import LogLikelihood
from pyro_vae.inference.likelihood import log_likelihood
from pyro_vae.inference.results import Result, mean_and_error, nats
from pyro_vae.pair import PairLike, as_pair, evaluating, kept_random_state


@dataclass(frozen=True)
class Gaps(Result):
    """log p(x) − ELBO of each datum in two parts, in nats (Cremer et al. 2018, eq. 4).

    Attributes:
        approximation: (N,) log p(x) − ELBO(q*), what the best member q* of the guide's family leaves.
        amortization: (N,) ELBO(q*) − ELBO(q), what the encoder's choice q leaves; 0 where the search found nothing better.
        inference: (N,) their sum, log p(x) − ELBO(q).
        approximation_stderr, amortization_stderr, inference_stderr: (N,) Monte Carlo standard errors.
        log_likelihood: (N,) the tightest estimate of log p(x) at hand.
        best: (N,) ELBO(q*).
        elbo: (N,) ELBO(q).
        converged: (N,) whether the search for q* had converged when it ended.
        method: of log p(x): "importance", "annealed" or "given".
        cycles: of the search, the most that a batch took.
        notes: what the reader must know.
    """

    approximation: torch.Tensor
    amortization: torch.Tensor
    inference: torch.Tensor
    approximation_stderr: torch.Tensor
    amortization_stderr: torch.Tensor
    inference_stderr: torch.Tensor
    log_likelihood: torch.Tensor
    best: torch.Tensor
    elbo: torch.Tensor
    converged: torch.Tensor
    method: str
    cycles: int
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        def row(what: str) -> tuple[str, str]:
            noise = getattr(self, f"{what}_stderr").square().sum().sqrt().item() / len(self.elbo)
            words = nats(*mean_and_error(getattr(self, what)))
            return f"{what} gap", f"{words} (Monte Carlo error {noise:.3f})"

        return [
            (f"log p(x), {self.method}, nats per datum", nats(*mean_and_error(self.log_likelihood))),
            ("best member's ELBO", nats(*mean_and_error(self.best))),
            ("guide's ELBO", nats(*mean_and_error(self.elbo))),
            row("approximation"),
            row("amortization"),
            row("inference"),
            ("search converged", f"for {self.converged.double().mean():.1%} of {len(self.elbo)} data"),
        ]


def gaps(
    pair: PairLike,
    x: Any,
    *,
    log_p: LogLikelihood | torch.Tensor | None = None,
    annealing: Annealing | None = None,
    num_samples: int = 1000,
    steps: int = 200,
    lr: float = 0.1,
    binarize: Binarization | None = None,
    seed: int = 0,
    max_memory: int = 2**26,
    compile: Compile = "auto",
    progress: bool = False,
) -> Gaps:
    """The approximation gap and the amortization gap of each datum (Cremer et al. 2018).

    The best member q* of the guide's family is sought by Adam from the encoder's choice q, each datum for itself, with the
    model frozen, in cycles until a further one gains no more than 0.01 nats; `converged` tells for which data that was
    reached. Bounds of q and q* share their noise. Where q* scores below q in the end, q takes its place.

    log p(x) is estimated by annealed importance sampling from the guide (from the prior if the guide can't start chains) and
    by importance sampling; the higher mean is taken, as both are lower bounds on average.

    The family is that of the distributions that the guide samples from: their parameters are freed. Transforms, such
    as flows, stay as the guide has them. With several latents, the shifts are the same for all values of the latents above.
    Call it on training and on test data: the amortization gap grows from one to the other, the approximation gap does not.

    Args:
        pair: model and guide, whose latents have reparameterised draws.
        x: data in any form that `fit` takes.
        log_p: log p(x) of these data, if it is known or estimated already.
        annealing: of the estimate of log p(x); Annealing() by default.
        num_samples: draws per datum for each bound, and for log p(x) by importance sampling.
        steps: of one cycle of the search.
        lr: at the start of a cycle, in unconstrained parameters.
        binarize, seed, max_memory, compile, progress: as in `log_likelihood`.

    Raises:
        InputError: on bad data; if latents are discrete or their distributions have no parameters to free.
    """
    pair = as_pair(pair)
    positive_int("num_samples", num_samples)
    one_of("compile", compile, COMPILE)
    optimizer = Optimizer(positive_int("steps", steps), lr)
    examples = scored_data(pair, x, binarize, seed)
    columns: list[tuple[torch.Tensor, ...]] = []
    cycles = 0
    notes: tuple[str, ...] = ()
    with evaluating(pair), kept_random_state(examples.device, seed), memory_kept():
        layout, at_once = draws_at_once(pair, next(iter(examples.batches(4)))[1], max_memory)
        rows = min(max(1, at_once // 16), len(examples))
        for batch in bar(examples.batches(rows), -(-len(examples) // rows), progress):
            search = Search(pair, batch, layout, optimizer, compile, at_once)
            columns.append(_bounds(search, num_samples, seed))
            cycles, notes = max(cycles, search.cycles), search.notes
    elbo, elbo_error, gain, gain_error, best_error, converged = (torch.cat(c) for c in zip(*columns, strict=True))
    method, log_p, log_p_error = _tightest(pair, examples, log_p, annealing, num_samples, seed, compile)
    best = elbo + gain
    return Gaps(
        log_p - best,
        gain,
        log_p - elbo,
        (log_p_error.square() + best_error.square()).sqrt(),
        gain_error,
        (log_p_error.square() + elbo_error.square()).sqrt(),
        log_p,
        best,
        elbo,
        converged,
        method,
        cycles,
        notes,
    )


def _bounds(search: Search, num_samples: int, seed: int) -> tuple[torch.Tensor, ...]:
    """(ELBO(q), its error, ELBO(q*) − ELBO(q), its error, the error of ELBO(q*), converged), each (N,)."""
    found = search.run()
    start = search.bounds(search.start(), num_samples, (seed + 1) % 2**32)
    end = search.bounds(found, num_samples, (seed + 1) % 2**32)
    end = torch.where(end.mean(0) < start.mean(0), start, end)
    gain = end - start
    return start.mean(0), _error(start), gain.mean(0), _error(gain), _error(end), search.converged


def _error(draws: torch.Tensor) -> torch.Tensor:
    """Standard error of the mean over the first dimension, NaN for one draw."""
    if len(draws) == 1:
        return torch.full_like(draws[0], math.nan)
    return draws.std(0) / math.sqrt(len(draws))


def _tightest(
    pair: Any,
    examples: Any,
    given: LogLikelihood | torch.Tensor | None,
    annealing: Annealing | None,
    num_samples: int,
    seed: int,
    compile: Compile,
) -> tuple[str, torch.Tensor, torch.Tensor]:
    """How log p(x) was had, its values and their standard errors, (N,)."""
    if isinstance(given, LogLikelihood):
        values, error, method = given.values, given.mc_stderr, given.method
    elif given is not None:
        values, error, method = given.double(), torch.zeros_like(given, dtype=torch.float64), "given"
    else:
        plain = log_likelihood(pair, examples, num_samples, seed=seed, compile=compile)
        annealed = _annealed(pair, examples, annealing, seed, compile)
        tightest = annealed if annealed.mean >= plain.mean else plain
        values, error, method = tightest.values, tightest.mc_stderr, tightest.method
    if values.shape != (len(examples),):
        raise InputError(f"log_p has shape {tuple(values.shape)}, but x holds {len(examples)} data.")
    return method, values.to(examples.device), error.to(examples.device)


def _annealed(pair: Any, examples: Any, annealing: Annealing | None, seed: int, compile: Compile) -> LogLikelihood:
    def run(settings: Annealing) -> LogLikelihood:
        return log_likelihood(pair, examples, method="annealed", annealing=settings, seed=seed, compile=compile)

    try:
        return run(annealing or Annealing())
    except InputError:
        if annealing is not None:
            raise
        return run(Annealing(start="prior"))
