"""The engine's constants and tricks, measured: `python -m benchmarks.policy [--quick]`.

What `pyro_vae/engine/policy.py` calls measured is measured here, and each pass of `pyro_vae/engine/lower` is left out in
turn. A pass stays where it gains 3 % of a step on some processor that is in use.
"""

from __future__ import annotations

import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import pyro
import torch

from benchmarks import pairs
from benchmarks.harness import interleave
from pyro_vae.engine import lower, policy
from pyro_vae.engine.observe import Executed
from pyro_vae.engine.trace import capture
from pyro_vae.engine.watch import Watch
from pyro_vae.svi import SVI

CASES = (
    ("tutorial VAE", pairs.Tutorial, 32, 100),
    ("tutorial VAE", pairs.Tutorial, 128, 60),
    ("12 levels", pairs.Hierarchical, 128, 30),
)


def main(quick: bool) -> None:
    """Prints every figure as it is known."""
    rounds = 3 if quick else 15
    watching(rounds)
    estimates(rounds)
    for name, pair, batch, turn in CASES[: 1 if quick else None]:
        passes(f"{name}, batch {batch}", pair, batch, turn // 5 if quick else turn, rounds)


def seconds(function: Callable[[], Any], turn: int) -> float:
    """Seconds of a call, over a turn of them."""
    start = time.perf_counter()
    for _ in range(turn):
        function()
    return (time.perf_counter() - start) / turn


def watching(rounds: int) -> None:
    """How long a thousand watched places take to compare (`MOST_PLACES`)."""
    roots = [types.SimpleNamespace(**{f"name_{i}": float(i) for i in range(25)}) for _ in range(40)]
    watch = Watch(lambda: roots, Executed(any_name=True))
    turns = interleave({"compare": lambda: seconds(lambda: watch.changed(follow=True), 200)}, rounds)
    time_of_one = statistics.median(turns["compare"])
    print(f"comparing {len(watch.places)} watched places: {time_of_one * 1e6:.1f} us")


def stepper(pair: Any, batch: int, compile: str) -> Callable[[], Any]:
    """A step of a pair, warmed up."""
    torch.manual_seed(0)
    x = torch.rand(batch, 784).round()
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), pair.objective(), compile=compile)
    for _ in range(35):
        svi.step(x)
    return lambda: svi.step(x)


def estimates(rounds: int) -> None:
    """What is estimated from a graph's sizes, beside what it takes (`seconds_of`, `seconds_to_compile`, the gain)."""
    for name, kind, batch, turn in CASES:
        pair, x = kind(), torch.rand(batch, 784).round()
        captured = capture(lambda x, pair=pair: pair.loss(x), x)
        plain, compiled = stepper(kind(), batch, "graph"), stepper(kind(), batch, "inductor")
        took = interleave(
            {"graph": lambda p=plain, t=turn: seconds(p, t), "compiled": lambda c=compiled, t=turn: seconds(c, t)},
            rounds,
        )
        graph, fast = (statistics.median(took[which]) for which in ("graph", "compiled"))
        compiling = policy.seconds_to_compile(captured.graph.graph)
        print(
            f"{name}, batch {batch}: {graph * 1e3:.2f} ms uncompiled, compiling saves {1 - fast / graph:.2f} of it "
            f"(policy: {policy.GAIN_OF_COMPILING:.2f}); forward alone is estimated as "
            f"{lower.seconds_of(captured) * 1e3:.2f} ms, compiling as {compiling:.1f} s"
        )


def passes(name: str, kind: Callable[[], Any], batch: int, turn: int, rounds: int) -> None:
    """A compiled step with all passes, and with each left out."""
    every = list(lower.PASSES)
    steps = {}
    try:
        for left_out in (None, *every):
            lower.PASSES[:] = [one for one in every if one is not left_out]
            label = "all passes" if left_out is None else f"without {left_out[0].__name__}"
            steps[label] = stepper(kind(), batch, "inductor")
    finally:
        lower.PASSES[:] = every
    took = interleave({label: lambda s=step: seconds(s, turn) for label, step in steps.items()}, rounds)
    for label, times in took.items():
        ratio = statistics.median(a / b for a, b in zip(times, took["all passes"], strict=True))
        print(f"{name}, {label}: {statistics.median(times) * 1e3:.3f} ms, {ratio:.3f} of that with all")


if __name__ == "__main__":
    main("--quick" in sys.argv)
