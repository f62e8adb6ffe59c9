"""An epoch on MNIST, data loading included: 60,000 images in batches of 128."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch

from benchmarks import pairs, torch_peers
from benchmarks.data import grey_images
from benchmarks.harness import HANDING, Apart, Options, Row, compare, handing_over, interleave, missing, rows, say
from pyro_vae import VAE, fit
from pyro_vae.networks import MLP

PART = "epoch"
REFERENCE = "Pyro's tutorial loop, 1 worker"
NO_WORKERS = "Pyro's tutorial loop, 0 workers"
SLICED = "Pyro SVI, batches sliced in memory"
PYTHAE = "Pythae, BaseTrainer"
PYROVED = "pyroVED, SVItrainer"
OURS = "pyro_vae.fit, dynamic binarisation"
EPOCHS = 20  # of a fit; Pyro's tutorial trains 101


def run(options: Options) -> list[Row]:
    """All loops interleaved, an epoch per turn, each in a process of its own; ours is set up and trained anew each turn.

    Peers are set up beforehand. What `fit` does before its first step, capturing and compiling, is in its figure; from
    the second round on it finds what it compiled in Inductor's cache.
    """
    count = 12_800 if options.quick else 60_000
    case = f"{count:,} images, batch 128"
    extra = [row for row in (missing(PART, case, "pythae"), missing(PART, case, "pyroved")) if row]
    if options.data_root is None:
        extra.append(Row(PART, case, "torchvision + DataLoader", note="left out: needs --data-root"))
    names = _names(options, [row.contender for row in extra])
    say(f"{PART}: {', '.join(names)}")
    losses: dict[str, list[float]] = {name: [] for name in names}
    fits: list[Any] = []
    loops = {name: Apart(_contender, name, options, count) for name in [*names, OURS]}

    def turn(name: str) -> Callable[[], float]:
        def one() -> float:
            taken, loss = loops[name]()
            losses[name].append(loss)
            return taken

        return one

    def fit_turn() -> float:
        fits.append(loops[OURS]())
        return fits[-1]["seconds"] / len(fits[-1]["history"])

    try:
        figures = interleave(
            {name: turn(name) for name in names} | {OURS: fit_turn, HANDING: handing_over}, options.rounds
        )
    finally:
        for loop in loops.values():
            loop.close()
    handed, reference = figures.pop(HANDING), names[0]
    losses[OURS] = [fits[0]["history"][0]["loss"]]
    # Pythae's KL is exact, and without the noise of a drawn one the first epoch ends 2 % lower, in Pyro as there.
    exact = pyro.infer.TraceMeanField_ELBO()
    wanted = {PYTHAE: _sliced_loop(grey_images(options, count), exact)()} if PYTHAE in losses else {}
    figures["… an epoch after its first"] = [_later(made) for made in fits]
    figures["… its first epoch and all set-up"] = [made["seconds"] - sum(_seconds(made)[1:]) for made in fits]
    made = rows(PART, case, figures, reference)
    for row in made:
        row.details[f"{HANDING}, s"] = handed
        if row.contender in losses:
            compare(
                row, losses[row.contender][0], wanted.get(row.contender, losses[reference][0]), "first epoch's loss"
            )
        if row.contender == OURS:
            epochs = len(fits[-1]["history"])
            row.note = f"a fit of {epochs} epochs / {epochs}, set-up included; how: {fits[-1]['how']}"
    return made + extra


def _fit(images: torch.Tensor, epochs: int) -> dict[str, Any]:
    vae = VAE((784,), 50, encoder=MLP([400]), decoder=MLP([400]))
    start = time.perf_counter()
    result = fit(vae, images, binarize="dynamic", epochs=epochs, batch_size=128, seed=0, device="cpu", progress=False)
    seconds = time.perf_counter() - start
    return {"history": result.history, "seconds": seconds, "how": getattr(result, "how", "")}


def _seconds(made: dict[str, Any]) -> list[float]:
    return [row["seconds"] for row in made["history"]]


def _later(made: dict[str, Any]) -> float:
    return statistics.median(_seconds(made)[1:])


def _names(options: Options, lacking: list[str]) -> list[str]:
    """The peers that can run here, the reference first."""
    loaders = [] if options.data_root is None else [REFERENCE, NO_WORKERS]
    peers = {"pythae": PYTHAE, "pyroved": PYROVED}
    return [*loaders, SLICED, *(name for package, name in peers.items() if package not in lacking)]


def _contender(name: str, options: Options, count: int) -> Callable[[], Any]:
    """Trains one epoch and returns its seconds and its mean loss; ours a whole fit, and returns all that came of it."""
    images = grey_images(options, count)
    if name == OURS:
        return lambda: _fit(images, 3 if options.quick else EPOCHS)
    if name == PYTHAE:
        from benchmarks import pythae_peers

        folder = tempfile.TemporaryDirectory()  # it goes with the function that holds it
        epoch = functools.partial(_first, pythae_peers.epoch(_fresh(), images, Path(folder.name)), folder)
    elif name == PYROVED:
        from benchmarks import pyroved_peers

        epoch = pyroved_peers.epoch(images)
    elif name == SLICED:
        epoch = _sliced_loop(images)
    else:
        epoch = _tutorial_loop(options, count, 1 if name == REFERENCE else 0)

    def one() -> tuple[float, float]:
        start = time.perf_counter()
        loss = epoch()
        return time.perf_counter() - start, loss

    return one


def _first(epoch: Callable[[], float], *_kept: Any) -> float:
    return epoch()


def _fresh() -> pairs.Tutorial:
    torch.manual_seed(0)
    return pairs.Tutorial(grey=True)


def _tutorial_loop(options: Options, count: int, workers: int) -> Callable[[], float]:
    """As in Pyro's tutorial: torchvision's MNIST, ToTensor, a shuffled DataLoader; grey pixels as they are."""
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    dataset = Subset(MNIST(options.data_root, train=True, transform=ToTensor()), range(count))
    loader = DataLoader(dataset, batch_size=128, shuffle=True, num_workers=workers)
    step = torch_peers.pyro_step(_fresh())

    def epoch() -> float:
        return sum(step(x.view(-1, 784)) for x, _ in loader) / count

    return epoch


def _sliced_loop(images: torch.Tensor, objective: Any = None) -> Callable[[], float]:
    """What a careful user of Pyro writes: all images in one tensor, batches cut from it by index."""
    step = torch_peers.pyro_step(_fresh(), objective)

    def epoch() -> float:
        order = torch.randperm(len(images))
        return sum(step(images[part]) for part in order.split(128)) / len(images)

    return epoch
