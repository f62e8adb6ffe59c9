"""`pyro-vae evaluate RUN`: scores a run's own test set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_vae.cli.parsing import parser_of
from pyro_vae.cli.run_options import add_run_options, loaded


def evaluate(arguments: list[str]) -> None:
    """`pyro-vae evaluate RUN`: scores a run's test set."""
    parser = parser_of(
        "evaluate", "Scores a run's own test set by importance sampling, binarised as when it was trained."
    )
    add_run_options(parser)
    parser.add_argument("--samples", type=int, default=None, help="importance samples per datum; by default the run's")
    parser.add_argument("--json", type=str, default=None, help="write the scores to this file")
    parser.add_argument(
        "--full", action="store_true", help="also calibration, use of latents, predictive check; figures in RUN/figures"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    config = parser.parse_args(arguments)
    from pyro_vae.cli.scores import score_and_show
    from pyro_vae.errors import positive_int
    from pyro_vae.runs.saving import read_config, run_entries

    pair = loaded(config)
    kept = run_entries(read_config(config.run), config.run)
    splits = _splits_of(pair, kept, config.data_root)
    samples = positive_int("--samples", (kept["samples"] or 500) if config.samples is None else config.samples)
    target = Path(config.json) if config.json else None
    score_and_show(pair, splits, kept, samples, Path(config.run), not config.quiet, target)
    if config.full:
        from pyro_vae.cli.full_report import add_full_report

        add_full_report(pair, splits, kept, samples, Path(config.run), not config.quiet, target)


def _splits_of(pair: Any, kept: dict[str, Any], data_root: str | None) -> Any:
    """The data that the run was trained on, read as it read them."""
    from pyro_vae import data
    from pyro_vae.cli.choices import labelled
    from pyro_vae.cli.tables import read_by, said_kinds
    from pyro_vae.pair.hooks import table_columns

    splits = data.load(
        kept["data"],
        root=data_root or kept["data_root"],
        pixels=kept["pixels"],
        size=kept["size"],
        binarize="none",
        seed=kept["seed"],
        kinds=said_kinds(kept.get("kind")) or ({} if table_columns(pair) else None),
        label=kept.get("label"),
    )
    return labelled(read_by(pair, splits), pair, None)
