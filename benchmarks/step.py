"""One training step: zero the gradients, forward, backward, Adam."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import pairs, torch_peers
from benchmarks.data import batches
from benchmarks.harness import Options, Row, compare, interleave, missing, rows, say, seconds

REFERENCE = "pyro.infer.SVI"
LOOP = "NumPyro, fori_loop of 100"
CHECKED_STEPS, CHECKED_LAST = 200, 20  # trained before the clock starts, and how many losses of them are averaged


@dataclass(frozen=True)
class Case:
    """A pair at a batch size, and how many steps make a turn of about a second."""

    name: str
    pair: Callable[[], Any]
    batch: int
    turn: int


CASES = (
    Case("tutorial VAE, batch 32", pairs.Tutorial, 32, 200),
    Case("tutorial VAE, batch 128", pairs.Tutorial, 128, 100),
    Case("tutorial VAE, batch 512", pairs.Tutorial, 512, 50),
    Case("convolutional VAE, batch 128", pairs.Convolutional, 128, 20),
    Case("12 levels, batch 128", pairs.Hierarchical, 128, 50),
    Case("IWAE, K = 50, batch 20", pairs.ImportanceWeighted, 20, 50),
)


def run(options: Options) -> list[Row]:
    """All cases, one after another; within each, all contenders interleaved."""
    return [row for case in CASES for row in _case(case, options)]


def _case(case: Case, options: Options) -> list[Row]:
    say(f"step: {case.name}")
    # Compiled functions of the case before are of other shapes, and dynamo would compile these for shapes unknown.
    torch._dynamo.reset()
    data = batches(options, case.batch, case.pair.event_shape)
    lacking = missing("step", case.name, "numpyro", "jax") if case.pair is pairs.Tutorial else None
    contenders = {name: torch_peers.many(step, data) for name, step in torch_peers.steps(case.pair).items()}
    if case.pair is pairs.Tutorial and not lacking:
        contenders |= _numpyro(data)
    last = {name: _trained(name, run) / case.batch for name, run in contenders.items()}
    turn = max(10, case.turn // 5) if options.quick else case.turn

    def timed(name: str) -> Callable[[], float]:
        count = 100 if name == LOOP else turn

        def one_turn() -> float:
            if name != LOOP:
                contenders[name](3)  # what the peer before has put out of the caches comes back
            return seconds(lambda: contenders[name](count)) / count

        return one_turn

    figures = interleave({name: timed(name) for name in contenders}, options.rounds)
    made = rows("step", case.name, figures, REFERENCE)
    for row in made:
        compare(row, last[row.contender], last[REFERENCE])
        say(f"  {row.contender}: {statistics.median(row.times) * 1e3:.3f} ms, {row.check}")
    return made + ([lacking] if lacking else [])


def _trained(name: str, run: Callable[[int], Any]) -> float:
    """Trains for the check, which also warms up all compilers, and returns the mean of the last losses."""
    torch.manual_seed(1)  # one noise for all who draw it from torch, as 200 steps into a training much hangs on it
    losses = [float(loss) for loss in run(CHECKED_STEPS)]
    say(f"  {name} has trained")
    return sum(losses[-CHECKED_LAST:]) / CHECKED_LAST


def _numpyro(data: list[torch.Tensor]) -> dict[str, Callable[[int], Any]]:
    from benchmarks import numpyro_peers

    torch.manual_seed(0)
    vae = pairs.Tutorial()
    return {
        "NumPyro, svi.update": numpyro_peers.update_by_update(vae, data),
        LOOP: numpyro_peers.device_loop(vae, data),
    }
