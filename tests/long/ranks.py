"""A run of two processes under torchrun, one of which is killed: the others end, and the run resumes to equal weights.

python -m tests.long.ranks
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from safetensors.torch import load_file

from pyro_vae import fit
from pyro_vae.training import loop
from tests.component_table import vae


def train(folder: Path, killed: bool) -> None:
    """What each process runs: six epochs with noise; the second process kills itself in the fourth, if asked to."""
    import pyro_vae.report

    pyro_vae.report.figures = lambda *arguments: None
    original = loop.Trainer._epoch

    def epoch(self: loop.Trainer, number: int, bar: Any) -> Any:
        if killed and number == 4 and self.processes.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, number, bar)

    loop.Trainer._epoch = epoch  # type: ignore[method-assign]
    pyro.set_rng_seed(0)
    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0)).round()
    fit(
        vae(),
        x,
        epochs=6,
        batch_size=10,
        seed=0,
        device="cpu",
        compile="eager",
        progress=False,
        out=folder,
        resume=True,
    )


def launched(folder: Path, *words: str) -> int:
    """The exit status of two processes under torchrun."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        __spec__.name,
    ]
    return subprocess.run([*command, str(folder), *words], env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def main() -> None:
    """The check."""
    with tempfile.TemporaryDirectory() as place:
        whole, cut = Path(place, "whole"), Path(place, "cut")
        assert launched(whole) == 0
        start = time.perf_counter()
        assert launched(cut, "killed") != 0
        seconds = time.perf_counter() - start
        assert seconds < 60, f"the other process went on for {seconds:.0f} s"
        assert launched(cut) == 0
        one, other = (load_file(folder / "model.safetensors") for folder in (whole, cut))
        worst = max((one[name] - other[name]).abs().max().item() for name in one)
        print(f"killed job ended in {seconds:.0f} s; resumed weights differ by at most {worst:.2g}")
        assert worst == 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(Path(sys.argv[1]), "killed" in sys.argv)
    else:
        main()
