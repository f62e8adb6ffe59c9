"""`pyro-vae evaluate RUN`: scores a run's own test set."""

from __future__ import annotations

from pathlib import Path

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
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    config = parser.parse_args(arguments)
    from pyro_vae import data
    from pyro_vae.cli.choices import labelled
    from pyro_vae.cli.scores import score_and_show
    from pyro_vae.errors import positive_int
    from pyro_vae.runs.saving import read_config, run_entries

    pair = loaded(config)
    kept = run_entries(read_config(config.run), config.run)
    splits = data.load(
        kept["data"],
        root=config.data_root or kept["data_root"],
        pixels=kept["pixels"],
        size=kept["size"],
        binarize="none",
        seed=kept["seed"],
    )
    splits = labelled(splits, pair, None)
    samples = positive_int("--samples", (kept["samples"] or 500) if config.samples is None else config.samples)
    target = Path(config.json) if config.json else None
    score_and_show(pair, splits, kept, samples, Path(config.run), not config.quiet, target)
