"""How a pair uses its latents: information per dimension, active units, and the terms that the KL is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pyro_vae.data import Binarization
from pyro_vae.errors import InputError, positive_int
from pyro_vae.inference.aggregate import Aggregate, aggregate
from pyro_vae.inference.calibration import columns_name
from pyro_vae.inference.checked import held_data
from pyro_vae.inference.dimensions import dimension_kl, factorises
from pyro_vae.inference.importance import find_layout, summed_but, traced_layout
from pyro_vae.inference.results import Bounds, Result, Rows, few, nats
from pyro_vae.inference.terms import COLLAPSED
from pyro_vae.pair import (
    Batch,
    DataPlate,
    ModelAndGuide,
    PairLike,
    as_pair,
    evaluating,
    kept_random_state,
    log_prob,
    sample_sites,
    trace_pair,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACTIVE = 0.01  # variance of a posterior mean over the data, in squared latent units (Burda et al. 2016, section 5.2)
ADVICE = (
    "anneal the KL (objectives.Annealed) or leave it some nats for free (objectives.FreeBits)",
    "take a decoder that can do less by itself, or a larger latent_dim for fewer collapsed levels",
    "a prior that is learned (priors.Vamp, priors.Mixture) lets latents carry more at the same cost",
)


@dataclass(frozen=True, repr=False)
class LatentUse(Result):
    """What latents carry, in nats per datum.

    Attributes:
        kl: by latent site, the KL of each dimension's marginal, KL(q(z_d | x) ‖ p(z_d | ...)), mean over data; sites where a
            marginal density is not known are left out.
        kl_stderr: the standard errors of `kl` over the data.
        site_kl: the KL of each site as a whole.
        activity: variance over data of each dimension's posterior mean, by site.
        active: whether that is above 0.01, by site.
        mutual_information: I(x; z) under q, between a lower and an upper bound.
        total_correlation: KL(q(z) ‖ Π_d q(z_d)) of the aggregate posterior q(z), likewise; None if not known.
        dimension_kl: Σ_d KL(q(z_d) ‖ p(z_d)), likewise; None if not known.
        rate, distortion: KL and −E log p(x | z), whose sum is −ELBO (Alemi et al. 2018); with their standard errors.
        collapsed: dimensions that carry next to nothing: not active, and a KL below 0.1 nats.
        num_data: N; num_aggregated: how many of them the aggregate posterior is made of.
        notes: what the reader must know.
    """

    title: ClassVar[str] = "use of latents"
    derived: ClassVar[tuple[str, ...]] = ("num_active", "advice")

    kl: dict[str, torch.Tensor]
    kl_stderr: dict[str, torch.Tensor]
    site_kl: dict[str, float]
    activity: dict[str, torch.Tensor]
    active: dict[str, torch.Tensor]
    mutual_information: Bounds | None
    total_correlation: Bounds | None
    dimension_kl: Bounds | None
    rate: float
    rate_stderr: float
    distortion: float
    distortion_stderr: float
    collapsed: tuple[str, ...]
    num_data: int
    num_aggregated: int
    notes: tuple[str, ...] = ()

    @property
    def num_active(self) -> int:
        """How many dimensions are active."""
        return int(sum(a.sum() for a in self.active.values()))

    @property
    def advice(self) -> tuple[str, ...]:
        """What to try, if at least half of the dimensions have collapsed."""
        return ADVICE if 2 * len(self.collapsed) >= sum(a.numel() for a in self.active.values()) else ()

    def rows(self) -> Rows:
        """Rate and distortion, then the parts of the rate."""
        total = sum(a.numel() for a in self.active.values())
        rows = [
            ("rate (KL)", f"{nats(self.rate, self.rate_stderr)} nats ({self.num_data} data)"),
            ("distortion", f"{nats(self.distortion, self.distortion_stderr)} nats"),
            ("active units", f"{self.num_active} of {total} (variance of the posterior mean above {ACTIVE})"),
        ]
        for site, kl in self.kl.items():
            top = kl.flatten().sort(descending=True).values
            shown = few([f"{v:.2f}" for v in top.tolist()], 8)
            rows.append((f"KL per dimension, {site}", f"{shown} nats, in falling order"))
        for name, bounds in (
            ("mutual information", self.mutual_information),
            ("total correlation", self.total_correlation),
            ("dimension-wise KL", self.dimension_kl),
        ):
            if bounds is not None:
                rows.append((name, f"{bounds} nats"))
        if self.collapsed:
            rows.append(("collapsed", few(self.collapsed, 8)))
        return rows + [("to try", line) for line in self.advice]

    def plot(self) -> Figure:
        """The KL of each dimension in falling order, active ones apart."""
        from pyro_vae.inference.charts import latents_chart

        return latents_chart(self)


def latent_use(
    pair: PairLike,
    x: Any,
    num_samples: int = 8,
    *,
    max_aggregated: int = 1000,
    binarize: Binarization | None = None,
    seed: int = 0,
    batch_size: int = 2048,
) -> LatentUse:
    """KL per dimension, active units (Burda et al. 2016), and what the KL consists of (Chen et al. 2018, eq. 2):
    KL = I(x; z) + total correlation + dimension-wise KL, for a prior of independent dimensions.

    KLs are closed forms between normals, else means over draws. The aggregate posterior is known by a sample of data
    alone; its terms are therefore bounds in expectation (Poole et al. 2019), which close as data are added: the lower bound
    of the mutual information cannot exceed log `num_aggregated`, the upper one is at most the KL.

    Args:
        pair: model and guide.
        x: data in any form that `fit` takes.
        num_samples: draws per datum, at least 2.
        max_aggregated: so many data, drawn at random, make up the aggregate posterior; its cost grows with their square.
        binarize: as in `log_likelihood`.
        seed: of all draws; torch's random state is left as it was.
        batch_size: how many data at once.

    Raises:
        InputError: on bad data, or where sites lie outside the plate over the data.
    """
    pair = as_pair(pair)
    for name, value in (("num_samples", num_samples), ("max_aggregated", max_aggregated)):
        if positive_int(name, value) < 2:
            raise InputError(f"{name}={value} must be at least 2: spreads are measured.")
    positive_int("batch_size", batch_size)
    examples = held_data(pair, x, binarize, seed)
    with evaluating(pair), kept_random_state(examples.device, seed):
        sums = _Sums(pair)
        for _, batch in examples.batches(batch_size):
            sums.add(batch, num_samples)
        chosen = torch.randperm(len(examples))[:max_aggregated].sort().values
        parts, notes = _aggregated(pair, examples.batch(chosen)) if len(chosen) > 1 else (None, ())
    return sums.result(parts, len(chosen), notes)


def _aggregated(pair: ModelAndGuide, batch: Batch) -> tuple[Aggregate | None, tuple[str, ...]]:
    layout = find_layout(pair, batch)
    try:
        return aggregate(pair, batch, layout, 2**27), ()
    except (NotImplementedError, KeyError) as error:
        reason = " ".join(str(error).split())
        return None, (f"left out, mutual information and what else needs the aggregate posterior: {reason}",)


class _Sums:
    """Per datum: KL of each dimension, of each site, distortion, and posterior means."""

    def __init__(self, pair: ModelAndGuide):
        self.pair = pair
        self.kl: dict[str, list[torch.Tensor]] = {}
        self.site_kl: dict[str, list[torch.Tensor]] = {}
        self.means: dict[str, list[torch.Tensor]] = {}
        self.noise: dict[str, list[torch.Tensor]] = {}
        self.distortion: list[torch.Tensor] = []
        self.unknown: set[str] = set()

    def add(self, batch: Batch, num_samples: int) -> None:
        runs = [self._run(batch) for _ in range(num_samples)]
        self.distortion.append(torch.stack([run.pop("")[0] for run in runs]).mean(0))
        for name in runs[0]:
            parts, wholes, means = zip(*(run[name] for run in runs), strict=True)
            if any(part is None for part in parts):
                self.unknown.add(name)
            else:
                self.kl.setdefault(name, []).append(torch.stack(parts).mean(0))
            self.site_kl.setdefault(name, []).append(torch.stack(wholes).mean(0))
            spread = torch.stack(means)
            self.means.setdefault(name, []).append(spread.mean(0))
            self.noise.setdefault(name, []).append(spread.var(0) / num_samples)

    def _run(self, batch: Batch) -> dict[str, Any]:
        """For each latent the KL per dimension (N, *shape), as a whole (N,), and the mean; under "" the distortion."""
        guide_trace, model_trace = trace_pair(self.pair, batch)
        plate = traced_layout(guide_trace, model_trace, len(batch[0])).plate
        rows = len(batch[0])
        observed = sample_sites(model_trace, observed=True).values()
        found: dict[str, Any] = {"": (-sum(_per_row(log_prob(site), plate, rows) for site in observed),)}
        in_guide = sample_sites(guide_trace, observed=False)
        for name, site in sample_sites(model_trace, observed=False).items():
            found[name] = _compared(in_guide[name], site, plate, rows)
        return found

    def result(self, parts: Aggregate | None, num_aggregated: int, notes: tuple[str, ...]) -> LatentUse:
        joined = {name: torch.cat(rows).cpu() for name, rows in self.kl.items() if name not in self.unknown}
        site_kl = {name: torch.cat(rows).cpu() for name, rows in self.site_kl.items()}
        num = len(next(iter(site_kl.values())))
        rate, distortion = sum(site_kl.values()), torch.cat(self.distortion).cpu()
        assert isinstance(rate, torch.Tensor)
        activity = {}
        for name, rows in self.means.items():
            means, noise = torch.cat(rows).cpu(), torch.cat(self.noise[name]).cpu()
            spread = means.var(0) if num > 1 else torch.full(means.shape[1:], math.nan, dtype=means.dtype)
            activity[name] = (spread - noise.mean(0)).clamp_min(0)  # without what so few draws add by chance
        active = {name: value > ACTIVE for name, value in activity.items()}
        kl = {name: rows.mean(0) for name, rows in joined.items()}
        if self.unknown:
            notes += (
                f"KL per dimension is not known for {few(sorted(self.unknown))}: their densities have no known marginals",
            )
        mutual, correlation, dimension = _bounds(parts, rate)
        return LatentUse(
            kl,
            {name: rows.std(0) / math.sqrt(num) for name, rows in joined.items()},
            {name: rows.mean().item() for name, rows in site_kl.items()},
            activity,
            active,
            mutual,
            correlation,
            dimension,
            *(rate.mean().item(), _stderr(rate)),
            *(distortion.mean().item(), _stderr(distortion)),
            _collapsed(kl, active),
            num,
            num_aggregated,
            notes,
        )


def _per_row(term: torch.Tensor, plate: DataPlate, rows: int) -> torch.Tensor:
    """A site's log density summed over inner plates, (N,)."""
    term = term.expand(torch.broadcast_shapes(term.shape, (rows, *(1,) * (-plate.dim - 1))))
    return summed_but(term, plate.dim).reshape(rows).double()


