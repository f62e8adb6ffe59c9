"""Where a number stopped being finite: the site, its distribution's parameters, and the data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro import poutine

from pyro_vae.pair import Batch, ModelAndGuide, Site, data_plate, log_prob, sample_sites


class TrainingDiverged(ArithmeticError):
    """A loss or gradient is not finite; the weights are those before the step."""


@contextlib.contextmanager
def told_if_not_finite(when: str, moved: dict[str, torch.Tensor]) -> Iterator[None]:
    """Tells a ValueError of Pyro's validation as what it is if the parameters are not finite.

    Args:
        when: it is, for the message.
        moved: the parameters in training.

    Raises:
        TrainingDiverged: naming a parameter.
    """
    try:
        yield
    except ValueError as error:
        bad = next((name for name, parameter in moved.items() if not parameter.isfinite().all()), None)
        if bad is None:
            raise
        raise TrainingDiverged(f"{when} the parameter {bad!r} holds values that are not finite.") from error


def explain(pair: ModelAndGuide, index: torch.Tensor, batch: Batch, moved: dict[str, torch.Tensor]) -> str | None:
    """A sentence that names the first site whose parameters or log-probability are not finite.

    Args:
        pair: model and guide.
        index: positions of the batch's data in the data set.
        batch: the tensors at which it happened.
        moved: the parameters in training, whose gradients may be there.

    Returns:
        None if everything is finite.
    """
    with pyro.validation_enabled(False), torch.no_grad():
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        model_trace = poutine.trace(poutine.replay(pair.model, guide_trace)).get_trace(*batch)
        plate = data_plate(model_trace, len(batch[0]))
        dim = plate.dim if plate is not None else -1
        for program, trace in (("guide", guide_trace), ("model", model_trace)):
            sites = {**sample_sites(trace, observed=False), **sample_sites(trace, observed=True)}
            for name, site in sites.items():
                if reason := _explain_site(site, dim, index):
                    return f"In the {program}, site {name!r}: {reason}"
    for name, parameter in moved.items():
        if not parameter.isfinite().all():
            return f"The parameter {name!r} holds values that are not finite."
    bad = [name for name, p in moved.items() if p.grad is not None and not p.grad.isfinite().all()]
    return f"All densities are finite, but not the gradient of {', '.join(bad)}." if bad else None


def _explain_site(site: Site, dim: int, index: torch.Tensor) -> str | None:
    fn = site["fn"]
    bad = {}
    for name, value, at in _parameters(fn, dim):
        rows = _rows(~value.isfinite(), at, len(index))
        if rows is not None:
            bad[name] = rows
    if bad:
        places = sorted({row for found in bad.values() for row in found.tolist()})
        return f"{_family(fn)} has {' and '.join(bad)} not finite for {_data(index, places)}."
    rows = _rows(~log_prob(site).isfinite(), log_prob(site).dim() + dim, len(index))
    if rows is not None:
        return f"the log-density of {_family(fn)} is not finite for {_data(index, rows.tolist())}."
    return None


def _parameters(fn: Any, dim: int) -> list[tuple[str, torch.Tensor, int]]:
    """(name, value, position of the data's dimension) of a distribution's parameters, inside its wrappers."""
    at = len(fn.batch_shape) + dim
    while not fn.arg_constraints and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    own = [(name, fn.__dict__.get(name), at) for name in fn.arg_constraints]
    return [(name, value, at) for name, value, at in own if isinstance(value, torch.Tensor)]


def _rows(bad: torch.Tensor, at: int, size: int) -> torch.Tensor | None:
    """Which data are concerned; all of them if the tensor has no dimension for the data; None if none is."""
    if not bad.any():
        return None
    if not 0 <= at < bad.dim() or bad.shape[at] != size:
        return torch.arange(size)
    return bad.movedim(at, 0).reshape(size, -1).any(-1).nonzero().flatten()


def _family(fn: Any) -> str:
    while not fn.arg_constraints and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__


def _data(index: torch.Tensor, rows: list[int]) -> str:
    shown = ", ".join(str(int(index[row])) for row in rows[:8])
    if len(rows) == len(index):
        return f"all {len(rows)} data of the batch"
    return f"data {shown}" + (f" and {len(rows) - 8} more of the batch" if len(rows) > 8 else "")
