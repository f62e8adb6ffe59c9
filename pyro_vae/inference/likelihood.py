"""log p(x) of each datum, by importance sampling from the guide or by annealed importance sampling."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from pyro_vae.data import Binarization
from pyro_vae.engine.kept import kept_with
from pyro_vae.engine.machine import memory_kept
from pyro_vae.engine.replay import COMPILE, Compile, Replay
from pyro_vae.errors import InputError, one_of, positive_int
from pyro_vae.inference.annealing import Annealing, annealed_weights, bar
from pyro_vae.inference.checked import notes_on, scored_data
from pyro_vae.inference.diagnostics import effective_sample_size, pareto_khat, tail_length
from pyro_vae.inference.estimates import SMOOTHED_ABOVE, LogLikelihood, from_log_weights, predictive, smoothed_sum
from pyro_vae.inference.global_latents import draw_globals, global_latents
from pyro_vae.inference.global_latents import given as with_globals
from pyro_vae.inference.importance import Draws, Layout, bytes_per_draw, find_layout
from pyro_vae.pair import (
    Batch,
    ModelAndGuide,
    PairLike,
    as_pair,
    evaluating,
    kept_random_state,
)
from pyro_vae.pair.hooks import optimises


def log_likelihood(
    pair: PairLike,
    x: Any,
    num_samples: int | None = None,
    *,
    of: Sequence[Any] | None = None,
    given: Sequence[Any] | None = None,
    method: Literal["importance", "annealed"] = "importance",
    annealing: Annealing | None = None,
    num_global: int = 16,
    binarize: Binarization | None = None,
    seed: int = 0,
    max_memory: int | None = None,
    compile: Compile = "auto",
    progress: bool = False,
) -> LogLikelihood:
    """log p(x_n) ≈ log 1/K Σ_k w_kn, with E[w_kn] = p(x_n).

    By importance sampling w = p(x, z) / q(z | x), z ~ q (Kingma & Welling 2014, appendix D; Burda et al. 2016); where k-hat
    says that these weights have no finite variance, `smoothed` holds the Pareto-smoothed estimate too. By annealed
    importance sampling (Neal 2001; Wu et al. 2017) a chain leads from q, or from the prior, to the posterior, and w is what
    it gains on its way: nearer to log p(x) where q is far from the posterior, at many times the cost.

    Both are unbiased for p(x), and so lower bounds for log p(x) on average. Importance weights are streamed, so memory does
    not grow with K or N. The pair, its optimizer and torch's random state are left as they were.

    With latents outside the plate over the data, such as a decoder's weights w, each datum's score is the predictive
    log p(x | training data) ≈ log 1/M Σ_m p(x | w_m), w_m ~ q(w), the p(x | w_m) estimated as above.

    Args:
        pair: model and guide.
        x: data in any form that `fit` takes.
        of, given: names of columns of a table, for log p(x_of | x_given); other cells are integrated out.
        num_samples: K, exactly so many per datum; 1000 samples, or 16 chains, by default.
        method: "importance" or "annealed".
        annealing: how chains are annealed; Annealing() by default.
        num_global: draws of latents outside the plate over the data, where there are any, each with K samples.
        binarize: as in `fit`; "static" or "dynamic" make one draw per pixel under `seed`.
        seed: of the draws; the same seed gives the same numbers.
        max_memory: bytes that one chunk's tensors may take; by default what was fastest here, 64 MiB on a CPU (more no
            longer fits its caches) and 1 GiB on a GPU.
        compile: how weights are computed: by a captured "graph", by that graph compiled ("inductor"), by Pyro itself
            ("eager"), or as repays its time for so many draws ("auto").
        progress: show a bar.

    Raises:
        InputError: on bad data, or where sites outside the plate over the data leave no score per datum; for the annealed
            method also where a latent is discrete without a finite support, or no bijection leads to its support, or the
            guide has no density at given latents.
    """
    pair = as_pair(pair)
    one_of("method", method, ["importance", "annealed"])
    if num_samples is None:
        num_samples = 16 if method == "annealed" else 1000
    positive_int("num_samples", num_samples)
    one_of("compile", compile, COMPILE)
    if of is not None or given is not None:
        from pyro_vae.inference.conditionals import conditional_log_likelihood

        options: dict[str, Any] = {"seed": seed, "max_memory": max_memory, "compile": compile, "progress": progress}
        return conditional_log_likelihood(pair, x, of, given, num_samples, **options)
    if annealing is not None and (method != "annealed" or not isinstance(annealing, Annealing)):
        raise InputError(f'annealing={annealing!r} must be an Annealing(...), and goes with method="annealed".')
    positive_int("num_global", num_global)
    examples = scored_data(pair, x, binarize, seed)
    if max_memory is None:
        max_memory = 2**26 if torch.device(examples.device).type == "cpu" else 2**30
    positive_int("max_memory", max_memory)

    def score(pair: ModelAndGuide, num_samples: int, seed: int) -> LogLikelihood:
        if method == "importance":
            return _by_importance(pair, examples, num_samples, seed, max_memory, compile, progress)
        return _by_annealing(pair, examples, num_samples, annealing, seed, max_memory, compile, progress)

    first = next(iter(examples.batches(4)))[1]
    with evaluating(pair):
        names = global_latents(pair, first)
    if not names:
        return score(pair, num_samples, seed)
    with evaluating(pair), kept_random_state(examples.device, (seed + 3_000_003) % 2**32):
        draws = [draw_globals(pair, first, names) for _ in range(num_global)]
    return predictive(
        [score(with_globals(pair, values), num_samples, seed + i) for i, values in enumerate(draws)], names
    )


def _by_annealing(
    pair: ModelAndGuide,
    examples: Any,
    num_chains: int,
    annealing: Annealing | None,
    seed: int,
    max_memory: int,
    compile: Compile,
    progress: bool,
) -> LogLikelihood:
    with evaluating(pair), kept_random_state(examples.device, seed):
        notes = notes_on(pair, next(iter(examples.batches(4)))[1])
    log_w, acceptance = annealed_weights(
        pair,
        examples,
        num_chains,
        annealing or Annealing(),
        seed=seed,
        compile=compile,
        max_memory=max_memory,
        progress=progress,
    )
    return from_log_weights(log_w, notes, acceptance)


def _by_importance(
    pair: ModelAndGuide, examples: Any, num_samples: int, seed: int, max_memory: int, compile: Compile, progress: bool
) -> LogLikelihood:
    with evaluating(pair), kept_random_state(examples.device, seed):
        first = next(iter(examples.batches(4)))[1]
        layout = find_layout(pair, first)
        draws_at_once = max(1, int(max_memory / bytes_per_draw(pair, first, layout)))
        rows = min(max(1, draws_at_once // num_samples), 4096, len(examples))
        notes = notes_on(pair, first)
    chunks = _chunks(num_samples, max(1, draws_at_once // rows))
    # Written in place: small tensors that stay would break up the memory between the large ones that come and go.
    log_sum, log_sum_squares, khat, smoothed = torch.empty(
        4, len(examples), dtype=torch.float64, device=examples.device
    )
    tails = log_sum.new_empty(min(tail_length(num_samples) + 1, num_samples), min(1024 + rows, len(examples)))
    done = judged = 0
    with evaluating(pair), kept_random_state(examples.device, seed), memory_kept():
        compile = "eager" if optimises(pair) else compile
        weights = _Weights(pair, layout, compile, chunks, rows, len(examples))
        for batch in bar(examples.batches(rows), -(-len(examples) // rows), progress):
            part = slice(done, done + len(batch[0]))
            tail = tails[:, part.start - judged : part.stop - judged]
            log_sum[part], log_sum_squares[part], tail[:] = _sums(weights.of(batch, chunks), num_samples)
            done = part.stop
            if done - judged >= 1024 or done == len(examples):  # many at once, as it takes many small operations
                tail = tails[:, : done - judged]
                khat[judged:done] = pareto_khat(tail)
                smoothed[judged:done] = smoothed_sum(log_sum[judged:done], tail, khat[judged:done])
                judged = done
    ess = effective_sample_size(log_sum, log_sum_squares)
    # Var[log mean w] ≈ (mean w² / (mean w)² − 1) / K = 1 / ess − 1 / K.
    mc_stderr = (1 / ess - 1 / num_samples).clamp_min(0).sqrt()
    if num_samples == 1:
        mc_stderr = torch.full_like(mc_stderr, math.nan)
    some = bool((khat > SMOOTHED_ABOVE).any())
    log_k = math.log(num_samples)
    return LogLikelihood(log_sum - log_k, mc_stderr, khat, ess, num_samples, notes, smoothed - log_k if some else None)


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