def _compared(q: Any, p: Any, plate: DataPlate, rows: int) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    event = q["fn"].event_dim
    value = q["value"]
    whole = _per_row(log_prob(q), plate, rows) - _per_row(log_prob(p), plate, rows)

    def data_first(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.movedim(tensor.dim() - event + plate.dim, 0).double()

    compared = dimension_kl(q["fn"], p["fn"], value)
    part = None
    if compared is not None:
        mask = q["mask"]
        kept = compared[0]
        if isinstance(mask, torch.Tensor):
            kept = kept * mask.reshape(*mask.shape, *(1,) * event)
        part = data_first(kept)
        if compared[1] and factorises(q["fn"]) and factorises(p["fn"]):
            whole = part.reshape(rows, -1).sum(-1)
    return part, whole, data_first(_mean(q["fn"], value))


def _mean(fn: Any, value: torch.Tensor) -> torch.Tensor:
    try:
        mean = fn.mean
    except NotImplementedError:
        return value
    return mean.expand(value.shape) if bool(mean.isfinite().all()) else value


def _stderr(rows: torch.Tensor) -> float:
    return (rows.double().std() / math.sqrt(len(rows))).item() if len(rows) > 1 else math.nan


def _bounds(parts: Aggregate | None, rate: torch.Tensor) -> tuple[Bounds | None, Bounds | None, Bounds | None]:
    """Mutual information, total correlation and dimension-wise KL from densities of the aggregate posterior."""
    if parts is None:
        return None, None, None
    low, high = parts.own - parts.among, parts.own - parts.others
    if rate.mean() < high.mean():  # KL(q(z) ‖ p(z)) ≥ 0, so the rate is a bound too
        high = rate
    mutual = Bounds(low.mean().item(), high.mean().item(), _stderr(low), _stderr(high))
    if parts.among_parts is None or parts.others_parts is None:
        return mutual, None, None
    correlation = _between(parts.others - parts.among_parts.sum(-1), parts.among - parts.others_parts.sum(-1))
    if parts.prior_parts is None:
        return mutual, correlation, None
    return (
        mutual,
        correlation,
        _between((parts.others_parts - parts.prior_parts).sum(-1), (parts.among_parts - parts.prior_parts).sum(-1)),
    )


def _between(low: torch.Tensor, high: torch.Tensor) -> Bounds:
    """Bounds of a divergence, which is no less than 0."""
    return Bounds(max(0.0, low.mean().item()), max(0.0, high.mean().item()), _stderr(low), _stderr(high))


def _collapsed(kl: dict[str, torch.Tensor], active: dict[str, torch.Tensor]) -> tuple[str, ...]:
    names = []
    for site, on in active.items():
        low = kl[site] < COLLAPSED if site in kl else torch.ones_like(on)
        for place in (~on & low).flatten().nonzero().flatten().tolist():
            names.append(columns_name(site, on.shape, place))
    return tuple(names)
