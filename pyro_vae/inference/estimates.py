"""An estimate of log p(x) for each datum, with what makes it believable."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from pyro_vae.inference.diagnostics import effective_sample_size, smoothed_tail
from pyro_vae.inference.results import Result

SMOOTHED_ABOVE = 0.5  # k-hat from which the weights' variance is infinite


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
        smoothed: (N,) log p(x_n) with the largest weights Pareto-smoothed where k-hat is above 0.5, elsewhere `values`
            (Vehtari et al. 2024): less noise for some bias, and no bound. None where nothing is smoothed.
        method: "importance" or "annealed".
        acceptance: mean acceptance of the annealed chains' proposals.
    """

    derived: ClassVar[tuple[str, ...]] = ("mean", "stderr", "mean_mc_stderr", "num_data")

    values: torch.Tensor
    mc_stderr: torch.Tensor
    khat: torch.Tensor
    ess: torch.Tensor
    num_samples: int
    notes: tuple[str, ...] = ()
    smoothed: torch.Tensor | None = None
    method: str = "importance"
    acceptance: float = math.nan

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

    def rows(self) -> list[tuple[str, str]]:
        rows = [
            ("log p(x), nats per datum", f"{self.mean:.3f} ± {self.stderr:.3f}"),
            ("Monte Carlo error", f"{self.mean_mc_stderr:.3f}"),
            ("data", f"{self.num_data}"),
        ]
        if self.method == "annealed":
            return [*rows, ("chains", f"{self.num_samples}"), ("acceptance", f"{self.acceptance:.0%}")]
        rows += [("samples", f"{self.num_samples}"), ("k-hat", self.khat_summary)]
        if self.smoothed is not None:
            rows.append(("Pareto-smoothed", f"{self.smoothed_mean:.3f}"))
        return rows

    def __str__(self) -> str:
        if self.method == "annealed":
            how = f"{self.num_samples} chains; Monte Carlo error {self.mean_mc_stderr:.3f}, annealed"
            line = f"{self.mean:.3f} ± {self.stderr:.3f} nats per datum ({self.num_data} data, {how})"
            return "\n".join([line, *(f"note: {note}" for note in self.notes)])
        line = (
            f"{self.mean:.3f} ± {self.stderr:.3f} nats per datum ({self.num_data} data, {self.num_samples} samples; "
            f"Monte Carlo error {self.mean_mc_stderr:.3f}, k-hat {self.khat_summary})"
        )
        return "\n".join([line, *(f"note: {note}" for note in self.notes)])

    @property
    def smoothed_mean(self) -> float:
        """Mean over the data of the smoothed values, of the plain ones where nothing is smoothed."""
        return (self.values if self.smoothed is None else self.smoothed).double().mean().item()

    @property
    def khat_summary(self) -> str:
        """How many data have a k-hat that warns, in words."""
        if self.khat.isnan().all():
            return "unknown from so few samples"
        return f"above 0.7 for {(self.khat > 0.7).double().mean().item():.1%} of the data"


def from_log_weights(log_w: torch.Tensor, notes: tuple[str, ...] = (), acceptance: float = math.nan) -> LogLikelihood:
    """The estimate of K annealed weights for each datum, log p(x) ≈ log 1/K Σ_k w_k.

    Args:
        log_w: (K, N).
        notes, acceptance: as in `LogLikelihood`.
    """
    log_w = log_w.double()
    num_chains = len(log_w)
    log_sum = log_w.logsumexp(0)
    ess = effective_sample_size(log_sum, (2 * log_w).logsumexp(0))
    return LogLikelihood(
        log_sum - math.log(num_chains),
        log_mean_error(log_w),
        torch.full_like(log_sum, math.nan),
        ess,
        num_chains,
        notes,
        method="annealed",
        acceptance=acceptance,
    )


def log_mean_error(log_w: torch.Tensor) -> torch.Tensor:
    """Standard error of log 1/K Σ_k w_k, (N,), for K independent weights (K, N), by the delta method; NaN for K = 1."""
    if len(log_w) == 1:
        return torch.full_like(log_w[0], math.nan)
    relative = (log_w - log_w.logsumexp(0)).exp() * len(log_w)
    return relative.std(0) / math.sqrt(len(log_w))


def smoothed_sum(log_sum: torch.Tensor, log_tail: torch.Tensor, khat: torch.Tensor) -> torch.Tensor:
    """log Σ w of each datum, (N,), with the M largest weights smoothed where k-hat asks for it.

    Args:
        log_sum: of all weights.
        log_tail: the M + 1 largest, (M + 1, N).
        khat: of the tail.
    """
    asked = khat > SMOOTHED_ABOVE
    if len(log_tail) < 6 or not asked.any():
        return log_sum
    tail = log_tail[:, asked].sort(dim=0).values
    drawn = tail[1:].logsumexp(0)
    # What is left when the tail is taken away: at least the threshold's own weight.
    body = log_sum[asked] + torch.log1p(-(drawn - log_sum[asked]).exp().clamp(max=1.0))
    body = torch.maximum(body, tail[0])
    result = log_sum.clone()
    result[asked] = torch.logaddexp(body, smoothed_tail(tail).logsumexp(0))
    return result


def predictive(given: Sequence[LogLikelihood], names: Sequence[str]) -> LogLikelihood:
    """log 1/M Σ_m p(x | w_m) of each datum, from the estimates given M draws of global latents.

    The Monte Carlo error is that of the draws, by the delta method; it holds the noise of each estimate too. k-hat is the
    worst of the draws', and the effective sample size the sum over draws.

    Args:
        given: one estimate a draw, of the same data.
        names: of the global latents, for the note.
    """
    values = torch.stack([one.values for one in given])
    first = given[0]
    drawn = ", ".join(map(repr, names))
    note = f"predictive: averaged over {len(given)} draws of {drawn} from the guide, the same for all data"
    error = log_mean_error(values) if len(given) > 1 else first.mc_stderr
    return dataclasses.replace(
        first,
        values=values.logsumexp(0) - math.log(len(given)),
        mc_stderr=error,
        khat=torch.stack([one.khat for one in given]).amax(0),
        ess=torch.stack([one.ess for one in given]).sum(0),
        notes=(*first.notes, note),
        smoothed=None,
    )
