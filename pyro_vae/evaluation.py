"""Scores with what makes them believable: log p(x) by importance sampling, and the ELBO's terms."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from pyro_vae import data
from pyro_vae.checks import InputError, one_of, positive_int
from pyro_vae.diagnostics import effective_sample_size, pareto_khat, tail_length
from pyro_vae.importance import Draws, Layout, bytes_per_draw, find_layout
from pyro_vae.machine import memory_kept
from pyro_vae.pair import (
    Batch,
    as_pair,
    data_plate,
    device_of,
    evaluating,
    kept_random_state,
    log_prob,
    outside,
    remember,
    sample_sites,
    trace_pair,
    unsupported,
)
from pyro_vae.replay import COMPILE, Compile, Replay, kept_with


@dataclass(frozen=True)
class LogLikelihood:
    """An estimate of log p(x) for each datum, in nats (higher is better).

    Attributes:
        values: (N,) log p(x_n), a lower bound on average that tightens with K.
        mc_stderr: (N,) Monte Carlo standard error of each value (delta method).
        khat: (N,) Pareto k-hat of the weights' tail; above 0.7 a value is not to be trusted.
        ess: (N,) effective sample size, 1 to K.
        num_samples: K.
        notes: what the reader of the number must know, such as that it is no likelihood.
    """

    values: torch.Tensor
    mc_stderr: torch.Tensor
    khat: torch.Tensor
    ess: torch.Tensor
    num_samples: int
    notes: tuple[str, ...] = ()

    @property
    def num_data(self) -> int:
        """N."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over the data."""
        return self.values.double().mean().item()

    @property
    def stderr(self) -> float:
        """Standard error of `mean` as an estimate for the population that the data come from.

        It holds both the data's spread and the sampler's noise; for one datum it is the Monte Carlo error alone.
        """
        if self.num_data == 1:
            return self.mc_stderr.item()
        return (self.values.double().std() / math.sqrt(self.num_data)).item()

    @property
    def mean_mc_stderr(self) -> float:
        """Monte Carlo standard error of `mean` for just these data."""
        return (self.mc_stderr.double().square().sum().sqrt() / self.num_data).item()

    def __str__(self) -> str:
        line = (
            f"{self.mean:.3f} ± {self.stderr:.3f} nats per datum ({self.num_data} data, {self.num_samples} samples; "
            f"Monte Carlo error {self.mean_mc_stderr:.3f}, k-hat {self.khat_summary})"
        )
        return "\n".join([line, *(f"note: {note}" for note in self.notes)])

    @property
    def khat_summary(self) -> str:
        """How many data have a k-hat that warns, in words."""
        if self.khat.isnan().all():
            return "unknown from so few samples"
        return f"above 0.7 for {(self.khat > 0.7).double().mean().item():.1%} of the data"


