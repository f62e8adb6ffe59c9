"""Peak resident memory of importance sampling above the idle process, each measurement in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import Options, Row, rows, say
from benchmarks.importance import AT_ONCE

PART = "memory"
OURS = "pyro_vae.log_likelihood"
BY_HAND = f"PyTorch by hand, {AT_ONCE} images at once"
ROOT = Path(__file__).parents[1]


def run(options: Options) -> list[Row]:
    """Ours at two sizes, beside a loop by hand that holds all samples of a few images at once; a process for each."""
    sizes = ((200, 500), (20, 5_000)) if options.quick else ((10_000, 5_000), (1_000, 50_000))
    made = []
    for images, samples in sizes:
        # The loop's memory does not hang on how many images it goes through, and ours is to be seen with all of them.
        found = {OURS: _measured("ours", images, samples), BY_HAND: _measured("hand", 2 * AT_ONCE, samples)}
        case = f"{images:,} images x {samples:,} samples, peak above idle"
        for row in rows(PART, case, {name: [one["peak"]] for name, one in found.items()}, BY_HAND, "bytes"):
            row.details = found[row.contender]
            row.note = f"{row.details['warm'] / 2**20:.0f} MiB of it after {2 * AT_ONCE} images x 100 samples"
            row.note += f"; {row.details['images']:,} images in {row.details['seconds']:.0f} s"
            say(f"{PART}: {case}, {row.contender}: {row.times[0] / 2**20:.0f} MiB")
            made.append(row)
    return made


def _measured(who: str, images: int, samples: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.memory", who, str(images), str(samples)]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])


def _status(field: str) -> int:
    """Bytes: VmRSS, resident now, or VmHWM, resident at most."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def _child(who: str, images: int, samples: int) -> dict:
    from benchmarks.data import binary_images
    from benchmarks.importance import by_hand, log_likelihood
    from benchmarks.pairs import Tutorial

    vae, x = Tutorial().eval(), binary_images(Options(), max(images, 2 * AT_ONCE))

    def score(count: int, samples: int) -> None:
        if who == "ours":
            log_likelihood(vae, x[:count], num_samples=samples)
        else:
            by_hand(vae, samples)(x[:count])

    Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
    idle, start = _status("VmRSS"), time.perf_counter()
    score(2 * AT_ONCE, 100)
    warm = _status("VmHWM") - idle  # what is loaded and captured once
    score(images, samples)
    peak, spent = _status("VmHWM") - idle, time.perf_counter() - start
    return {"images": images, "samples": samples, "idle": idle, "warm": warm, "peak": peak, "seconds": spent}


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
