"""Simulation-based calibration of a guide: are its draws those of the model's own posterior?

Data sets of one datum each are simulated from the model, and the latents that they were made from are ranked among the
guide's draws. If the guide is the posterior, truth and draws are exchangeable, and every such rank is uniform (Talts et
al. 2018). An amortised guide needs no refit, so all data sets are one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pyro_vae.errors import InputError, positive_int
from pyro_vae.inference.importance import Draws, Values, bytes_per_draw, find_layout, per_datum
from pyro_vae.inference.quantities import (
    DENSITY,
    JOINT,
    PRODUCTS,
    TARP,
    columns_of,
    product_pairs,
    residual_products,
)
from pyro_vae.inference.ranks import Uniformity, ranks_of, uniformity
from pyro_vae.inference.results import Result, Rows, chance, few
from pyro_vae.inference.simulation import Simulated, simulate
from pyro_vae.pair import Batch, ModelAndGuide, PairLike, as_batch, as_pair, blank_batch, evaluating, kept_random_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Quantity = Callable[[Any, Any], torch.Tensor]

LATENTS = "latents"
ABOUT = (
    "the guide is tested against the posterior of the model itself, on data that the model made up; whether the model fits "
    "data is for posterior_predictive to say"
)


@dataclass(frozen=True, repr=False)
class Calibration(Result):
    """Ranks of true latents among a guide's draws, and tests that they are uniform.

    Attributes:
        ranks: by latent site, (M, *shape) whole numbers from 0 to L, the shape that of one datum's latent.
        pvalues: by latent site, of shape `shape`: the p-value of each dimension, corrected over all latents (Holm) and
            over its three tests.
        tests: the uncorrected p-values of the three tests by latent site, each (Q,) in the order of the flat latent.
        function_ranks: by function of z and x, (M,) or (M, F): the log joint density, the guide's log density, products of
            two latents' residuals, distances to random points (TARP), and those that were asked for.
        group_pvalues: one p-value for all latents together and one for each function, each corrected within itself.
        num_datasets: M.
        num_draws: L.
        level: the chance that an exact guide fails `calibrated` is at most this.
        notes: what the reader must know.
    """

    title: ClassVar[str] = "calibration of the guide (simulation-based)"
    derived: ClassVar[tuple[str, ...]] = ("pvalue", "calibrated", "coverage", "rejected")

    ranks: dict[str, torch.Tensor]
    pvalues: dict[str, torch.Tensor]
    tests: dict[str, Uniformity]
    function_ranks: dict[str, torch.Tensor]
    group_pvalues: dict[str, float]
    num_datasets: int
    num_draws: int
    level: float = 0.05
    notes: tuple[str, ...] = field(default=(ABOUT,))

    @property
    def pvalue(self) -> float:
        """For all latents and functions together: the smallest of the groups', times their number (Bonferroni)."""
        return min(1.0, min(self.group_pvalues.values()) * len(self.group_pvalues))

    @property
    def calibrated(self) -> bool:
        """Whether nothing speaks against the guide at `level`."""
        return self.pvalue > self.level

    @property
    def rejected(self) -> tuple[str, ...]:
        """The latent dimensions and functions whose ranks are not uniform at `level`, with what that means."""
        # The groups share the level, so each has a part of it.
        share = self.level / len(self.group_pvalues)
        found = []
        for site, p in self.pvalues.items():
            ranks = self.ranks[site].reshape(self.num_datasets, -1)
            for place in (p.flatten() <= share).nonzero().flatten().tolist():
                name = columns_name(site, self.ranks[site].shape[1:], place)
                found.append(f"{name}: {_meaning(ranks[:, place], self.num_draws, LATENTS)}")
        for name, ranks in self.function_ranks.items():
            if self.group_pvalues[name] <= share:
                found.append(f"{name}: {_meaning(ranks, self.num_draws, name)}")
        return tuple(found)

    @property
    def coverage(self) -> dict[str, float]:
        """Share of data sets whose true latents lie in the guide's region of highest density, by its nominal content.

        Empty where the guide's density at given latents is not known.
        """
        if DENSITY not in self.function_ranks:
            return {}
        outside = (self.num_draws - self.function_ranks[DENSITY]).double()  # draws of higher density than the truth
        levels = (0.5, 0.8, 0.9, 0.95)
        return {f"{level:.0%}": (outside < level * (self.num_draws + 1)).double().mean().item() for level in levels}

    def rows(self) -> Rows:
        """The verdict, then each group."""
        verdict = "nothing speaks against it" if self.calibrated else "not the model's posterior"
        rows = [
            ("verdict", f"{verdict} ({chance(self.pvalue)} for all, level {self.level:g})"),
            ("simulated", f"{self.num_datasets} data sets of one datum, {self.num_draws} draws each"),
        ]
        size = sum(p.numel() for p in self.pvalues.values())
        rows += [(f"{size} latents" if name == LATENTS else name, chance(p)) for name, p in self.group_pvalues.items()]
        if self.coverage:
            rows.append(("expected coverage", ", ".join(f"{c:.1%} of {level}" for level, c in self.coverage.items())))
        return rows + ([("rejected", few(self.rejected, 4))] if self.rejected else [])

    def plot(self) -> Figure:
        """Each rank's distribution function less the uniform one with its simultaneous band, and the expected coverage."""
        from pyro_vae.inference.charts import calibration_chart

        return calibration_chart(self)


