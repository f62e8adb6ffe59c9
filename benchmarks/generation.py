"""Drawing 10,000 images from the tutorial's VAE."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro import poutine
from pyro.infer import Predictive

from benchmarks.harness import Options, Row, compare, interleave, rows, say, seconds
from benchmarks.importance import trained
from pyro_vae import generate

PART = "generate"
REFERENCE = "pyro.infer.Predictive, parallel"


def run(options: Options) -> list[Row]:
    """Ours, and the three ways to ask Pyro; the mean pixel of the draws must agree."""
    count = 1_000 if options.quick else 10_000
    say(f"{PART}: training")
    vae, _ = trained(options, 6_400 if options.quick else 60_000)
    free = poutine.uncondition(vae.model)
    one, many = torch.zeros(1, 784), torch.zeros(count, 784)

    def predictive(samples: int, like: torch.Tensor, parallel: bool = False) -> Callable[[], torch.Tensor]:
        drawn = Predictive(free, num_samples=samples, return_sites=("obs",), parallel=parallel)
        return lambda: drawn(like)["obs"]

    ways = {
        REFERENCE: predictive(count, one, parallel=True),
        "pyro.infer.Predictive, one batch": predictive(1, many),
        "pyro.infer.Predictive, one by one": predictive(count, one),
        "pyro_vae.generate": lambda: generate(vae, count, like=many),
    }
    means = {}
    for name, draw in ways.items():
        x = draw()
        assert x.numel() == count * 784, f"{name} drew {tuple(x.shape)}"
        means[name] = x.mean().item()
    turns = {name: lambda draw=draw: seconds(draw) for name, draw in ways.items()}
    made = rows(PART, f"{count:,} images", interleave(turns, options.rounds), REFERENCE)
    for row in made:
        compare(row, means[row.contender], means[REFERENCE], "mean pixel")
    return made
