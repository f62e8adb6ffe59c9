"""Runs that are killed with SIGKILL at random moments and resumed, until they end; each must end in the same weights.

    python -m tests.long.kills --kills 200

Children are forked from a process that has imported everything, so a run takes about a second. They write a checkpoint
after every second step, so that many kills meet one that is being written.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from safetensors.torch import load_file
from torch import nn

from pyro_vae import fit
from tests.component_table import vae

SETTINGS: dict[str, Any] = {
    "epochs": 6, "batch_size": 10, "seed": 3, "binarize": "dynamic", "schedule": "cosine", "ema": 0.9, "compile": "eager",
    "device": "cpu", "progress": False, "checkpoint_steps": 2, "resume": True,
}  # fmt: skip


def train(folder: Path) -> None:
    """A short run with dropout, noise and binarisation drawn anew, in `folder`."""
    pyro.set_rng_seed(1)
    pair = vae(encoder=nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Linear(6, 4)))
    x = torch.rand(120, 4, generator=torch.Generator().manual_seed(0))
    fit(pair, x, out=folder, validation=x[:10], **SETTINGS)


def in_child(function: Callable[..., None], *arguments: Any) -> int:
    """Forks a child that calls a function and ends; returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        torch.set_num_threads(1)
        sys.modules["torch.utils.tensorboard"] = None  # type: ignore[assignment]
        import pyro_vae.report

        pyro_vae.report.figures = lambda *arguments: None  # most of such a short run's time
        function(*arguments)
        status = 0
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """Waits for a child; returns its status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_until_done(folder: Path, longest: float, rng: random.Random, most: int) -> int:
    """Starts a run, kills it after a random time, and again, at most so often; then lets it end. Returns the kills."""
    kills = 0
    while True:
        pid = in_child(train, folder)
        if kills < most:
            time.sleep(rng.uniform(0, longest))
            os.kill(pid, signal.SIGKILL)
        status = ended(pid)
        if status == 0:
            return kills
        assert status == -signal.SIGKILL, f"a resumed run ended with status {status}; see {folder}"
        kills += 1


def same_weights(one: Path, other: Path) -> bool:
    """Whether two run folders hold equal weights."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check(folder: Path, wanted: int, seed: int, per_run: int = 4) -> tuple[int, int]:
    """Kills runs until `wanted` kills have hit; returns the kills and the runs.

    Raises:
        AssertionError: if a run does not resume, ends in other weights, or leaves a temporary file.
    """
    for name in ("accelerate.utils", "tqdm.auto", "torch._dynamo"):
        importlib.import_module(name)  # so that children need not: most kills would meet them importing

    assert ended(in_child(train, folder / "whole")) == 0
    start = time.perf_counter()
    assert ended(in_child(train, folder / "again")) == 0
    assert same_weights(folder / "whole", folder / "again")
    longest = time.perf_counter() - start
    rng, kills, runs = random.Random(seed), 0, 0
    while kills < wanted:
        run = folder / f"run{runs}"
        kills += killed_until_done(run, longest, rng, min(per_run, wanted - kills))
        assert same_weights(folder / "whole", run), f"{run} ends in other weights"
        hidden = [path.name for path in run.iterdir() if path.name.startswith(".")]
        assert not hidden, f"{run} holds {hidden}"
        shutil.rmtree(run)
        runs += 1
    return kills, runs


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        kills, runs = check(Path(folder), options.kills, options.seed)
    print(f"{kills} kills in {runs} runs, all resumed, all equal, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