def log_likelihood(
    pair: Any,
    x: Any,
    num_samples: int = 1000,
    *,
    binarize: str | None = None,
    seed: int = 0,
    max_memory: int | None = None,
    compile: Compile = "auto",
    progress: bool = False,
) -> LogLikelihood:
    """log p(x_n) ≈ log 1/K Σ_k p(x_n, z_k) / q(z_k | x_n), z_k ~ q (Kingma & Welling 2014, appendix D; Burda et al. 2016).

    Unbiased for p(x), and so a lower bound for log p(x) on average. Weights are streamed, so memory does not grow with
    K or N. The pair, its optimizer and torch's random state are left as they were.

    Args:
        pair: model and guide.
        x: data in any form that `fit` takes.
        num_samples: K, exactly so many per datum.
        binarize: as in `fit`; "static" or "dynamic" make one draw per pixel under `seed`.
        seed: of the draws; the same seed gives the same numbers.
        max_memory: bytes that one chunk's tensors may take; by default what was fastest here, 64 MiB on a CPU (more no
            longer fits its caches) and 1 GiB on a GPU.
        compile: how weights are computed: by a captured "graph", by that graph compiled ("inductor"), by Pyro itself
            ("eager"), or as repays its time for so many draws ("auto").
        progress: show a bar.

    Raises:
        InputError: on bad data, or where sites outside the plate over the data leave no score per datum.
    """
    pair = as_pair(pair)
    positive_int("num_samples", num_samples)
    one_of("compile", compile, COMPILE)
    examples = _scored(pair, x, binarize, seed)
    if max_memory is None:
        max_memory = 2**26 if torch.device(examples.device).type == "cpu" else 2**30
    positive_int("max_memory", max_memory)
    with evaluating(pair), kept_random_state(examples.device, seed):
        first = next(iter(examples.batches(4)))[1]
        layout = find_layout(pair, first)
        draws_at_once = max(1, int(max_memory / bytes_per_draw(pair, first, layout)))
        rows = min(max(1, draws_at_once // num_samples), 4096, len(examples))
        notes = _notes(pair, first)
    chunks = _chunks(num_samples, max(1, draws_at_once // rows))
    # Written in place: small tensors that stay would break up the memory between the large ones that come and go.
    log_sum, log_sum_squares, khat = torch.empty(3, len(examples), dtype=torch.float64, device=examples.device)
    tails = log_sum.new_empty(min(tail_length(num_samples) + 1, num_samples), min(1024 + rows, len(examples)))
    done = judged = 0
    with evaluating(pair), kept_random_state(examples.device, seed), memory_kept():
        weights = _Weights(pair, layout, compile, chunks, rows, len(examples))
        for batch in _bar(examples.batches(rows), -(-len(examples) // rows), progress):
            part = slice(done, done + len(batch[0]))
            tail = tails[:, part.start - judged : part.stop - judged]
            log_sum[part], log_sum_squares[part], tail[:] = _sums(weights.of(batch, chunks), num_samples)
            done = part.stop
            if done - judged >= 1024 or done == len(examples):  # many at once, as it takes many small operations
                khat[judged:done] = pareto_khat(tails[:, : done - judged])
                judged = done
    ess = effective_sample_size(log_sum, log_sum_squares)
    # Var[log mean w] ≈ (mean w² / (mean w)² − 1) / K = 1 / ess − 1 / K.
    mc_stderr = (1 / ess - 1 / num_samples).clamp_min(0).sqrt()
    if num_samples == 1:
        mc_stderr = torch.full_like(mc_stderr, math.nan)
    return LogLikelihood(log_sum - math.log(num_samples), mc_stderr, khat, ess, num_samples, notes)


def _chunks(num_samples: int, at_once: int) -> list[int]:
    """Sizes of about equal parts of K, none larger than `at_once`; at most two different ones."""
    count = -(-num_samples // at_once)
    return [num_samples // count + (i < num_samples % count) for i in range(count)]


class _Weights:
    """log-weights in chunks of K, by a function of the batch for each size of chunk, captured where that pays.

    What is captured stays with the pair, for the next score.
    """

    def __init__(self, pair: Any, layout: Layout, compile: Compile, chunks: list[int], rows: int, num_data: int):
        self.pair, self.layout = pair, layout
        self.replays = {}
        for size in set(chunks):
            often = chunks.count(size)
            magnitude = int(math.log2(often * (num_data // rows) + 1))  # which decides how it is run
            key = (size, rows, compile, repr(layout), magnitude)
            kept = kept_with(pair)
            if key not in kept:
                programs = (pair.model, pair.guide)
                calls = functools.partial(_calls, rows=rows, often=2**magnitude)
                kept[key] = Replay(
                    functools.partial(self._drawn_anew, size), programs, compile=compile, calls=calls, what="scoring"
                )
            self.replays[size] = kept[key]

    def _drawn_anew(self, size: int, *batch: torch.Tensor) -> torch.Tensor:
        return Draws(self.pair, batch, self.layout).log_weights(size)

    def of(self, batch: Batch, chunks: list[int]) -> Iterator[torch.Tensor]:
        """(K', N) for each chunk size K'. Run eagerly, the guide runs once for all chunks, else once for each."""
        draws = None
        for size in chunks:
            if self.replays[size].captures(*batch):
                yield self.replays[size](*batch)
            else:
                draws = draws or Draws(self.pair, batch, self.layout)
                yield draws.log_weights(size)


def _calls(*batch: torch.Tensor, rows: int, often: int) -> int:
    return often if len(batch[0]) == rows else 1


def _sums(weights: Iterator[torch.Tensor], num_samples: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log Σ w and log Σ w² of each datum of one batch, (N,), and its largest log-weights, (M + 1, N)."""
    kept = tail_length(num_samples) + 1
    log_sum = log_sum_squares = tail = None
    for chunk in weights:
        log_w = chunk.double()
        squares, sums = (2 * log_w).logsumexp(0), log_w.logsumexp(0)
        if not sums.isfinite().all():
            row = (~sums.isfinite()).nonzero()[0].item()
            raise InputError(f"The weights of datum {row} in the chunk are not finite; check the data and the weights.")
        log_sum = sums if log_sum is None else torch.logaddexp(log_sum, sums)
        log_sum_squares = squares if log_sum_squares is None else torch.logaddexp(log_sum_squares, squares)
        tail = log_w if tail is None else torch.cat([tail, log_w])
        tail = tail.topk(min(kept, len(tail)), dim=0).values
    return log_sum, log_sum_squares, tail


COLLAPSED = 0.1  # nats


@dataclass(frozen=True)
class ElboTerms:
    """The ELBO's terms in nats per datum, means over data and draws.

    Attributes:
        elbo: E_q[log p(x, z) − log q(z | x)] = reconstruction − kl (higher is better).
        reconstruction: E_q[log p(x | z)].
        kl: E_q[log q(z | x) − log p(z)], summed over latents.
        sites: kl of each latent and log p of each observed site, by name.
        values: (N,) the ELBO of each datum; None where a latent lies outside the plate over the data.
        stderr: standard error of `elbo` over the data; NaN for one datum or global latents.
        notes: what the reader must know.
        num_dims: numbers in one datum.
        latents: names of the latent sites.
    """

    elbo: float
    reconstruction: float
    kl: float
    sites: dict[str, float] = field(default_factory=dict)
    values: torch.Tensor | None = None
    stderr: float = math.nan
    notes: tuple[str, ...] = ()
    num_dims: int = 1
    latents: tuple[str, ...] = ()

    @property
    def bits_per_dim(self) -> float:
        """−elbo / (num_dims · log 2): for 8-bit data a bound on the bits of a lossless code for each number."""
        return -self.elbo / (self.num_dims * math.log(2))

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Latents that say next to nothing of x: with a KL below 0.1 nats, where there are several."""
        latents = self.latents if len(self.latents) > 1 else ()
        return tuple(name for name in latents if self.sites[name] < COLLAPSED)

    def __str__(self) -> str:
        sites = ", ".join(f"{name} {value:.3f}" for name, value in self.sites.items())
        return f"ELBO {self.elbo:.3f} = reconstruction {self.reconstruction:.3f} − KL {self.kl:.3f} ({sites})"


def elbo_terms(
    pair: Any, x: Any, num_samples: int = 1, *, binarize: str | None = None, seed: int = 0, batch_size: int = 2048
) -> ElboTerms:
    """The evidence lower bound and its terms (Doersch 2016, eq. 5; Kingma & Welling 2014, eq. 3).

    Global latents, outside the plate over the data, count once for the whole set. The pair, its optimizer and torch's
    random state are left as they were.

    Args:
        pair: model and guide.
        x: data in any form that `fit` takes.
        num_samples: draws from the guide per datum.
        binarize: as in `log_likelihood`.
        seed: of the draws.
        batch_size: how many data at once.
    """
    pair = as_pair(pair)
    positive_int("num_samples", num_samples)
    positive_int("batch_size", batch_size)
    examples = _scored(pair, x, binarize, seed)
    totals: dict[str, float] = {}
    values: list[torch.Tensor] = []
    is_latent: dict[str, bool] = {}
    all_per_datum = True
    with evaluating(pair), kept_random_state(examples.device, seed):
        for _, batch in examples.batches(batch_size):
            share = len(batch[0]) / len(examples)
            rows: Any = 0.0
            for _ in range(num_samples):
                for name, term, latent, per_datum in _terms(pair, batch, len(examples)):
                    mean = term.double().sum().item() / (len(batch[0]) if per_datum else 1)
                    totals[name] = totals.get(name, 0.0) + mean * share / num_samples
                    is_latent[name] = latent
                    all_per_datum &= per_datum
                    if per_datum:
                        rows = rows + (-term if latent else term).double() / num_samples
            values.append(rows if isinstance(rows, torch.Tensor) else batch[0].new_zeros(len(batch[0])))
        notes = _notes(pair, batch)
    kl = sum(value for name, value in totals.items() if is_latent[name])
    reconstruction = sum(value for name, value in totals.items() if not is_latent[name])
    joined = torch.cat(values) if all_per_datum else None
    stderr = math.nan
    if joined is not None and len(joined) > 1:
        stderr = (joined.std() / math.sqrt(len(joined))).item()
    latents = tuple(name for name in totals if is_latent[name])
    dims = batch[0][0].numel()
    return ElboTerms(reconstruction - kl, reconstruction, kl, totals, joined, stderr, notes, dims, latents)


def _terms(pair: Any, batch: Batch, num_data: int) -> Iterator[tuple[str, torch.Tensor, bool, bool]]:
    """(site, its term, is it latent, is it per datum): terms are (n,) per datum, or one share of a global total."""
    guide_trace, model_trace = trace_pair(pair, batch)
    plate = data_plate(model_trace, len(batch[0]))
    stray = {*outside(guide_trace, plate), *outside(model_trace, plate)}
    # A plain plate is over this batch alone, so the whole set is what was handed in; a subsampled one names its size.
    population = num_data if plate is None or plate.full_size == len(batch[0]) else plate.full_size
    latents = sample_sites(guide_trace, observed=False)
    for name, site in sample_sites(model_trace, observed=True).items():
        yield name, _summed(log_prob(site), plate, len(batch[0]), name in stray, population), False, name not in stray
    for name, site in latents.items():
        kl = log_prob(site)
        if name in model_trace.nodes:
            kl = kl - log_prob(model_trace.nodes[name])
        yield name, _summed(kl, plate, len(batch[0]), name in stray, population), True, name not in stray


def _summed(term: torch.Tensor, plate: Any, num_rows: int, stray: bool, population: int) -> torch.Tensor:
    if stray:
        return term.sum() / population
    term = term.expand(torch.broadcast_shapes(term.shape, (num_rows, *(1,) * (-plate.dim - 1))))
    inner = [d for d in range(term.dim()) if d != term.dim() + plate.dim]
    return term.sum(inner) if inner else term


def _scored(pair: Any, x: Any, binarize: str | None, seed: int) -> Any:
    """The data to score, on the pair's device, checked; a binarisation is drawn once, under `seed`."""
    first = x[0] if isinstance(x, (tuple, list)) and x else x
    device = device_of(pair, first.device if isinstance(first, torch.Tensor) else "cpu")
    examples = data.as_examples(x, binarize="static" if binarize == "dynamic" else binarize, seed=seed, device=device)
    check_data(pair, examples)
    return examples


def check_data(pair: Any, examples: Any) -> None:
    """Refuses, before any work is done, data that are not finite or that the pair says it can't have made.

    Raises:
        InputError: with the argument, the offending index and what is wanted.
    """
    if not isinstance(examples, data.Examples):
        return  # a stream is checked batch by batch as it is read
    examples.check_finite(getattr(getattr(pair, "likelihood", None), "missing_allowed", False))
    check = getattr(pair, "check", None)
    with kept_random_state(examples.device):
        for _, batch in examples.batches(8192):
            if check is not None:
                check(*batch)
            remember(pair, batch)


def _notes(pair: Any, batch: Batch) -> tuple[str, ...]:
    with kept_random_state(batch[0].device):
        _, model_trace = trace_pair(pair, tuple(t[:256] for t in batch))
    return tuple(
        f"site {name!r} was given values outside its distribution's support (such as grey pixels under a Bernoulli): this "
        "score is no log-likelihood and can't be compared with one"
        for name in unsupported(model_trace)
    )


def _bar(batches: Any, total: int, progress: bool) -> Iterator[Batch]:
    if progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, total=total, desc="log p(x)", leave=False)
    for _, batch in batches:
        yield batch
