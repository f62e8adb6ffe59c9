"""Missing cells filled by self-normalised importance sampling, for any pair whose observed site leaves them out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pyro_vae import data
from pyro_vae.data.tables import Table
from pyro_vae.errors import InputError, positive_int
from pyro_vae.inference.cells import CellSamples, centres, quantiles
from pyro_vae.inference.diagnostics import effective_sample_size, pareto_khat, tail_length
from pyro_vae.inference.importance import Draws, Layout, bytes_per_draw, find_layout, per_datum
from pyro_vae.inference.rows import rows_for
from pyro_vae.pair import (
    Batch,
    ModelAndGuide,
    PairLike,
    as_batch,
    as_pair,
    device_of,
    evaluating,
    kept_random_state,
    remember,
    sample_sites,
    trace_pair,
)
from pyro_vae.pair.hooks import check_batch

LEVELS = (0.5, 0.9)  # of the intervals that come with every imputation


@dataclass(frozen=True)
class Imputation:
    """Missing cells of a batch x, filled; N data of shape `event_shape`.

    Attributes:
        values: x with its missing cells filled: by E[x | observed], for counts by the median, for classes by the mode.
        mean: x with E[x | observed] in its missing cells, of codes where a cell is a class.
        missing: which cells were missing, shape of x.
        quantiles: by probability, x with that quantile of p(cell | observed) in its missing cells.
        khat: (N,) Pareto k-hat of the weights; above 0.7 a row's figures are not to be trusted.
        ess: (N,) effective sample size, 1 to `num_samples`.
        num_samples: importance samples per datum.
    """

    values: torch.Tensor
    mean: torch.Tensor
    missing: torch.Tensor
    quantiles: dict[float, torch.Tensor]
    khat: torch.Tensor
    ess: torch.Tensor
    num_samples: int
    sampler: Sampler

    def interval(self, level: float = 0.9) -> tuple[torch.Tensor, torch.Tensor]:
        """Lower and upper end of the central interval of p(cell | observed); at an observed cell both are its value.

        Args:
            level: 0.5 or 0.9.
        """
        low, high = round((1 - level) / 2, 6), round((1 + level) / 2, 6)
        if low not in self.quantiles:
            raise InputError(f"level={level!r} is not known. Choose one of {', '.join(map(str, LEVELS))}.")
        return self.quantiles[low], self.quantiles[high]

    def draws(self, num_draws: int, seed: int = 0) -> torch.Tensor:
        """x with its missing cells drawn from p(missing | observed), shape (num_draws, N, *event_shape).

        Sampling importance resampling (Rubin 1987; Mattei & Frellsen 2019, section 3.4): z_k ~ q, an index k with the
        weights' probabilities, then x ~ p(x | z_k).

        Args:
            num_draws: how many; each is a completed data set, as multiple imputation wants them.
            seed: of the draws, which are other ones than those of the figures.
        """
        return self.sampler.resampled(positive_int("num_draws", num_draws), seed)

    def __repr__(self) -> str:
        warns = (self.khat > 0.7).double().mean().item()
        return (
            f"Imputation({int(self.missing.sum())} of {self.missing.numel()} cells of {len(self.values)} data, "
            f"{self.num_samples} samples, k-hat above 0.7 for {warns:.1%} of the data)"
        )


def impute(
    pair: PairLike,
    rows: Any,
    num_samples: int = 500,
    *,
    missing: torch.Tensor | None = None,
    seed: int = 0,
    max_memory: int = 2**28,
) -> Any:
    """Missing cells from p(missing | observed) by self-normalised importance sampling (Mattei & Frellsen 2019, eq. 11-13).

    E[h(x) | observed] ≈ Σ_k w_k E[h(x) | z_k] / Σ_k w_k, z_k ~ q(z | observed), w_k = p(observed, z_k) / q(z_k | observed).
    Where p(x | z) has no mean in closed form, one draw of x stands for it. The pair and torch's random state are left
    as they were.

    Args:
        pair: model and guide; the model's observed site leaves out missing cells, as `likelihoods.Columns` does with NaN,
            or a `mask` of a hand-written model.
        rows: a `data.Table`, a DataFrame or a file for a pair of a table; otherwise a tensor x or a tuple of tensors.
        num_samples: K per datum.
        missing: which cells of x to fill, shape of x; those that are NaN by default.
        seed: of the draws.
        max_memory: bytes that one chunk's tensors may take.

    Returns:
        for rows of a table a DataFrame with their index, names and dtypes, observed cells as they were, which also has
        `.draws(M)` (a list of DataFrames), `.interval(level)`, `.khat`, `.ess` and `.imputation`; otherwise an
        `Imputation`.

    Raises:
        InputError: on data that the pair can't have made, or a model with several observed sites.
    """
    pair = as_pair(pair)
    positive_int("num_samples", num_samples)
    positive_int("max_memory", max_memory)
    rows = rows_for(pair, rows)
    batch = as_batch(rows.x if isinstance(rows, Table) else rows)
    device = device_of(pair, batch[0].device)
    batch = tuple(t.to(device) for t in batch)
    missing = batch[0].isnan() if missing is None else missing.to(device)
    if missing.shape != batch[0].shape or missing.dtype != torch.bool:
        raise InputError(
            f"missing must be a mask of shape {tuple(batch[0].shape)}, not {tuple(missing.shape)} of {missing.dtype}."
        )
    data.Examples(batch[0], extras=batch[1:]).check_finite(missing_allowed=True)
    check_batch(pair, *batch)
    imputation = Sampler(pair, batch, missing, num_samples, seed, max_memory).imputation()
    if not isinstance(rows, Table):
        return imputation
    from pyro_vae.inference.imputed import Imputed

    return Imputed.of(rows, imputation)


class Sampler:
    """Draws of z, their weights and draws of x, chunk of data by chunk of data."""

    def __init__(
        self, pair: ModelAndGuide, batch: Batch, missing: torch.Tensor, num_samples: int, seed: int, max_memory: int
    ):
        self.pair, self.batch, self.missing = pair, batch, missing
        self.num_samples, self.seed = num_samples, seed
        few = tuple(t[:4] for t in batch)
        with evaluating(pair), kept_random_state(batch[0].device, seed):
            remember(pair, batch)
            self.site = self._observed_site(few)
            self.layout: Layout = find_layout(pair, few)
            self.rows = max(1, min(4096, int(max_memory / (bytes_per_draw(pair, few, self.layout) * num_samples))))

    def _observed_site(self, few: Batch) -> str:
        sites = sample_sites(trace_pair(self.pair, few)[1], observed=True)
        names = list(sites)
        if len(names) > 1:
            raise InputError(
                f"The model observes several sites ({', '.join(names)}); which of them x is, is not known."
            )
        value: torch.Tensor = sites[names[0]]["value"]
        if value.numel() != few[0].numel():
            shapes = f"{tuple(value.shape)}, but x {tuple(few[0].shape)}"
            raise InputError(f"Site {names[0]!r} has shape {shapes}: they do not hold the same cells.")
        return names[0]

    def _chunks(self) -> Iterator[tuple[slice, Batch, torch.Tensor]]:
        for start in range(0, len(self.batch[0]), self.rows):
            part = slice(start, min(start + self.rows, len(self.batch[0])))
            yield part, tuple(t[part] for t in self.batch), self.missing[part].flatten(1)

    def _weighted(self, chunk: Batch) -> tuple[Draws, dict[str, torch.Tensor], Any, torch.Tensor]:
        """The chunk's draws of z, the model's sites there, and the log-weights (K, n) in float64."""
        draws, size = Draws(self.pair, chunk, self.layout), self.num_samples
        values, log_q = draws.draw(size)
        sites = draws.model_sites(values, size)
        log_w = per_datum(sites, self.layout, size, len(chunk[0]), self.layout.fold_model) - log_q
        return draws, values, sites[self.site]["fn"], log_w.double()

    def imputation(self) -> Imputation:
        """All figures, in one pass."""
        x = self.batch[0]
        wanted = sorted({round((1 + sign * level) / 2, 6) for level in LEVELS for sign in (-1, 1)} | {0.5})
        values, mean_of = x.clone(), x.clone()
        results = {p: x.clone() for p in wanted}
        khat, ess = torch.empty(2, len(x), dtype=torch.float64, device=x.device)
        with evaluating(self.pair), kept_random_state(x.device, self.seed):
            for part, chunk, missing in self._chunks():
                _, _, fn, log_w = self._weighted(chunk)
                khat[part] = pareto_khat(log_w.topk(min(tail_length(len(log_w)) + 1, len(log_w)), dim=0).values)
                ess[part] = effective_sample_size(log_w.logsumexp(0), (2 * log_w).logsumexp(0))
                if not missing.any():
                    continue
                cells = CellSamples(fn, self.layout, self.num_samples, missing)
                weights = log_w.softmax(0).to(cells.drawn.dtype)[:, cells.row]  # (K, cells)
                filled = quantiles(cells.drawn, weights, wanted)
                mean, centre = centres(cells, weights, filled[0.5])
                targets = [(values, centre), (mean_of, mean), *((results[p], filled[p]) for p in wanted)]
                for target, value in targets:
                    target[part].view(len(missing), -1)[missing] = value.to(x.dtype)
        return Imputation(values, mean_of, self.missing, results, khat, ess, self.num_samples, self)

    def resampled(self, num_draws: int, seed: int) -> torch.Tensor:
        """Completed data, (num_draws, N, *event_shape)."""
        x = self.batch[0]
        completed = x.expand(num_draws, *x.shape).clone()
        with evaluating(self.pair), kept_random_state(x.device, (self.seed + 1_000_003 * (seed + 1)) % 2**32):
            for part, chunk, missing in self._chunks():
                if not missing.any():
                    continue
                draws, values, _, log_w = self._weighted(chunk)
                index = torch.multinomial(log_w.softmax(0).T, num_draws, replacement=True).T  # (M, n)
                picked = {name: self._picked(name, value, index) for name, value in values.items()}
                fn = draws.model_sites(picked, num_draws)[self.site]["fn"]
                cells = CellSamples(fn, self.layout, num_draws, missing)
                completed[:, part].view(num_draws, len(missing), -1)[:, missing] = cells.drawn.to(x.dtype)
        return completed

    def log_p_of(self, truth: torch.Tensor) -> torch.Tensor:
        """log p(cell | observed) of each missing cell by itself at its true value, shape of x; NaN at other cells.

        Args:
            truth: shape of x.

        Raises:
            InputError: if the observed site is no row of a table.
        """
        log_p = torch.full(truth.shape, torch.nan, dtype=torch.float64, device=truth.device)
        with evaluating(self.pair), kept_random_state(truth.device, self.seed):
            for part, chunk, missing in self._chunks():
                if missing.any():
                    _, _, fn, log_w = self._weighted(chunk)
                    cells = CellSamples(fn, self.layout, self.num_samples, missing)
                    shares = log_w.log_softmax(0)[:, cells.row] + cells.log_prob(truth[part]).double()
                    log_p[part].view(len(missing), -1)[missing] = shares.logsumexp(0)
        return log_p

    def _picked(self, name: str, value: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """A latent's values (K, ..., n, *event) at the chosen k of each datum, (M, ..., n, *event)."""
        data_at = value.dim() - self.layout.event_dims[name] + self.layout.plate.dim
        where = index.reshape(len(index), *(1,) * (data_at - 1), -1, *(1,) * (value.dim() - data_at - 1))
        return value.gather(0, where.expand(len(index), *value.shape[1:]))
