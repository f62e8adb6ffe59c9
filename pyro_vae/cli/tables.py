"""What the command line does with tables: reads them, declares their likelihood, and writes rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_vae.cli.parsing import CommandError

MAX_COLUMNS = 300  # an array of numbers with more columns is no table


def said_kinds(words: Sequence[str] | None) -> dict[str, str] | None:
    """`--kind age=real sex=binary` as a dict; None where nothing is said."""
    if not words:
        return None
    kinds = {}
    for word in words:
        name, equals, kind = word.rpartition("=")
        if not equals or not name:
            raise CommandError(f"--kind {word}: wanted is COLUMN=KIND, such as age=real.")
        kinds[name] = kind
    return kinds


def kinds_for(config: Any) -> dict[str, str] | None:
    """Kinds by which `data.load` reads the source; {} makes a table of numbers one, None leaves that to `data.load`.

    An array of numbers in [0, 1] stays an array, as do one with very many columns and one whose likelihood is named.
    """
    from pyro_vae import data
    from pyro_vae.data.table_files import is_table_file

    kinds = said_kinds(config.kind)
    path = Path(config.data)
    path = path.expanduser() if str(path).startswith("~/") else path
    if kinds is not None or not (os.path.isfile(path) and is_table_file(path)):
        return kinds
    named = (config.model.as_dict().get("init_args") or {}).get("likelihood") is not None
    whole = data.load(path, label=config.label).train
    if named or isinstance(whole, data.Table) or whole.event_shape.numel() > MAX_COLUMNS:
        return None
    _, (x, *_) = next(iter(whole.batches(1024)))
    return None if x.min() >= 0 and x.max() <= 1 else {}


def likelihood_spec(table: Any) -> dict[str, Any]:
    """The spec of a table's likelihood, each column standardised by these rows."""
    from pyro_vae.models.tables import columns_for
    from pyro_vae.runs.specs import spec

    return spec(columns_for(table, {}, {}))


def network_spec() -> Any:
    """The spec of the networks of `VAE.for_table`."""
    from pyro_vae.models.tables import table_network
    from pyro_vae.runs.specs import spec

    return spec(table_network())


def read_by(pair: Any, splits: Any) -> Any:
    """The three parts of a table read by the columns that a pair was trained on; other data as they are."""
    from dataclasses import replace

    from pyro_vae.inference.rows import rows_for

    parts = {name: rows_for(pair, getattr(splits, name)) for name in ("train", "validation", "test")}
    return replace(splits, **parts)


def table_pair(pair: Any, run: str) -> Any:
    """The pair, if it models a table.

    Raises:
        CommandError: if it does not.
    """
    from pyro_vae.pair.hooks import table_columns

    if not table_columns(pair):
        raise CommandError(f"{run} is no model of a table.")
    return pair


def sample_rows(pair: Any, config: Any) -> None:
    """Draws rows of a table and writes them."""
    from pyro_vae.data.table_files import check_writable, write_frame
    from pyro_vae.inference.rows import columns_of
    from pyro_vae.inference.sampling import generate

    target = check_writable(Path(config.out) if config.out else Path(config.run) / "samples.csv")
    given = {}
    for word in config.given or ():
        name, equals, value = word.partition("=")
        column = next((column for column in columns_of(pair) if str(column.name) == name), None)
        if not equals or column is None:
            known = ", ".join(str(column.name) for column in columns_of(pair))
            raise CommandError(f"--given {word}: wanted is COLUMN=VALUE, with one of {known}.")
        by_text = {str(category): category for category in column.categories}
        given[column.name] = by_text.get(value, value)
    output: Any = "mean" if config.mean else "sample"
    frame: Any = generate(pair, config.num_samples, output=output, given=given or None, seed=config.seed)
    write_frame(frame, target)
    ess = f", effective sample size {frame.attrs['ess']:.0f} of {frame.attrs['num_samples']}" if given else ""
    print(f"{config.num_samples} rows of {frame.shape[1]} columns{ess}: {target}")


def table_rows(pair: Any, test: Any, samples: int, seed: int, out: Path) -> list[tuple[str, str]]:
    """Lines on imputing the test rows, a fifth of whose cells are hidden anew; the figures by column go to columns.csv."""
    from pyro_vae.data.files import replacing
    from pyro_vae.errors import InputError
    from pyro_vae.inference.table_report import evaluate_table

    try:
        report = evaluate_table(pair, test, num_samples=samples, seed=seed)
    except InputError:  # too few rows to hide a cell of
        return []
    with replacing(out / "columns.csv") as temporary:
        report.columns.to_csv(temporary, index_label="column")
    found = report.summary()
    words = {
        "nrmse": "error of numbers {:.3f} standard deviations",
        "accuracy": "{:.1%} of classes right",
        "coverage_90": "90 % intervals cover {:.1%}",
    }
    said = [text.format(found[name]) for name, text in words.items() if name in found]
    return [("imputing 20 %", "; ".join(said)), ("  by column", str(out / "columns.csv"))]
