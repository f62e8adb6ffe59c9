"""Memory over 20,000 steps, over 200 VAEs made, trained and dropped, and over 50,000 importance samples: it must stay flat.

python -m tests.long.memory
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable

import pyro
import torch

from pyro_vae import fit, log_likelihood
from tests.component_table import vae

MIB = 2**20
#: How much the process may grow in each check, in MiB.
GROWTH = 64.0


def resident() -> float:
    """Memory of this process now, in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / MIB


def flat(name: str, once: Callable[[], object], times: int) -> None:
    """Calls a function, and prints by how much the process has grown after the first tenth of the calls.

    Raises:
        AssertionError: if it has grown by more than `GROWTH`.
    """
    start = time.perf_counter()
    for _ in range(max(1, times // 10)):
        once()
    gc.collect()
    before = resident()
    for _ in range(times - max(1, times // 10)):
        once()
    gc.collect()
    grown = resident() - before
    print(f"{name}: {grown:+.1f} MiB on {before:.0f}, {time.perf_counter() - start:.0f} s", flush=True)
    assert grown < GROWTH, f"{name}: the process has grown by {grown:.1f} MiB"


def main() -> None:
    """All three checks."""
    x = torch.rand(100, 4).round()
    pair = vae()

    def steps() -> None:
        fit(pair, x, epochs=200, batch_size=10, seed=0, device="cpu", progress=False)  # 2,000 steps

    def made_and_dropped() -> None:
        fit(vae(), x, epochs=1, batch_size=10, seed=0, device="cpu", progress=False)
        pyro.clear_param_store()

    def samples() -> None:
        log_likelihood(pair, x[:10], 50_000, seed=0)

    flat("20,000 steps", steps, 10)
    flat("50,000 importance samples", samples, 10)
    flat("200 VAEs made, trained and dropped", made_and_dropped, 200)


if __name__ == "__main__":
    main()
