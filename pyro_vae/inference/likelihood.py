"""log p(x) of each datum by importance sampling, with what makes it believable."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from pyro_vae.data import Binarization
from pyro_vae.engine.machine import memory_kept
from pyro_vae.engine.replay import COMPILE, Compile, Replay, kept_with
from pyro_vae.errors import InputError, one_of, positive_int
from pyro_vae.inference.checked import notes_on, scored_data
from pyro_vae.inference.diagnostics import effective_sample_size, pareto_khat, tail_length
from pyro_vae.inference.importance import Draws, Layout, bytes_per_draw, find_layout
from pyro_vae.inference.results import Result, Rows, nats
from pyro_vae.pair import (
    Batch,
    ModelAndGuide,
    PairLike,
    as_pair,
    evaluating,
    kept_random_state,
)


@dataclass(frozen=True)
class LogLikelihood(Result):
    """An estimate of log p(x) for each datum, in nats (higher is better).

    Attributes:
        values: (N,) log p(x_n), a lower bound on average that tightens with K.
        mc_stderr: (N,) Monte Carlo standard error of each value (delta method).
        khat: (N,) Pareto k-hat of the weights' tail; above 0.7 a value is not to be trusted.
        ess: (N,) effective sample size, 1 to K.
        num_samples: K.
        notes: what the reader of the number must know, such as that it is no likelihood.
    """

    title: ClassVar[str] = "log p(x) by importance sampling"
    derived: ClassVar[tuple[str, ...]] = ("mean", "stderr", "mean_mc_stderr", "num_data")

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

    def rows(self) -> Rows:
        """The mean with its errors, and the diagnostics of the weights."""
        ess = f"median {self.ess.median().item():.0f} of {self.num_samples}"
        return [
            ("log p(x)", f"{nats(self.mean, self.stderr)} nats per datum ({self.num_data} data)"),
            ("Monte Carlo error", f"{self.mean_mc_stderr:.3f} nats"),
            ("Pareto k-hat", self.khat_summary),
            ("effective samples", ess),
        ]

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
    pair: PairLike,
    x: Any,
    num_samples: int = 1000,
    *,
    binarize: Binarization | None = None,
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
    examples = scored_data(pair, x, binarize, seed)
    if max_memory is None:
        max_memory = 2**26 if torch.device(examples.device).type == "cpu" else 2**30
    positive_int("max_memory", max_memory)
    with evaluating(pair), kept_random_state(examples.device, seed):
        first = next(iter(examples.batches(4)))[1]
        layout = find_layout(pair, first)
        draws_at_once = max(1, int(max_memory / bytes_per_draw(pair, first, layout)))
        rows = min(max(1, draws_at_once // num_samples), 4096, len(examples))
        notes = notes_on(pair, first)
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

    def __init__(
        self, pair: ModelAndGuide, layout: Layout, compile: Compile, chunks: list[int], rows: int, num_data: int
    ):
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
            if self.replays[size].replays(*batch):
                yield self.replays[size](*batch)
            else:
                draws = draws or Draws(self.pair, batch, self.layout)
                yield draws.log_weights(size)


def _calls(*batch: torch.Tensor, rows: int, often: int) -> int:
    return often if len(batch[0]) == rows else 1


def _sums(weights: Iterator[torch.Tensor], num_samples: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log Σ w and log Σ w² of each datum of one batch, (N,), and its largest log-weights, (M + 1, N)."""
    kept = tail_length(num_samples) + 1
    log_sum: Any = None
    log_sum_squares: Any = None
    tail: Any = None
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


def _bar(batches: Any, total: int, progress: bool) -> Iterator[Batch]:
    if progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, total=total, desc="log p(x)", leave=False)
    for _, batch in batches:
        yield batch
