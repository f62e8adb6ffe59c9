"""A declared grid of runs: each combination trained and scored in a folder of its own, and all in one table."""

from __future__ import annotations

import csv
import hashlib
import inspect
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from pyro_vae.component import Component
from pyro_vae.data.files import sweep, write_text
from pyro_vae.errors import InputError
from pyro_vae.runs.reading import read_json
from pyro_vae.training.nonfinite import TrainingDiverged

TABLE = "grid.csv"
SCORES = "test.json"
#: Most combinations of a grid.
MOST = 10_000


def expanded(experiment: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """All combinations that the lists in `experiment` stand for.

    A list multiplies, wherever it stands, unless the argument takes a list itself, as `hidden: [400]` does; there a list of
    lists multiplies.

    Returns:
        (choices, config) of each, in order: what was chosen by dotted name, and the config with these choices in it.

    Raises:
        InputError: if there are more than `MOST`.
    """
    places = list(_lists(experiment, (), _list_arguments()))
    if (number := math.prod(len(options) for _, options in places)) > MOST:
        raise InputError(f"The lists stand for {number:,} combinations; wanted: at most {MOST:,}.")
    made = []
    for values in itertools.product(*(options for _, options in places)):
        config = experiment
        for (path, _), value in zip(places, values, strict=True):
            config = _put(config, path, value)
        choices = {_dotted(path): value for (path, _), value in zip(places, values, strict=True)}
        made.append((choices, config))
    return made


def _list_arguments() -> set[str]:
    """Names of the components' and the pairs' arguments that take lists."""

    def below(cls: Any) -> Iterator[type]:
        for sub in cls.__subclasses__():
            yield sub
            yield from below(sub)

    from pyro_vae import likelihoods, models  # noqa: F401  so that all are known

    names: set[str] = set()
    for cls in below(Component):
        for name, parameter in inspect.signature(cls).parameters.items():
            if re.search(r"Sequence|list\[", str(parameter.annotation)):
                names.add(name)
    for cls in below(models.ComposedPair):  # whose lists of components, one a level, multiply
        found = inspect.signature(cls).parameters.items()
        names |= {name for name, parameter in found if "Sequence" in str(parameter.annotation)}
    return names


def _lists(node: Any, path: tuple[Any, ...], takes: set[str]) -> Iterator[tuple[tuple[Any, ...], list[Any]]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _lists(value, (*path, key), takes)
    elif isinstance(node, list) and (path[-1] not in takes or (node and all(isinstance(v, list) for v in node))):
        if not node:
            raise InputError(f"{_dotted(path)} is an empty list: there is nothing to choose from.")
        yield path, node


def _put(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    return {**node, path[0]: _put(node[path[0]], path[1:], value)}


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path if part not in ("init_args", "class_path"))


def said(value: Any) -> str:
    """A choice in a few words: a component by its class and arguments."""
    if not isinstance(value, dict):
        return str(value)
    name = str(value.get("class_path", "")).rpartition(".")[2]
    inner = ", ".join(f"{key}={said(v)}" for key, v in (value.get("init_args") or {}).items())
    return f"{name}({inner})" if inner or name else str(value)


def folder_of(out: Path, choices: dict[str, Any], config: dict[str, Any]) -> Path:
    """The run folder of one combination: its choices in words, and a hash of all that it was declared to be."""
    words = "-".join(said(value) for value in choices.values())
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return out / f"{re.sub(r'[^A-Za-z0-9.=]+', '-', words).strip('-')[:80]}-{digest}"


def run(experiment: dict[str, Any], out: Path, train: Callable[[Path, Path], None]) -> list[dict[str, Any]]:
    """Trains and scores every combination that has no score yet, and writes the table after each.

    Args:
        experiment: options of `pyro-vae train`, lists of them multiplied.
        out: folder for the runs and the table.
        train: from a config file and a run folder, which may hold a run that was broken off, to a scored run folder.

    Returns:
        The table's rows, best first. Combinations that are refused or diverge are said so, and left out.
    """
    combinations = expanded(experiment)
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)
    rows: list[dict[str, Any]] = []
    for number, (choices, config) in enumerate(combinations, start=1):
        folder = folder_of(out, choices, config)
        print(f"[{number}/{len(combinations)}] {', '.join(f'{k} {said(v)}' for k, v in choices.items()) or 'one run'}")
        declared = folder.with_name(folder.name + ".yaml")
        row = _row(choices, folder)
        if row is None:
            write_text(declared, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
            try:
                train(declared, folder)
            except (InputError, TrainingDiverged) as error:
                print(f"  left out: {error}")
                continue
            finally:
                declared.unlink(missing_ok=True)
            row = _row(choices, folder)
        declared.unlink(missing_ok=True)  # which a killed grid may have left
        sweep(folder)
        if row is None:
            raise InputError(f"{folder / SCORES} holds no scores; remove it, and the grid scores this run again.")
        rows.append(row)
        rows.sort(key=lambda row: -row["log_likelihood"])
        write_text(out / TABLE, _as_csv(rows))
    if not rows:
        raise InputError("No combination could be trained; see the messages above.")
    return rows


def _row(choices: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """A run's row of the table; None if it has no scores yet, or none that can be read."""
    if not (folder / SCORES).exists():
        return None
    try:
        scores = read_json(folder / SCORES)
        score = scores["log_likelihood"]
        numbers = {
            "log_likelihood": score["mean"],
            "stderr": score["stderr"],
            "elbo": scores["elbo"],
            "kl": scores["kl"],
        }
        numbers = {name: float(number) for name, number in numbers.items()}
    except (InputError, LookupError, TypeError, ValueError):
        return None
    return {**{name: said(value) for name, value in choices.items()}, **numbers, "run": folder.name}


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, best first: choices, test log-likelihood ± its standard error, ELBO and KL, in nats per datum."""
    names = [name for name in rows[0] if name not in ("log_likelihood", "stderr", "elbo", "kl", "run")]
    lines = [[*names, "log p(x)", "ELBO", "KL"]]
    for row in rows:
        score = f"{row['log_likelihood']:.2f} ± {row['stderr']:.2f}"
        lines.append([*(row[name] for name in names), score, f"{row['elbo']:.2f}", f"{row['kl']:.2f}"])
    sizes = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)).rstrip() for line in lines
    )
