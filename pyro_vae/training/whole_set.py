"""Sites that belong to the whole data set: each batch pays its share of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from pyro_vae.objectives.base import Handled
from pyro_vae.pair import Batch, ModelAndGuide, Pair, Program, data_plate, kept_random_state, outside, trace_pair


def of_whole_set(pair: ModelAndGuide, batch: Batch) -> tuple[str, ...]:
    """Names of the random sites outside a plain plate over the data, such as a decoder's weights.

    None where the plate names the size of the set, as `pyro.plate("data", N, subsample=x)` does, since it scales the data up
    to it; nor those that the programs scale themselves.
    """
    with kept_random_state(batch[0].device), torch.no_grad():
        guide_trace, model_trace = trace_pair(pair, batch)
    plate = data_plate(model_trace, len(batch[0]))
    if plate is None or plate.full_size != len(batch[0]):
        return ()
    traces = (guide_trace, model_trace)
    stray = {name: trace.nodes[name]["scale"] for trace in traces for name in outside(trace, plate)}
    return tuple(name for name, scale in stray.items() if not isinstance(scale, torch.Tensor) and scale == 1.0)


def with_shares(pair: ModelAndGuide, names: Collection[str], num_data: int) -> ModelAndGuide:
    """The pair with those sites weighted by the batch's share of N data, so that an epoch pays for them once."""
    if not names:
        return pair
    return Pair(*(_Shared(program, names, num_data) for program in (pair.model, pair.guide)))


class _Shared(Handled):
    """A program whose sites of the whole set are scaled by (size of the batch) / N."""

    def __init__(self, program: Program, names: Collection[str], num_data: int):
        super().__init__(program, None)
        self.names, self.num_data = names, num_data

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Share(self.names, len(args[0]) / self.num_data):
            return self.program(*args, **kwargs)


class _Share(Messenger):
    def __init__(self, names: Collection[str], share: float):
        super().__init__()
        self.names, self.share = names, share

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["scale"] = msg["scale"] * self.share