def calibrate(
    pair: PairLike,
    num_datasets: int = 500,
    num_draws: int = 99,
    *,
    functions: Mapping[str, Quantity] | None = None,
    like: Any = None,
    condition: Any = None,
    level: float = 0.05,
    seed: int = 0,
    max_memory: int = 2**26,
) -> Calibration:
    """Tests the guide against the model's own posterior, by simulation-based calibration in one batch.

    Ranked are every latent dimension (Talts et al. 2018, algorithm 2), log p(x, z), which sees latents that the guide
    ignores, and dependence that it lacks (Modrák et al. 2023, section 3), log q(z | x), which gives the expected coverage of
    regions of highest density (Hermans et al. 2022), products of two latents' residuals, distances to random points (TARP,
    Lemos et al. 2023, algorithm 2), and `functions`. Tests are chi-squared, Kolmogorov-Smirnov and that of Säilynoja et al.
    (2022), corrected by Holm and Bonferroni, so that an exact guide fails with a chance of at most `level`.

    Args:
        pair: model and guide. One data set is one datum x.
        num_datasets: M, data sets to simulate.
        num_draws: L, draws from the guide for each.
        functions: further quantities to rank, by name: f(z, x) of draws z, (K, N, *shape), a dict of such tensors if
            there are several latents, and the batch x, (N, *event_shape), a tuple if there are several tensors. Each
            returns (K, N) and must not draw random numbers.
        like: a batch that shows what data look like, for a pair that has not been fitted here; its further tensors are
            used in turn where the model takes some.
        condition: M rows of each of the further tensors of a batch, in place of those of `like`.
        level: of the verdict.
        seed: of all draws; the pair and torch's random state are left as they were.
        max_memory: bytes that the draws of one part of the data sets may take.

    Raises:
        InputError: if the model can't be simulated, or sites lie outside the plate over the data.
    """
    pair = as_pair(pair)
    positive_int("num_datasets", num_datasets)
    positive_int("num_draws", num_draws)
    if num_datasets < 10 or num_draws < 4:
        raise InputError(f"num_datasets={num_datasets} must be at least 10, and num_draws={num_draws} at least 4.")
    if not 0 < level < 1:
        raise InputError(f"level={level!r} must lie between 0 and 1.")
    blank = _blank(pair, num_datasets, like, condition)
    with evaluating(pair), kept_random_state(blank[0].device, seed):
        drawn = simulate(pair, blank)
        ranked = _Ranked(pair, drawn, num_draws, dict(functions or {}), max_memory)
        return ranked.result(level)


def columns_name(site: str, shape: torch.Size, place: int) -> str:
    """The name of one dimension of a latent, such as z[3]."""
    if shape.numel() == 1:
        return site
    index = [int(i) for i in torch.unravel_index(torch.tensor(place), shape)]
    return f"{site}[{', '.join(map(str, index))}]"


def _blank(pair: ModelAndGuide, size: int, like: Any, condition: Any) -> Batch:
    if condition is None and like is not None:
        further = as_batch(like)[1:]
        condition = tuple(t[torch.arange(size, device=t.device) % len(t)] for t in further) or None
    return blank_batch(pair, size, like, condition)


