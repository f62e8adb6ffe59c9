"""The best member of the guide's family for each datum: its parameters, optimised with the model frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from pyro_vae.engine.kept import kept_with
from pyro_vae.engine.replay import Compile, Replay
from pyro_vae.inference.family import Free, Key, ShiftedGuide, members
from pyro_vae.inference.importance import Draws, Layout, bytes_per_draw, find_layout
from pyro_vae.pair import Batch, ModelAndGuide, Pair, kept_random_state

DRAWS = 16  # per datum and step
TOLERANCE = 0.01  # nats that a further cycle may gain where the search has converged


@dataclass(frozen=True)
class Optimizer:
    """Cycles of Adam with a rate that falls by a cosine to a hundredth; each starts where the last one ended.

    Attributes:
        steps: in one cycle.
        lr: at the start of a cycle.
        most_cycles: after which the search ends, converged or not.
    """

    steps: int = 200
    lr: float = 0.1
    most_cycles: int = 8


class Search:
    """Shifts of the guide's parameters for one batch that raise each datum's own bound.

    Args:
        pair: model and guide, in evaluation mode.
        batch: N data.
        layout: of the pair.
        optimizer: how it is done.
        compile: how gradients are computed, as in `log_likelihood`.
        at_once: draws, over all data, whose tensors fit in memory.

    Attributes:
        notes: what is not optimised.
        converged: (N,), whether a further cycle gained no more than 0.01 nats or a standard error of the gain.
        cycles: done so far.
    """

    def __init__(
        self, pair: ModelAndGuide, batch: Batch, layout: Layout, optimizer: Optimizer, compile: Compile, at_once: int
    ):
        self.pair, self.batch, self.layout, self.optimizer, self.at_once = pair, batch, layout, optimizer, at_once
        self.free, self.notes = members(pair, batch)
        calls = optimizer.steps * 2
        key = ("best member", compile, repr(layout), optimizer.steps)
        kept = kept_with(pair)
        if key not in kept:
            programs = (pair.model, pair.guide)
            kept[key] = Replay(
                _Gradient(pair, layout, self.free), programs, compile=compile, calls=lambda *_: calls, what="the search"
            )
        self._gradient = kept[key]
        self.converged = torch.zeros(len(batch[0]), dtype=torch.bool, device=batch[0].device)
        self.cycles = 0

    def start(self) -> list[torch.Tensor]:
        """No shift: the member that the guide chose."""
        like = next((t for t in self.batch if t.is_floating_point()), torch.zeros(()))
        return [like.new_zeros(free.shape) for free in self.free]

    def run(self) -> list[torch.Tensor]:
        """The shifts at the end of the search; where it never gained, those of the start."""
        best = self.start()
        worth = self.bounds(best, 100, seed=0)
        for cycle in range(self.optimizer.most_cycles):
            found = self._cycle(best)
            self.cycles = cycle + 1
            now = self.bounds(found, 100, seed=0)
            gain = now - worth
            error = gain.std(0) / math.sqrt(len(gain))
            gain = gain.mean(0)
            self.converged = gain < error.clamp_min(TOLERANCE)
            better = gain > error  # less may be noise, and where the encoder is right nothing is better
            best = [torch.where(self._by_datum(better, b), f, b) for f, b in zip(found, best, strict=True)]
            worth = torch.where(better, now, worth)
            if self.converged.all():
                break
        return best

    def _by_datum(self, chosen: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """(N,) laid along the data's dimension of a shift."""
        at = next(i for i, size in enumerate(shift.shape) if size == len(chosen))
        return chosen.reshape(-1, *(1,) * (shift.dim() - at - 1))

    def _cycle(self, start: list[torch.Tensor]) -> list[torch.Tensor]:
        """Adam (Kingma & Ba 2015, algorithm 1) on each datum's bound; the mean of the last tenth of the steps."""
        shifts = [shift.clone() for shift in start]
        first, second, mean = ([torch.zeros_like(shift) for shift in shifts] for _ in range(3))
        steps = self.optimizer.steps
        last = max(1, steps // 10)
        for step in range(1, steps + 1):
            lr = self.optimizer.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
            slopes = self._gradient(*shifts, *self.batch)
            for i, slope in enumerate(slopes):
                first[i] = 0.9 * first[i] + 0.1 * slope
                second[i] = 0.999 * second[i] + 0.001 * slope.square()
                move = first[i] / (1 - 0.9**step) / ((second[i] / (1 - 0.999**step)).sqrt() + 1e-8)
                shifts[i] = shifts[i] + lr * move.nan_to_num()
                if step > steps - last:
                    mean[i] = mean[i] + shifts[i] / last
        return mean

    def bounds(self, shifts: list[torch.Tensor], num_samples: int, seed: int) -> torch.Tensor:
        """log p(x, z) − log q(z | x) at draws from the shifted guide, (S, N); equal seeds have equal noise."""
        pair = shifted(self.pair, self.free, shifts)
        parts: list[torch.Tensor] = []
        size = max(1, self.at_once // len(self.batch[0]))
        with kept_random_state(self.batch[0].device, seed):
            for done in range(0, num_samples, size):
                draws = Draws(pair, self.batch, self.layout)
                parts.append(draws.log_weights(min(size, num_samples - done)).double())
        return torch.cat(parts)


class _Gradient:
    """Of the mean bound of several draws in the shifts, a function of tensors alone."""

    def __init__(self, pair: ModelAndGuide, layout: Layout, free: list[Free]):
        self.pair, self.layout, self.free = pair, layout, free

    def __call__(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        shifts, batch = tensors[: len(self.free)], tensors[len(self.free) :]
        with torch.enable_grad():
            at = [shift.detach().requires_grad_() for shift in shifts]
            pair = shifted(self.pair, self.free, at, by_path=True)
            weights = Draws(pair, batch, self.layout).log_weights(DRAWS)
            ones = torch.ones(weights.shape, dtype=weights.dtype, device=weights.device)
            return [slope / DRAWS for slope in torch.autograd.grad(weights, at, ones)]


def shifted(pair: ModelAndGuide, free: list[Free], shifts: Any, by_path: bool = False) -> Pair:
    """The pair with its guide's parameters shifted."""
    by_key: dict[Key, torch.Tensor] = {one.key: shift for one, shift in zip(free, shifts, strict=True)}
    return Pair(pair.model, ShiftedGuide(pair.guide, by_key, by_path))


def draws_at_once(pair: ModelAndGuide, batch: Batch, max_memory: int) -> tuple[Layout, int]:
    """The pair's layout, and how many draws with their gradients fit in memory."""
    layout = find_layout(pair, batch)
    return layout, max(DRAWS, int(max_memory / bytes_per_draw(pair, batch, layout) / 2))
