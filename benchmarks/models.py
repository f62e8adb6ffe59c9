"""One training step of each of the library's models: the same pair by Pyro's SVI and by ours."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import Trace_ELBO

from benchmarks import torch_peers
from benchmarks.data import binary_images
from benchmarks.harness import Options, Row, compare, interleave, rows, say, seconds

REFERENCE = "pyro.infer.SVI"
BATCHES, CHECKED_STEPS, CHECKED_LAST = 10, 60, 20


@dataclass(frozen=True)
class Case:
    """A model, the batches it trains on, and how many steps make a turn."""

    name: str
    pair: Callable[[], Any]
    batch: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    size: int
    turn: int


def run(options: Options) -> list[Row]:
    """All models, one after another; within each, the contenders interleaved."""
    return [row for case in _cases() for row in _case(case, options)]


def _cases() -> tuple[Case, ...]:
    from pyro_vae import DeepMarkovModel, HierarchicalVAE, SemiSupervisedVAE, VeryDeepVAE

    def labelled(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x, torch.arange(len(x)) % 20 - 10  # half of them known

    def sequences(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.reshape(-1, 28, 28), 28 - torch.arange(len(x)) % 8  # rows as steps, unequal ends

    def small(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x.reshape(-1, 1, 28, 28)[:, :, 6:22, 6:22].contiguous(),)

    strings = {"encoder": "16x2,16d2,8x2,8d2,4x2,4d4,1x1", "decoder": "1x1,4m1,4x2,8m4,8x3,16m8,16x3"}
    return (
        Case("HierarchicalVAE, 3 levels, batch 128", lambda: HierarchicalVAE((784,)), lambda x: (x,), 128, 40),
        Case(
            "VeryDeepVAE, 12 levels, 16 x 16, batch 32",
            lambda: VeryDeepVAE((1, 16, 16), **strings, width=32, latent_channels=4),
            small,
            32,
            8,
        ),
        Case("SemiSupervisedVAE, batch 100", lambda: SemiSupervisedVAE((784,)), labelled, 100, 10),
        Case("DeepMarkovModel, 28 steps, batch 32", lambda: DeepMarkovModel((28, 28)), sequences, 32, 8),
    )


def _case(case: Case, options: Options) -> list[Row]:
    say(f"models: {case.name}")
    torch._dynamo.reset()
    images = binary_images(options, BATCHES * case.size)
    data = [case.batch(part) for part in images.split(case.size)]
    contenders = {name: torch_peers.many(step, data) for name, step in _steps(case.pair).items()}
    last = {name: _trained(name, run) / case.size for name, run in contenders.items()}
    turn = max(2, case.turn // 5) if options.quick else case.turn
    turns = {name: lambda run=run: seconds(lambda: run(turn)) / turn for name, run in contenders.items()}
    made = rows("models", case.name, interleave(turns, options.rounds), REFERENCE)
    for row in made:
        compare(row, last[row.contender], last[REFERENCE])
        say(f"  {row.contender}: {statistics.median(row.times) * 1e3:.3f} ms, {row.check}")
    return made


def _steps(make_pair: Callable[[], Any]) -> dict[str, Callable[[tuple[torch.Tensor, ...]], Any]]:
    """Each on a pair of its own that starts from the same weights, by the pair's own objective."""
    made = {}
    for name, compile in ((REFERENCE, None), ("pyro_vae SVI, graph", "graph"), ("pyro_vae SVI, inductor", "inductor")):
        torch.manual_seed(0)
        pair = make_pair()
        pair.objective = getattr(pair, "default_objective", Trace_ELBO)
        step = torch_peers.pyro_step(pair) if compile is None else torch_peers.drop_in(pair, compile).step
        made[name] = lambda batch, step=step: step(*batch)
    return made


def _trained(name: str, run: Callable[[int], Any]) -> float:
    """Trains for the check, which also warms up all compilers, and returns the mean of the last losses."""
    torch.manual_seed(1)
    losses = [float(loss) for loss in run(CHECKED_STEPS)]
    say(f"  {name} has trained")
    return sum(losses[-CHECKED_LAST:]) / CHECKED_LAST
