"""Annealed importance sampling: chains from the guide or the prior to the posterior, for any pair."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch

from pyro_vae.component import Declared
from pyro_vae.engine.machine import memory_kept
from pyro_vae.engine.replay import COMPILE, Compile
from pyro_vae.errors import InputError, one_of, positive_int
from pyro_vae.inference.importance import Layout, bytes_per_draw, find_layout
from pyro_vae.inference.paths import Chains, Path, Start, State
from pyro_vae.inference.transitions import StepSizes, hamiltonian_step
from pyro_vae.pair import Batch, ModelAndGuide, evaluating, kept_random_state

BURN_IN = 64  # data on which step sizes and temperatures are found
PILOT = 4  # of how many temperatures the first of the two passes over them takes one


class Annealing(Declared):
    """How chains are annealed.

    Temperatures β_0 = 0 < ... < β_T = 1 are spaced so that log-weights gain equal variance at each; step sizes belong to a
    temperature and a coordinate. Both are found on chains of their own, on up to 64 of the data, and are fixed before the
    chains that are scored start, so that the estimates are unbiased.

    Args:
        temperatures: T, how many steps lead from f_0 to the posterior.
        start: f_0: "guide", q(z | x), or "prior", p(z), for guides that are far off or have no density at given z.
        leapfrog_steps: gradients per step of Hamiltonian Monte Carlo.
    """

    def __init__(self, temperatures: int = 500, start: Start = "guide", leapfrog_steps: int = 5):
        self.temperatures = positive_int("temperatures", temperatures)
        self.start: Start = one_of("start", start, ["guide", "prior"])
        self.leapfrog_steps = positive_int("leapfrog_steps", leapfrog_steps)


@dataclass(frozen=True)
class Schedule:
    """What was found before the chains start.

    Attributes:
        betas: β_0 ... β_T, (T + 1,).
        step_sizes: of β_1 ... β_{T−1}, (T − 1, D).
    """

    betas: list[float]
    step_sizes: torch.Tensor


class Annealer:
    """Chains on any data of a pair, with a schedule that is found once.

    Args:
        pair: model and guide; in evaluation mode and without gradients while this is used.
        examples: the data, on the pair's device.
        num_chains: K.
        settings: temperatures, start and leapfrog steps.
        compile: as in `log_likelihood`.
        max_memory: bytes that one chunk's tensors may take.

    Attributes:
        rows: how many data are annealed at once; short batches are padded to it, so that one graph serves all.
        acceptance: mean probability of acceptance of each temperature in the scored chains so far.
    """

    def __init__(
        self,
        pair: ModelAndGuide,
        examples: Any,
        num_chains: int,
        settings: Annealing,
        compile: Compile,
        max_memory: int,
    ):
        one_of("compile", compile, COMPILE)
        first = next(iter(examples.batches(4)))[1]
        self.pair, self.examples, self.settings, self.num_chains = pair, examples, settings, num_chains
        self.layout: Layout = find_layout(pair, first)
        at_once = max_memory / bytes_per_draw(pair, first, self.layout) / 2  # gradients take as much again
        self.rows = min(max(1, int(at_once / num_chains)), len(examples))
        batches = 2 - (-len(examples) // self.rows)
        calls = batches * settings.temperatures * max(1, settings.leapfrog_steps - 1)
        self.path = Path(pair, first, self.layout, settings.start, num_chains, compile, calls)
        self.acceptance: list[float] = []

    @property
    def exact(self) -> bool:
        """Whether all latents are discrete and summed over, so that nothing is left to anneal."""
        return self.path.coordinates.size == 0

    def chains(self, batch: Batch) -> Chains:
        """The chains of a batch of at most `rows` data, padded to `rows`."""
        short = self.rows - len(batch[0])
        if short:
            batch = tuple(t[torch.arange(self.rows, device=t.device) % len(t)] for t in batch)
        return self.path.on(batch)

    # --- the schedule -------------------------------------------------------------------------------------------------

    def tune(self) -> Schedule:
        """Finds temperatures and step sizes on a part of the data, whose chains are thrown away."""
        settings = self.settings
        if settings.temperatures == 1 or self.exact:
            return Schedule([0.0, 1.0], torch.empty(0, self.path.coordinates.size))
        power = 5.0 if settings.start == "prior" else 2.0
        coarse = max(10, settings.temperatures // PILOT)
        betas = [(t / coarse) ** power for t in range(coarse + 1)]
        parts = list(self._burn_in())
        _, spread = self._pass(parts, betas)
        betas = respaced(betas, spread, settings.temperatures)
        step_sizes, _ = self._pass(parts, betas)
        return Schedule(betas, step_sizes)

    def _burn_in(self) -> Iterator[Chains]:
        """Chains on data spread evenly over the set."""
        chosen = torch.linspace(0, len(self.examples) - 1, min(BURN_IN, len(self.examples))).long()
        _, batch = next(iter(self.examples.batches(len(chosen), order=chosen)))  # a loader gives its own first batch
        for part in self.parts(tuple(t[: len(chosen)] for t in batch)):
            yield self.chains(part)

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """The batch in parts of at most `rows` data."""
        yield from zip(*(t.split(self.rows) for t in batch), strict=True)

    def _pass(self, parts: list[Chains], betas: list[float]) -> tuple[torch.Tensor, list[float]]:
        """Step sizes, (T − 1, D), and the spread of log f_1 − log f_0 within a datum at each β."""
        states = [chains.first() for chains in parts]
        sizes = StepSizes(torch.ones_like(states[0].u[0, 0]))
        spread = [_spread(states)]
        states[0] = sizes.settle(parts[0], states[0], betas[1], self.settings.leapfrog_steps)
        for beta in betas[1:-1]:
            sizes.follow(State(*(torch.cat(ts, 1) for ts in zip(*(vars(s).values() for s in states), strict=True))))
            sizes.kept.append(sizes.now)
            probabilities = []
            for i, chains in enumerate(parts):
                states[i], probability = hamiltonian_step(
                    chains, states[i], beta, sizes.now, self.settings.leapfrog_steps
                )
                probabilities.append(probability)
            sizes.learn(torch.cat(probabilities, 1))
            spread.append(_spread(states))
        return torch.stack(sizes.kept), [*spread, spread[-1]]

    # --- the chains that are scored -----------------------------------------------------------------------------------

    def forward(self, batch: Batch, schedule: Schedule) -> torch.Tensor:
        """log w of chains from f_0 to the posterior, (K, N): E[w] = p(x) (Neal 2001, eq. 9)."""
        chains = self.chains(batch)
        state = chains.first()
        order = range(1, len(schedule.betas))
        return self._along(chains, state, schedule, order)[:, : len(batch[0])]

    def reverse(self, batch: Batch, u: torch.Tensor, schedule: Schedule, mixing: int) -> torch.Tensor:
        """log w of chains from the posterior back to f_0, (K, N): E[1 / w] = 1 / p(x) (Grosse et al. 2015, eq. 4).

        Args:
            batch: data.
            u: one exact draw from each datum's posterior, (N, D), at which all K chains start.
            schedule: of the forward chains.
            mixing: steps at β = 1 that draw the K chains apart before they leave.
        """
        chains = self.chains(batch)
        u = u[torch.arange(self.rows, device=u.device) % len(u)]
        state = chains.at(u.expand(self.num_chains, *u.shape).contiguous())
        if len(schedule.step_sizes):
            for _ in range(mixing):
                state, _ = hamiltonian_step(chains, state, 1.0, schedule.step_sizes[-1], self.settings.leapfrog_steps)
        order = range(len(schedule.betas) - 1, 0, -1)
        return self._along(chains, state, schedule, order)[:, : len(batch[0])]

    def _along(self, chains: Chains, state: State, schedule: Schedule, order: range) -> torch.Tensor:
        betas = schedule.betas
        log_w = torch.zeros_like(state.log_joint, dtype=torch.float64)
        for t in order:
            log_w += (betas[t] - betas[t - 1]) * (state.log_joint - state.log_start).double()
            between = t if order.step > 0 else t - 1  # the temperature whose step leads to the next weight
            if 0 < between < len(betas) - 1:
                state, probability = hamiltonian_step(
                    chains, state, betas[between], schedule.step_sizes[between - 1], self.settings.leapfrog_steps
                )
                self.acceptance.append(probability.mean().item())
        bad = (log_w.isnan() | (log_w == math.inf)).any(0) | (log_w == -math.inf).all(0)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise InputError(f"The chains of datum {row} in the chunk have weights that are not finite.")
        return log_w


def _spread(states: list[State]) -> float:
    """The standard deviation over chains of log f_1 − log f_0, root mean square over data; over data where K is 1."""
    gain = torch.cat([state.log_joint - state.log_start for state in states], 1).double()
    variance = gain.var(0).mean() if len(gain) > 1 else gain.var() if gain.numel() > 1 else gain.new_ones(())
    return max(variance.sqrt().item(), 1e-12) if variance.isfinite() else 1.0


def respaced(betas: list[float], spread: list[float], count: int) -> list[float]:
    """Temperatures such that (β_t − β_{t−1}) · spread(β) is the same for all t (Gelman & Meng 1998, eq. 49).

    A tenth of them is spent as the pilot's were, so that a spread that was badly estimated leaves no large gap.
    """
    grid = torch.tensor(betas, dtype=torch.float64)
    sd = torch.tensor(spread, dtype=torch.float64)
    length = torch.cat([torch.zeros(1).double(), ((sd[1:] + sd[:-1]) / 2 * grid.diff()).cumsum(0)])
    place = 0.9 * length / length[-1] + 0.1 * torch.linspace(0, 1, len(grid)).double()
    wanted = torch.linspace(0, 1, count + 1).double()
    right = torch.searchsorted(place, wanted).clamp(1, len(grid) - 1)
    left = right - 1
    share = (wanted - place[left]) / (place[right] - place[left])
    found = torch.lerp(grid[left], grid[right], share).clamp(0, 1)
    found[0], found[-1] = 0.0, 1.0
    return found.tolist()


def annealed_weights(
    pair: ModelAndGuide,
    examples: Any,
    num_chains: int,
    settings: Annealing,
    *,
    seed: int,
    compile: Compile = "auto",
    max_memory: int = 2**26,
    progress: bool = False,
) -> tuple[torch.Tensor, float]:
    """log w of K chains for each datum, (K, N) in float64, and the mean acceptance (NaN if nothing was proposed).

    Args:
        pair: model and guide.
        examples: checked data on the pair's device.
        num_chains: K.
        settings: how chains are annealed.
        seed: of schedule and chains.
        compile, max_memory, progress: as in `log_likelihood`.
    """
    with annealing_on(pair, examples, seed):
        annealer = Annealer(pair, examples, num_chains, settings, compile, max_memory)
        with kept_random_state(examples.device, (seed + 1_000_003) % 2**32):  # the chains' noise owes nothing to it
            schedule = annealer.tune()
        parts = []
        for batch in bar(examples.batches(annealer.rows), -(-len(examples) // annealer.rows), progress):
            parts += [annealer.forward(part, schedule) for part in annealer.parts(batch)]
    acceptance = annealer.acceptance
    return torch.cat(parts, 1), sum(acceptance) / len(acceptance) if acceptance else math.nan


@contextlib.contextmanager
def annealing_on(pair: ModelAndGuide, examples: Any, seed: int) -> Iterator[None]:
    """What holds while chains run: trajectories may leave a support by rounding, and are then rejected, not refused."""
    with evaluating(pair), kept_random_state(examples.device, seed), memory_kept(), pyro.validation_enabled(False):
        yield


def bar(batches: Any, total: int, progress: bool) -> Iterator[Batch]:
    """The batches, under a progress bar if asked for."""
    if progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, total=total, desc="log p(x)", leave=False)
    for _, batch in batches:
        yield batch
