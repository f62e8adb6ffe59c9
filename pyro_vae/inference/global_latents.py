"""Latents outside the plate over the data, such as a decoder's weights: found, drawn, and held at given values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro import poutine

from pyro_vae.errors import InputError
from pyro_vae.inference.importance import Values
from pyro_vae.pair import (
    Batch,
    ModelAndGuide,
    Pair,
    data_plate,
    kept_random_state,
    outside,
    sample_sites,
    trace_pair,
)


def global_latents(pair: ModelAndGuide, batch: Batch) -> tuple[str, ...]:
    """Names of the latents outside the plate over the data; none if there is no such plate.

    Args:
        pair: model and guide.
        batch: at least two data, so that a plate over them is told from others.
    """
    with kept_random_state(batch[0].device):
        guide_trace, model_trace = trace_pair(pair, batch)
    plate = data_plate(model_trace, len(batch[0]))
    if plate is None:
        return ()
    latents = sample_sites(guide_trace, observed=False)
    return tuple(name for name in outside(guide_trace, plate) if name in latents)


def draw_globals(pair: ModelAndGuide, batch: Batch, names: Collection[str]) -> Values:
    """One draw of the named latents from the guide."""
    sites = sample_sites(poutine.trace(pair.guide).get_trace(*batch), observed=False)
    return {name: sites[name]["value"].detach() for name in names}


def given(pair: ModelAndGuide, values: Mapping[str, torch.Tensor]) -> Pair:
    """p(x, z | w) and q(z | x, w) at given values of latents w, of which nothing is seen any more.

    Args:
        pair: model and guide.
        values: by site.
    """
    return Pair(Given(pair.model, values), Given(pair.guide, values))


class Given:
    """A program with some latents held at given values, and out of sight."""

    def __init__(self, program: Callable[..., Any], values: Mapping[str, torch.Tensor]):
        self.program, self.values = program, dict(values)

    def __call__(self, *batch: Any) -> Any:
        held = poutine.condition(self.program, data=self.values)
        return poutine.block(held, hide=list(self.values))(*batch)


def known_globals(
    pair: ModelAndGuide, batch: Batch, values: Mapping[str, torch.Tensor] | None, seed: int | None = None
) -> ModelAndGuide:
    """The pair itself if it has no global latents; else the pair given their values, one draw of the guide by default.

    Raises:
        InputError: if `values` names something else than the global latents.
    """
    names = global_latents(pair, batch)
    if values is not None and set(values) != set(names):
        raise InputError(
            f"given={sorted(values)} must hold the latents outside the plate over the data: {sorted(names)}."
        )
    if not names:
        return pair
    if values is None:
        with kept_random_state(batch[0].device, seed):
            values = draw_globals(pair, batch, names)
    return given(pair, values)
