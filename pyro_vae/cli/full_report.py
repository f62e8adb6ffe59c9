"""`pyro-vae evaluate RUN --full`: the report of `evaluate` on a run's test set, with its figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pyro_vae.data.files import replacing, write_text
from pyro_vae.inference.evaluation import PARTS, evaluate

SHOWN_ALREADY = ("log_likelihood", "elbo_terms")  # by the short table
MOST_VALUES = 1000  # tensors with more numbers are left out of the JSON file


def add_full_report(
    pair: Any, splits: Any, kept: dict[str, Any], samples: int, out: Path, progress: bool, target: Path | None
) -> None:
    """Prints the parts of the report that the short table lacks, writes their figures, and adds them to the JSON file."""
    frozen = "static" if kept["binarize"] == "dynamic" else kept["binarize"]
    test = splits.test.with_binarize(frozen, kept["seed"])
    names = [name for name in PARTS if name not in SHOWN_ALREADY]
    if test.y is None:
        names.remove("disentanglement")
    factors = None if test.y is None else {"label": test.y}
    report = evaluate(
        pair, test, samples, factors=factors, parts=names, seed=kept["seed"], on_part=_said if progress else None
    )
    print(f"\n{report}")
    for name, part in report.parts.items():
        if hasattr(part, "plot"):
            path = out / "figures" / f"{name}.png"
            with replacing(path) as temporary:
                part.plot().savefig(temporary, format="png", dpi=150)
            print(f"figure  {path}")
    if target is not None:
        content = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
        content["full"] = report.as_dict(MOST_VALUES)
        write_text(target, json.dumps(content, indent=2) + "\n")


def _said(name: str) -> None:
    print(f"{name.replace('_', ' ')} ...", file=sys.stderr, flush=True)