class _Ranked:
    """Ranks of every quantity, from parts of the data sets that fit the memory."""

    def __init__(
        self, pair: ModelAndGuide, drawn: Simulated, num_draws: int, functions: dict[str, Quantity], max_memory: int
    ):
        self.pair, self.drawn, self.num_draws, self.functions = pair, drawn, num_draws, functions
        self.notes = [ABOUT]
        batch = drawn.batch
        self.num_datasets = len(batch[0])
        self.layout = find_layout(pair, tuple(t[:4] for t in batch))
        auxiliary = [name for name in self.layout.event_dims if name not in drawn.latents]
        if auxiliary:
            self.notes.append(f"log q(z | x) is not ranked: the guide has auxiliary variables {auxiliary}")
        self.density_known = not auxiliary
        per_row = bytes_per_draw(pair, tuple(t[:4] for t in batch), self.layout) * (num_draws + 1)
        self.rows = max(1, min(self.num_datasets, int(max_memory / per_row)))
        self.columns = columns_of(drawn, self.layout)
        if self.columns.masked:
            self.notes.append(f"left out, since they are masked for some data: {few(self.columns.masked)}")
        self.pairs = product_pairs(self.columns)
        truth = self.columns.flat(drawn.values)[0]  # (M, Q)
        self.truth, self.spread = truth, truth.double().std(0).clamp_min(1e-12).to(truth.dtype)

    def result(self, level: float) -> Calibration:
        parts: dict[str, list[torch.Tensor]] = {}
        for start in range(0, self.num_datasets, self.rows):
            for name, found in self._part(slice(start, start + self.rows)).items():
                parts.setdefault(name, []).append(found)
        joined = {name: torch.cat(part).cpu() for name, part in parts.items()}
        ranks = {name: r for name, r in joined.items() if len(r) == self.num_datasets}  # others were given up half-way
        tests = {name: uniformity(r.reshape(len(r), -1), self.num_draws) for name, r in ranks.items()}
        groups = {name: _smallest(test.pvalues) for name, test in tests.items()}
        latents, all_tests = ranks.pop(LATENTS), tests[LATENTS]
        holm = _holm(all_tests.pvalues)
        split = self.columns.split
        three = {
            name: Uniformity(*(split(p)[name].flatten() for p in (all_tests.chi2, all_tests.ks, all_tests.ecdf)))
            for name in self.columns.sizes
        }
        return Calibration(
            split(latents),
            split(holm),
            three,
            ranks,
            groups,
            self.num_datasets,
            self.num_draws,
            level,
            tuple(self.notes),
        )

    def _part(self, part: slice) -> dict[str, torch.Tensor]:
        """Ranks of the data sets in `part`, by group: (n, Q) or (n,)."""
        batch = tuple(t[part] for t in self.drawn.batch)
        num = len(batch[0])
        draws = Draws(self.pair, batch, self.layout)
        values, sites = draws.sample(self.num_draws + 1)
        for name, site in self.drawn.latents.items():  # the truth takes the place of the first draw
            values[name] = values[name].clone()
            values[name][0] = self.columns.rows(name, site["value"], part)
        flat = self.columns.flat(values)  # (L + 1, n, Q)
        ranks = {LATENTS: ranks_of(flat), JOINT: self._ranks(JOINT, draws.log_joint(values, self.num_draws + 1))}
        density = self._density(draws, values, sites, num)
        if density is not None:
            ranks[DENSITY] = self._ranks(DENSITY, density)
        if len(self.pairs):
            ranks[PRODUCTS] = ranks_of(residual_products(flat, self.pairs))
        anchors = self.truth.roll(1, 0)[part]  # the latents of another data set, independent of this one
        ranks[TARP] = ranks_of(((flat - anchors) / self.spread).square().sum(-1))
        for name, function in self.functions.items():
            ranks[name] = self._ranks(name, self._asked(name, function, values, batch))
        return ranks

    def _density(self, draws: Draws, values: Values, sites: Any, num: int) -> torch.Tensor | None:
        if not self.density_known:
            return None
        try:
            given = draws.guide_sites(values, sites, self.num_draws + 1)
            return per_datum(given, self.layout, self.num_draws + 1, num, draws.fold_guide)
        except (NotImplementedError, KeyError) as error:  # Pyro's and the package's ways of saying so
            self.density_known = False
            reason = " ".join(str(error).split())
            self.notes.append(f"log q(z | x) is not ranked, and coverage is not known: {reason}")
            return None

    def _asked(self, name: str, function: Quantity, values: Values, batch: Batch) -> torch.Tensor:
        shaped = {site: self.columns.data_first(site, values[site]) for site in self.columns.sizes}
        z = next(iter(shaped.values())) if len(shaped) == 1 else shaped
        out = function(z, batch[0] if len(batch) == 1 else batch)
        wanted = (self.num_draws + 1, len(batch[0]))
        if not isinstance(out, torch.Tensor) or tuple(out.shape) != wanted:
            came = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise InputError(f"functions[{name!r}] returned {came}; a tensor of shape (K, N) = {wanted} is wanted.")
        return out

    def _ranks(self, name: str, numbers: torch.Tensor) -> torch.Tensor:
        if numbers.isnan().any():
            raise InputError(f"{name} is not a number for some draws; check the model's and the guide's parameters.")
        return ranks_of(numbers)


def _smallest(p: torch.Tensor) -> float:
    """The smallest p-value times their number (Bonferroni)."""
    return min(1.0, p.min().item() * p.numel())


def _holm(p: torch.Tensor) -> torch.Tensor:
    """p-values corrected for their number, step by step (Holm 1979)."""
    order = p.argsort()
    factors = torch.arange(len(p), 0, -1, dtype=p.dtype)
    corrected = (p[order] * factors).clamp_max(1.0).cummax(0).values
    return torch.empty_like(p).scatter_(0, order, corrected)


def _meaning(ranks: torch.Tensor, num_draws: int, name: str) -> str:
    """What ranks that are not uniform say of the guide."""
    u = (ranks.double().flatten() + 0.5) / (num_draws + 1)
    shift = (u.mean() - 0.5).item() * math.sqrt(12 * len(u))
    spread = (u.var() - 1 / 12).item() * math.sqrt(180 * len(u))
    if name == JOINT:
        return "draws are less likely than the truth" if shift > 0 else "draws are likelier than the truth"
    if name == DENSITY:
        return "too narrow, the truth lies in its tails" if shift < 0 else "too wide"
    if name == PRODUCTS:
        return "dependence between latents is missing or wrong"
    if abs(spread) >= abs(shift):
        return "too narrow" if spread > 0 else "too wide"
    return "draws are too small" if shift > 0 else "draws are too large"
