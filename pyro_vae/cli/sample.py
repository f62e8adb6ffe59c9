"""`pyro-vae sample RUN`: draws new data from a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pyro_vae.cli.parsing import CommandError, parser_of
from pyro_vae.cli.run_options import add_run_options, loaded
from pyro_vae.cli.tables import sample_rows


def sample(arguments: list[str]) -> None:
    """`pyro-vae sample RUN`: draws new data from a trained run."""
    parser = parser_of(
        "sample",
        "Draws new data from a trained run, as a picture (.png), numbers (.npy, .pt), or rows of a table (.csv, .parquet).",
    )
    add_run_options(parser)
    parser.add_argument("-n", "--num_samples", "--num-samples", type=int, default=64, help="how many")
    parser.add_argument("--mean", action="store_true", help="E[x | z] in place of a draw of x")
    parser.add_argument(
        "--labels", type=int, nargs="+", default=None, help="of the samples, in turn; each label in turn by default"
    )
    parser.add_argument(
        "--given", type=str, nargs="+", default=None, help="cells of a table's row, as in sex=female: draws given those"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--out", type=str, default=None, help="file to write; RUN/samples.png by default")
    config = parser.parse_args(arguments)
    from pyro_vae.errors import one_of, positive_int, whole_seed
    from pyro_vae.inference.sampling import generate
    from pyro_vae.pair.hooks import table_columns

    positive_int("-n", config.num_samples)
    whole_seed("--seed", config.seed)
    pair = loaded(config)
    if table_columns(pair):
        sample_rows(pair, config)
        return
    target = Path(config.out) if config.out else Path(config.run) / "samples.png"
    one_of("the ending of --out", target.suffix, [".png", ".npy", ".pt"])
    output: Literal["mean", "sample"] = "mean" if config.mean else "sample"
    y = _labels_in_turn(pair, config)
    drawn: Any = generate(pair, config.num_samples, output=output, condition=y, seed=config.seed)
    _write_samples(drawn.cpu(), target)
    print(f"{config.num_samples} samples of shape {tuple(drawn.shape[1:])}: {target}")


def _labels_in_turn(pair: Any, config: Any) -> Any:
    """y of each sample, or None for a pair that needs none."""
    from pyro_vae.pair.hooks import num_conditions, takes_labels

    needed = num_conditions(pair)
    if not takes_labels(pair):
        if config.labels is not None:
            raise CommandError(f"--labels: {config.run} is no model of x and a label.")
        if needed:
            raise CommandError(
                f"{config.run} is a model of x given y, and y is no label; draw from it in Python, with "
                "generate(load(RUN), num_samples, condition=y)."
            )
    if config.labels is None and not needed:
        return None
    import torch

    labels = torch.tensor(config.labels or range(pair.condition.num_labels))
    return labels[torch.arange(config.num_samples) % len(labels)]


def _write_samples(drawn: Any, target: Path) -> None:
    import numpy as np
    import torch

    from pyro_vae.data.files import replacing

    with replacing(target) as temporary:
        if target.suffix == ".png":
            from pyro_vae.report.plotting import images

            images(drawn / max(1.0, drawn.max().item())).savefig(temporary, format="png", dpi=150)
        elif target.suffix == ".npy":
            with temporary.open("wb") as file:
                np.save(file, drawn.numpy())
        else:
            torch.save(drawn, temporary)
