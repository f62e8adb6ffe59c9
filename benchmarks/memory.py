"""Peak resident memory of importance sampling above the idle process, each measurement in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import Options, Row, interleave, rows

PART = "memory"
ROOT = Path(__file__).parents[1]


def run(options: Options) -> list[Row]:
    """Ours at two sizes, beside a loop by hand that holds all samples of a few images at once."""
    sizes = ((200, 500), (20, 5_000)) if options.quick else ((10_000, 5_000), (1_000, 50_000))
    made = []
    for images, samples in sizes:
        names = {"pyro_vae.log_likelihood": "ours", "PyTorch by hand, 8 images at once": "hand"}
        details: dict[str, list[dict]] = {name: [] for name in names}

        def turn(name: str, images: int = images, samples: int = samples, names=names, details=details) -> float:
            details[name].append(_measured(names[name], images, samples))
            return details[name][-1]["peak"]

        # A peak hardly varies, and a turn takes minutes.
        figures = interleave({name: lambda name=name: turn(name) for name in names}, 1 if options.quick else 3)
        case = f"{images:,} images x {samples:,} samples, peak above idle"
        for row in rows(PART, case, figures, "PyTorch by hand, 8 images at once", "bytes"):
            row.details["processes"] = details[row.contender]
            warm = details[row.contender][0]["warm"] / 2**20
            row.note = f"{warm:.0f} MiB of it after 16 images x 100 samples, loaded code included"
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

    vae, x = Tutorial().eval(), binary_images(Options(), images)

    def score(count: int, samples: int) -> None:
        if who == "ours":
            log_likelihood(vae, x[:count], num_samples=samples)
        else:
            by_hand(vae, samples)(x[:count])

    Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
    idle, start = _status("VmRSS"), time.perf_counter()
    score(16, 100)
    warm = _status("VmHWM") - idle
    score(images, samples)
    return {"idle": idle, "warm": warm, "peak": _status("VmHWM") - idle, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
