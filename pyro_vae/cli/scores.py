"""A run's test set scored: computed, written as JSON, and shown as a short table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pyro_vae.cli.tables import table_rows
from pyro_vae.data.files import write_text
from pyro_vae.inference import elbo_terms, log_likelihood
from pyro_vae.models import classify
from pyro_vae.pair.hooks import labels_may_miss, table_columns


def score_and_show(
    pair: Any,
    splits: Any,
    kept: dict[str, Any],
    samples: int,
    out: Path,
    progress: bool,
    target: Path | None,
    result: Any = None,
) -> None:
    """Scores the test set, writes the scores, and prints a short table."""
    rows: list[tuple[str, str]] = []
    if samples:
        frozen = "static" if kept["binarize"] == "dynamic" else kept["binarize"]
        test = splits.test.with_binarize(frozen, kept["seed"])
        score = log_likelihood(pair, test, samples, seed=kept["seed"], progress=progress)
        terms = elbo_terms(pair, test, num_samples=10, seed=kept["seed"])
        misread = _misread(pair, test)
        _write_scores(score, terms, kept, target, misread)
        rows = _score_rows(score, terms, splits.event_shape, frozen, kept["seed"])
        if table_columns(pair):
            rows = [row for row in rows if row[0].strip() != "per dimension"]
            rows += table_rows(pair, splits.test, samples, kept["seed"], out)
        if misread is not None:
            rows.append(("test error", f"{100 * misread:.2f} % of the labels"))
    if result is not None:
        seconds = sum(row["seconds"] for row in result.history)
        rows.append(
            (
                "training",
                f"{len(result.history)} epochs in {seconds:.1f} s on {result.device} "
                f"(stopped because of {result.stopped_because})",
            )
        )
    rows.append(("run folder", str(out)))
    if (out / "figures").is_dir():
        rows.append(("figures", str(out / "figures")))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def _misread(pair: Any, test: Any) -> float | None:
    """The share of the test set whose label a semi-supervised model gets wrong."""
    if not labels_may_miss(pair) or test.y is None:
        return None
    return (classify(pair, test).argmax(-1).cpu() != test.y.cpu()).double().mean().item()


def _score_rows(score: Any, terms: Any, shape: Any, frozen: str, seed: int) -> list[tuple[str, str]]:
    dims = shape.numel()
    how = f", binarised under seed {seed}" if frozen == "static" else ""
    name = "test score (no likelihood)" if score.notes else "test log p(x)"
    sites = ", ".join(f"{site} {value:.2f}" for site, value in terms.sites.items())
    rows = [
        (name, f"{score.mean:.2f} ± {score.stderr:.2f} nats ({score.num_data} data, {score.num_samples} samples{how})"),
        ("  per dimension", f"{-score.mean / dims / math.log(2):.4f} bits"),
        (
            "test ELBO",
            f"{terms.elbo:.2f} ± {terms.stderr:.2f} nats = reconstruction {terms.reconstruction:.2f} "
            f"− KL {terms.kl:.2f} ({sites})",
        ),
        (
            "Pareto k-hat",
            f"{score.khat_summary}; median effective sample size {score.ess.median().item():.0f} of {score.num_samples}",
        ),
    ]
    if terms.collapsed:
        rows.append(("collapsed latents", f"{', '.join(terms.collapsed)}: a KL below 0.1 nats"))
    return rows + [("note", note) for note in score.notes]


def _write_scores(
    score: Any, terms: Any, kept: dict[str, Any], target: Path | None, misread: float | None = None
) -> None:
    if target is None:
        return
    content = {
        "log_likelihood": {
            "mean": score.mean,
            "stderr": score.stderr,
            "mc_stderr": score.mean_mc_stderr,
            "num_data": score.num_data,
            "num_samples": score.num_samples,
            "khat_above_0.7": (score.khat > 0.7).double().mean().item(),
            "notes": list(score.notes),
        },
        "elbo": terms.elbo,
        "reconstruction": terms.reconstruction,
        "kl": terms.kl,
        "sites": terms.sites,
        "bits_per_dim": terms.bits_per_dim,
        "collapsed": list(terms.collapsed),
        "data": kept["data"],
        "binarize": kept["binarize"],
        "seed": kept["seed"],
    }
    if misread is not None:
        content["error"] = misread
    write_text(target, json.dumps(content, indent=2) + "\n")
