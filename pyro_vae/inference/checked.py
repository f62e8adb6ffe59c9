"""Data to score: on the pair's device, checked, binarised once; and what the reader of a score must know."""

from __future__ import annotations

from typing import Any

import torch

from pyro_vae import data
from pyro_vae.data import Binarization
from pyro_vae.errors import InputError
from pyro_vae.inference.rows import rows_for
from pyro_vae.pair import (
    Batch,
    ModelAndGuide,
    device_of,
    kept_random_state,
    remember,
    trace_pair,
    unsupported,
)
from pyro_vae.pair.hooks import check_batch


def scored_data(pair: ModelAndGuide, x: Any, binarize: Binarization | None, seed: int) -> Any:
    """The data to score, on the pair's device, checked; a binarisation is drawn once, under `seed`."""
    x = rows_for(pair, x)
    first = x[0] if isinstance(x, (tuple, list)) and x else x
    device = device_of(pair, first.device if isinstance(first, torch.Tensor) else "cpu")
    examples = data.as_examples(x, binarize="static" if binarize == "dynamic" else binarize, seed=seed, device=device)
    check_data(pair, examples)
    return examples


def held_data(pair: ModelAndGuide, x: Any, binarize: Binarization | None, seed: int) -> data.Examples:
    """As `scored_data`, for what must take any of the data at any time.

    Raises:
        InputError: if the data are a stream.
    """
    examples = scored_data(pair, x, binarize, seed)
    if not isinstance(examples, data.Examples):
        raise InputError(
            "x is streamed; data that are held in memory are wanted, such as a tensor of some thousand of them."
        )
    return examples


def check_data(pair: ModelAndGuide, examples: Any) -> None:
    """Refuses, before any work is done, data that are not finite or that the pair says it can't have made.

    Raises:
        InputError: with the argument, the offending index and what is wanted.
    """
    if not isinstance(examples, data.Examples):
        return  # a stream is checked batch by batch as it is read
    examples.check_finite(getattr(getattr(pair, "likelihood", None), "missing_allowed", False))
    with kept_random_state(examples.device):
        for _, batch in examples.batches(8192):
            check_batch(pair, *batch)
            remember(pair, batch)


def notes_on(pair: ModelAndGuide, batch: Batch) -> tuple[str, ...]:
    """What the reader of a score on this batch must know, such as data outside the support."""
    with kept_random_state(batch[0].device):
        _, model_trace = trace_pair(pair, tuple(t[:256] for t in batch))
    return tuple(
        f"site {name!r} was given values outside its distribution's support (such as grey pixels under a Bernoulli): this "
        "score is no log-likelihood and can't be compared with one"
        for name in unsupported(model_trace)
    )
