"""`pyro-vae grid`: every combination of the lists in a YAML file, trained, scored and put in one table."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import yaml

from pyro_vae.cli.combinations import TABLE, expanded, run, table
from pyro_vae.cli.naming import check_options, users_modules
from pyro_vae.cli.parsing import parser_of, read_options
from pyro_vae.cli.train import train, train_parser


def grid(arguments: list[str]) -> None:
    """`pyro-vae grid`: every combination of the lists in a YAML file, trained, scored and put in one table."""
    parser = parser_of(
        "grid",
        "Trains and scores every combination of the lists in a YAML file of `pyro-vae train` options: a list multiplies, "
        "unless the option takes one (hidden: [400]), where a list of lists does. Runs that are scored are not run again, "
        "interrupted ones go on. Prints the table, best test log-likelihood first, and keeps it as grid.csv.",
    )
    parser.add_argument("experiment", type=str, help="YAML file, such as examples/grid.yaml")
    parser.add_argument("--out", type=str, default=None, help="folder of the runs; grids/NAME by default")
    parser.add_argument(
        "--allow", type=str, nargs="*", default=[], help="modules outside pyro_vae that the file may name"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    config = parser.parse_args(arguments)
    experiment = read_options(config.experiment)
    check_options(experiment, config.experiment, config.allow)
    out = Path(config.out or f"grids/{Path(config.experiment).stem}")
    further = [*(["--quiet"] if config.quiet else []), *(["--allow", *config.allow] if config.allow else [])]

    def train_one(declared: Path, folder: Path) -> None:
        # A run that was killed before its first checkpoint holds weights alone, and starts again.
        with contextlib.redirect_stdout(io.StringIO()):
            train(["--config", str(declared), "--out", str(folder), "--resume", *further])

    with users_modules(config.allow):
        for _, one in expanded(experiment):  # all are looked at before the first is trained
            train_parser().parse_args(["--config_text", yaml.safe_dump(one)])
        print(f"{table(run(experiment, out, train_one))}\n\n{out / TABLE}")
