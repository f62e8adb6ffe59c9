"""From an empty process to training: imports, the first step, and the third, by which all have captured and compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Options, Row, interleave, missing, rows

PART = "startup"
ROOT = Path(__file__).parents[1]
REFERENCE = "pyro.infer.SVI"
STAGES = ("import to first step", "import to third step")

# name: (what the child runs, whether a compiler's cache is wanted, whether it is filled)
CONTENDERS: dict[str, tuple[str, bool, bool]] = {
    REFERENCE: ("pyro", False, False),
    "pyro_vae SVI, eager": ("eager", False, False),
    "pyro_vae SVI, graph": ("graph", False, False),
    "pyro_vae SVI, inductor, cold cache": ("inductor", True, False),
    "pyro_vae SVI, inductor, warm cache": ("inductor", True, True),
    "torch.compile by hand, cold cache": ("hand", True, False),
    "torch.compile by hand, warm cache": ("hand", True, True),
    "NumPyro": ("numpyro", False, False),
}


def run(options: Options) -> list[Row]:
    """Processes of all kinds in turn; a warm cache is the one that the cold turn before has filled."""
    lacking = missing(PART, STAGES[0], "numpyro", "jax")
    names = [name for name in CONTENDERS if not (lacking and name == "NumPyro")]
    measured: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        turns = {name: lambda name=name: _turn(name, Path(folder), measured) for name in names}
        interleave(turns, 1 if options.quick else options.rounds)
    made = []
    for stage in STAGES:
        figures = {name: [one[stage] for one in measured[name]] for name in names}
        for row in rows(PART, stage, figures, REFERENCE):
            last = measured[row.contender][-1]
            row.details["processes"] = measured[row.contender]
            row.note = f"import {last['import']:.2f} s"
            if "capture" in last:
                row.note += f", capture {last['capture']:.2f} s, compile {last['compile']:.2f} s"
            made.append(row)
    return made + ([lacking] if lacking else [])


def _turn(name: str, folder: Path, measured: dict[str, list[dict]]) -> float:
    kind, compiles, warm = CONTENDERS[name]
    cache = folder / f"{kind}-{len(measured[name])}"
    assert cache.exists() == warm, "the cold turn comes first"
    if compiles and not warm:
        cache.mkdir()
    # The compiler's precompiled headers lie in the folder for temporary files, wherever its cache is.
    variables = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "TMPDIR"), str(cache)) if compiles else {}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup_child", kind],
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        check=True,
    )
    measured[name].append(json.loads(done.stdout.splitlines()[-1]))
    return measured[name][-1][STAGES[1]]
