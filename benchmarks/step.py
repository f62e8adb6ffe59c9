"""One training step: zero the gradients, forward, backward, Adam."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import Trace_ELBO

from benchmarks import pairs, torch_peers
from benchmarks.data import batches
from benchmarks.harness import (
    HANDING,
    Apart,
    Options,
    Row,
    compare,
    handing_over,
    interleave,
    missing,
    rows,
    say,
    seconds,
)

REFERENCE = "pyro.infer.SVI"
NUMPYRO, LOOP = "NumPyro, svi.update", "NumPyro, fori_loop of 100"
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
    """All cases, one after another; within each, all contenders interleaved, each in a process of its own."""
    return [row for case in CASES for row in _case(case, options)]


def _case(case: Case, options: Options) -> list[Row]:
    say(f"step: {case.name}")
    names = list(torch_peers.STEPS)
    if not isinstance(case.pair().objective(), Trace_ELBO):
        names.remove("pyro.infer.SVI, JitTrace_ELBO")
    lacking = missing("step", case.name, "numpyro", "jax") if case.pair is pairs.Tutorial else None
    if case.pair is pairs.Tutorial and not lacking:
        names += [NUMPYRO, LOOP]
    turn = max(10, case.turn // 5) if options.quick else case.turn
    contenders = {name: Apart(_contender, name, case, options) for name in names}
    try:
        last = {}
        for name, contender in contenders.items():
            last[name] = contender("train", CHECKED_STEPS) / case.batch
            say(f"  {name} has trained")
        turns = {name: lambda one=one: one("turn", turn) for name, one in contenders.items()}
        figures = interleave(turns | {HANDING: handing_over}, options.rounds)
    finally:
        for contender in contenders.values():
            contender.close()
    handed = figures.pop(HANDING)
    made = rows("step", case.name, figures, REFERENCE)
    for row in made:
        compare(row, last[row.contender], last[REFERENCE])
        row.details[f"{HANDING}, s"] = handed
        say(f"  {row.contender}: {statistics.median(row.times) * 1e3:.3f} ms, {row.check}")
    return made + ([lacking] if lacking else [])


def _contender(name: str, case: Case, options: Options) -> Callable[[str, int], float]:
    """Trains for the check, which also warms up all compilers, or takes a turn and returns the seconds of a step."""
    data = batches(options, case.batch, case.pair.event_shape)
    torch.manual_seed(0)
    pair = case.pair()
    if name in torch_peers.STEPS:
        run = torch_peers.many(torch_peers.STEPS[name](pair), data)
    else:
        from benchmarks import numpyro_peers

        run = (numpyro_peers.device_loop if name == LOOP else numpyro_peers.update_by_update)(pair, data)

    def call(what: str, count: int) -> float:
        if what == "train":
            torch.manual_seed(
                1
            )  # one noise for all who draw it from torch, as 200 steps into a training much hangs on it
            losses = [float(loss) for loss in run(count)]
            return sum(losses[-CHECKED_LAST:]) / CHECKED_LAST
        if name == LOOP:
            count = 100
        else:
            run(3)  # what others have put out of the caches comes back
        return seconds(lambda: run(count)) / count

    return call
