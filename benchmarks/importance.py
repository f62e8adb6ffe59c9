"""Estimating log p(x) by importance sampling: seconds per million samples, on one set of trained weights."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.data import binary_images
from benchmarks.harness import Options, Row, compare, interleave, missing, rows, say, seconds
from benchmarks.pairs import Tutorial
from pyro_vae import fit, log_likelihood

PART = "importance"
REFERENCE = "Pythae, get_nll"
OURS = "pyro_vae.log_likelihood"
AT_ONCE = 4  # images: by hand, 1 to 8 were alike at 500 samples, and 32 slower

Estimate = Callable[[torch.Tensor], Any]  # from images to log p(x), of each or on average


def trained(options: Options, images: int) -> tuple[Tutorial, torch.Tensor]:
    """The tutorial's VAE after an epoch, and what it was trained on."""
    x = binary_images(options, images)
    torch.manual_seed(0)
    vae = Tutorial()
    fit(vae, x, epochs=1, seed=0, device="cpu", progress=False)
    return vae.eval(), x


def run(options: Options) -> list[Row]:
    """All contenders interleaved: ours on a whole test set, capturing once, the others on the first of the same images.

    What the others do per image does not change with their number; `log_likelihood` compiles where there are many.
    """
    whole, count, samples, few = (200, 100, 100, 20) if options.quick else (10_000, 2_000, 1_000, 100)
    say(f"{PART}: training")
    vae, x = trained(options, 6_400 if options.quick else 60_000)
    sizes = {OURS: whole, REFERENCE: few}
    case = f"{samples} samples an image, seconds per million"
    estimates = _contenders(vae, samples)
    extra = [row for row in (missing(PART, case, "pythae"), missing(PART, case, "numpyro", "jax")) if row]
    say(f"{PART}: {', '.join(estimates)}")

    def turn(name: str) -> Callable[[], float]:
        some = x[: sizes.get(name, count)]
        return lambda: seconds(lambda: estimates[name](some)) / (len(some) * samples) * 1e6

    # The mean over the first few images is what all can give; both sides' sampling errors are alike. They are seen over
    # several seeds, since a few large weights, which most estimates miss, decide much of it.
    scores = [log_likelihood(vae, x[:few], num_samples=samples, seed=seed).mean for seed in range(1, 9)]
    wanted, error = statistics.mean(scores), statistics.stdev(scores)
    values = {name: float(_mean(estimates[name](x[:few]))) for name in estimates}
    for name in estimates:
        turn(name)()  # compilers meet the sizes that are timed
    figures = interleave({name: turn(name) for name in estimates}, options.rounds)
    made = rows(PART, case, figures, REFERENCE if REFERENCE in figures else OURS)
    for row in made:
        compare(row, values[row.contender], wanted, "mean log p(x)", allowed=4 * error)
        row.note = f"on {sizes.get(row.contender, count):,} images"
    return made + extra


def _mean(values: Any) -> Any:
    return getattr(values, "mean", values) if not hasattr(values, "shape") else values.mean()


def _contenders(vae: Tutorial, samples: int) -> dict[str, Estimate]:
    made: dict[str, Estimate] = {}
    if missing(PART, "", "pythae") is None:
        from benchmarks import pythae_peers

        made[REFERENCE] = pythae_peers.log_likelihood(vae, samples)
    made[OURS] = lambda x: log_likelihood(vae, x, num_samples=samples)
    made["PyTorch by hand"] = by_hand(vae, samples)
    made["PyTorch by hand, torch.compile"] = by_hand(vae, samples, compile=True)
    if missing(PART, "", "numpyro", "jax") is None:
        from benchmarks import numpyro_peers

        made["NumPyro, vmap and jit"] = numpyro_peers.log_likelihood(vae, samples, AT_ONCE)
    return made


def by_hand(vae: Tutorial, samples: int, compile: bool = False) -> Estimate:
    """What one writes without a library: some images at a time, all samples of these at once."""
    log_weights = torch.compile(vae.log_weights, dynamic=False) if compile else vae.log_weights

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([log_weights(part, samples).logsumexp(0) for part in x.split(AT_ONCE)]) - math.log(samples)

    return run
