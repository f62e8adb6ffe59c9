"""Ranks that are uniform where a guide is calibrated: how they are counted, and tests that they are uniform."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

BINS = 20  # of the chi-squared test, where there are data sets enough
_LOG_GAMMAS = np.linspace(math.log(1e-9), math.log(0.2), 14)


def ranks_of(values: torch.Tensor) -> torch.Tensor:
    """The rank of the first among L + 1 values, 0 to L: how many of the others are smaller.

    Ties, as discrete latents have, are broken at random, so that ranks stay exactly uniform where all values are
    exchangeable.

    Args:
        values: (L + 1, *shape), the truth first.

    Returns:
        ranks, of shape `shape`, whole numbers.
    """
    truth, draws = values[0], values[1:]
    # Counted as float32, exactly: sums of booleans are several times slower.
    count = torch.empty(draws.shape, dtype=torch.float32, device=draws.device)
    below = torch.lt(draws, truth, out=count).sum(0)
    ties = torch.eq(draws, truth, out=count).sum(0)
    broken = (torch.rand(ties.shape, device=ties.device) * (ties + 1)).floor().minimum(ties)
    return (below + broken).long()


@dataclass(frozen=True)
class Uniformity:
    """p-values of three tests that ranks are uniform on 0 to L, each of shape (Q,) for Q quantities.

    Attributes:
        chi2: chi-squared over bins (Talts et al. 2018).
        ks: Kolmogorov-Smirnov, ranks spread over their cells at random, which makes its distribution exact.
        ecdf: the largest deviation of the empirical distribution function, in units of its own spread at each rank;
            its simultaneous bands are those of Säilynoja et al. (2022), algorithm 2.
    """

    chi2: torch.Tensor
    ks: torch.Tensor
    ecdf: torch.Tensor

    @property
    def pvalues(self) -> torch.Tensor:
        """The smallest of the three, times three (Bonferroni), (Q,); a test with too few data sets is left out."""
        tests = torch.stack([self.chi2, self.ks, self.ecdf])
        used = (~tests.isnan()).sum(0)
        return (tests.nan_to_num(1.0).min(0).values * used).clamp_max(1.0)


def uniformity(ranks: torch.Tensor, num_draws: int) -> Uniformity:
    """Tests that each column of ranks, (M, Q), is uniform on 0 to L = `num_draws`."""
    counts = np.asarray(ranks.cpu())
    spread = np.asarray(torch.rand(ranks.shape, dtype=torch.float64))
    tests = (
        _chi_squared(counts, num_draws),
        _kolmogorov_smirnov((counts + spread) / (num_draws + 1)),
        _ecdf_pvalues(counts, num_draws),
    )
    return Uniformity(*(torch.from_numpy(np.asarray(p, dtype=np.float64)) for p in tests))


def _chi_squared(ranks: Any, num_draws: int) -> Any:
    from scipy.stats import chi2

    num_sets, width = ranks.shape
    bins = min(BINS, num_draws + 1, num_sets // 5)
    if bins < 2:
        return np.full(width, np.nan)
    place = np.arange(num_draws + 1) * bins // (num_draws + 1)  # bins differ by a rank where they do not divide
    expected = num_sets * np.bincount(place, minlength=bins) / (num_draws + 1)
    flat = place[ranks] + bins * np.arange(width)
    seen = np.bincount(flat.ravel(), minlength=bins * width).reshape(width, bins)
    return chi2.sf(((seen - expected) ** 2 / expected).sum(1), bins - 1)


def _kolmogorov_smirnov(uniform: Any) -> Any:
    from scipy.stats import kstwo

    num_sets = len(uniform)
    ordered = np.sort(uniform, axis=0)
    steps = np.arange(num_sets)[:, None] / num_sets
    distance = np.maximum(ordered - steps, steps + 1 / num_sets - ordered).max(0)
    return kstwo.sf(distance, num_sets)


# --- simultaneous bands of the empirical distribution function ---------------------------------------------------------


def ecdf_counts(ranks: torch.Tensor, num_draws: int) -> torch.Tensor:
    """How many ranks are below i, for i = 1 ... L: (L, Q) from ranks (M, Q)."""
    seen = torch.zeros(num_draws + 1, ranks.shape[1], dtype=torch.long)
    seen.scatter_add_(0, ranks.cpu(), torch.ones_like(ranks.cpu()))
    return seen.cumsum(0)[:-1]


def ecdf_bands(num_sets: int, num_draws: int, coverage: float = 0.95) -> tuple[torch.Tensor, torch.Tensor]:
    """Bands that the share of ranks below i leaves nowhere with probability `coverage` (Säilynoja et al. 2022, eq. 7).

    Args:
        num_sets: M ranks of one quantity.
        num_draws: L, ranks are 0 to L.
        coverage: simultaneous over i; counts are whole numbers, so the true coverage is a little larger.

    Returns:
        the lower and the upper bound of the share at i = 1 ... L, each (L,).
    """
    table = _crossing_table(num_sets, num_draws)
    gamma = math.exp(np.interp(math.log(1 - coverage), np.log(table), _LOG_GAMMAS))
    inside = torch.from_numpy(_pointwise_tails(num_sets, num_draws) >= gamma).double()
    lower, upper = inside.argmax(1), num_sets - inside.flip(1).argmax(1)
    return lower.double() / num_sets, upper.double() / num_sets


def _ecdf_pvalues(ranks: Any, num_draws: int) -> Any:
    """The chance that uniform ranks leave their pointwise intervals as far as these do anywhere."""
    num_sets = len(ranks)
    counts = ecdf_counts(torch.from_numpy(ranks), num_draws).numpy()
    tails = _pointwise_tails(num_sets, num_draws)
    gamma = np.take_along_axis(tails, counts, axis=1).min(0)  # Säilynoja et al. 2022, algorithm 2
    table = np.log(_crossing_table(num_sets, num_draws))
    p = np.exp(np.interp(np.log(np.maximum(gamma, 1e-300)), _LOG_GAMMAS, table))
    return np.where(gamma >= math.exp(_LOG_GAMMAS[-1]), 1.0, p)


@functools.lru_cache(maxsize=8)
def _pointwise_tails(num_sets: int, num_draws: int) -> Any:
    """2 min(P(C ≤ c), P(C ≥ c)) of the count of ranks below i, for i = 1 ... L and c = 0 ... M: (L, M + 1)."""
    from scipy.stats import binom

    counts = np.arange(num_sets + 1)
    points = np.arange(1, num_draws + 1)[:, None] / (num_draws + 1)
    below = binom.cdf(counts, num_sets, points)
    above = binom.sf(counts - 1, num_sets, points)
    return 2 * np.minimum(below, above)


@functools.lru_cache(maxsize=8)
def _crossing_table(num_sets: int, num_draws: int) -> Any:
    """The chance that the function leaves pointwise intervals of level 1 − gamma somewhere, for the gammas above."""
    tails = _pointwise_tails(num_sets, num_draws)
    chances = [_crossing(num_sets, num_draws, tails >= math.exp(log_gamma)) for log_gamma in _LOG_GAMMAS]
    return np.maximum.accumulate(np.maximum(chances, 1e-14))


def _crossing(num_sets: int, num_draws: int, inside: Any) -> float:
    """The chance that some count lies outside the intervals, `inside` being (L, M + 1).

    The recursion of Säilynoja et al. (2022, eq. 9 to 11) over i. Counts between neighbouring i are taken as independent
    Poisson variables, which they are given that all M add up.
    """
    from scipy.stats import poisson

    rise = poisson.pmf(np.arange(num_sets + 1), num_sets / (num_draws + 1))
    rise = rise[: np.flatnonzero(rise > 1e-18)[-1] + 1]
    reached, low = np.ones(1), 0
    for allowed in inside:
        places = np.flatnonzero(allowed)
        moved = np.convolve(reached, rise)  # chances of the counts low, low + 1, ...
        here = np.zeros(places[-1] - places[0] + 1)
        start, stop = max(low, places[0]), min(low + len(moved), places[-1] + 1)
        if start < stop:
            here[start - places[0] : stop - places[0]] = moved[start - low : stop - low]
        reached, low = here, places[0]
    missing = num_sets - low - np.arange(len(reached))  # ranks that must follow in the last cell
    last = np.where(missing < len(rise), rise[np.clip(missing, 0, len(rise) - 1)], 0.0)
    total = float((reached * last).sum()) / float(poisson.pmf(num_sets, num_sets))
    return max(0.0, 1.0 - total)
