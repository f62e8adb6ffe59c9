"""What the command line decides from the data: the likelihood, the labels, the binarisation, where training starts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from pyro_vae.cli.tables import likelihood_spec, network_spec
from pyro_vae.data import BINARIZATIONS, Table
from pyro_vae.errors import InputError, one_of
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.pair.hooks import EndsSequences, labels_may_miss, takes_labels
from pyro_vae.runs.specs import named_class


def model_spec(config: Any, splits: Any) -> dict[str, Any]:
    """The model's spec with the data's shape, and a likelihood that suits them where none is named."""
    spec = config.model.as_dict()
    arguments = dict(spec.get("init_args") or {})
    accepted = inspect.signature(named_class(spec["class_path"], list(modules_named(spec)), "model")).parameters
    if isinstance(splits.train, Table) and "likelihood" in accepted and arguments.get("likelihood") is None:
        arguments["likelihood"] = likelihood_spec(splits.train)
        for name in {"encoder", "decoder"} & accepted.keys():
            amortized = name == "decoder" or arguments.get("guide") is None
            if arguments.get(name) is None and spec["class_path"].endswith(".VAE") and amortized:
                arguments[name] = network_spec()
    elif "likelihood" in accepted and arguments.get("likelihood") is None:
        arguments["likelihood"] = {"class_path": f"pyro_vae.likelihoods.{fitting_likelihood(splits.train)}"}
    return {"class_path": spec["class_path"], "init_args": {"event_shape": list(splits.train.event_shape), **arguments}}


def labelled(splits: Any, pair: Any, kept: int | None) -> Any:
    """The data with the labels that the pair reads: all for p(x | y); some for training alone where they may be missing."""
    if not takes_labels(pair):
        if kept is not None:
            raise InputError(f"--labels {kept} has no use: {type(pair).__name__} as it is declared reads no labels.")
        return splits
    hidden = 0 if labels_may_miss(pair) else None
    if hidden is None and kept is not None:
        raise InputError(f"--labels {kept} hides labels, but {type(pair).__name__} wants one for each datum.")
    return replace(
        splits,
        train=splits.train.with_labels(kept),
        validation=splits.validation.with_labels(hidden),
        test=splits.test.with_labels(hidden),
    )


def mean(examples: Any, pair: Any) -> Any:
    """The mean of x over up to 16,384 data, missing values and what is beyond a sequence's end left out."""
    rows = []
    for _, (x, *further) in examples.batches(1024):
        padded = bool(further) and isinstance(pair, EndsSequences)
        rows.append(pair.ended(x, *further, beyond=torch.nan) if padded else x)
        if len(rows) == 16:
            break
    return torch.cat(rows).nanmean(0)


def fitting_likelihood(examples: Any) -> str:
    """Bernoulli for data in [0, 1], as greys are once binarised; Normal for others."""
    _, (x, *_) = next(iter(examples.batches(1024)))
    return "Bernoulli" if x.min() >= 0 and x.max() <= 1 else "Normal"


def binarisation(wanted: str, pair: Any, examples: Any) -> str:
    """What `auto` stands for: dynamic where a Bernoulli meets greys."""
    one_of("--binarize", wanted, ["auto", *BINARIZATIONS])
    if wanted != "auto":
        return wanted
    likelihood = getattr(pair, "likelihood", None)
    _, (x, *_) = next(iter(examples.batches(1024)))
    grey = bool(((x > 0) & (x < 1)).any()) and bool((x >= 0).all()) and bool((x <= 1).all())
    return "dynamic" if grey and isinstance(likelihood, Bernoulli) and not likelihood.relaxed else "none"


def modules_named(spec: Any) -> Iterator[str]:
    """Modules of the classes that the user's own command names, which it thereby allows."""
    if isinstance(spec, dict):
        if "class_path" in spec:
            yield spec["class_path"].rpartition(".")[0]
        for value in spec.values():
            yield from modules_named(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from modules_named(value)
