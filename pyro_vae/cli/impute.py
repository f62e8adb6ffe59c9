"""`pyro-vae impute RUN ROWS`: fills the missing cells of a table."""

from __future__ import annotations

from pathlib import Path

from pyro_vae.cli.parsing import parser_of
from pyro_vae.cli.run_options import add_run_options, loaded
from pyro_vae.cli.tables import table_pair


def impute(arguments: list[str]) -> None:
    """`pyro-vae impute RUN ROWS --out FILE`: fills the missing cells of a table."""
    parser = parser_of("impute", "Fills the missing cells of a table by a run that was trained on one like it.")
    add_run_options(parser)
    parser.add_argument("rows", type=str, help="table to fill: .csv, .tsv or .parquet")
    parser.add_argument("--out", type=str, default=None, help="file to write; ROWS with -filled by default")
    parser.add_argument(
        "--draws", type=int, default=None, help="write so many completed tables too, drawn from p(missing | observed)"
    )
    parser.add_argument("--samples", type=int, default=500, help="importance samples per row")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    config = parser.parse_args(arguments)
    from pyro_vae.data import Table
    from pyro_vae.data.table_files import check_writable, write_frame
    from pyro_vae.errors import positive_int
    from pyro_vae.inference.imputation import impute as filled_by
    from pyro_vae.inference.rows import columns_of

    rows = Path(config.rows)
    target = check_writable(Path(config.out) if config.out else rows.with_name(f"{rows.name.split('.')[0]}-filled.csv"))
    if config.draws is not None:
        positive_int("--draws", config.draws)
    pair = table_pair(loaded(config), config.run)
    filled = filled_by(pair, Table(rows, columns=columns_of(pair)), config.samples, seed=config.seed)
    write_frame(filled, target)
    print(f"{filled.imputation!r}\n{target}")
    for i, frame in enumerate(filled.draws(config.draws) if config.draws else (), 1):
        path = target.with_name(f"{target.name.split('.')[0]}-{i}{''.join(target.suffixes)}")
        write_frame(frame, path)
        print(path)
