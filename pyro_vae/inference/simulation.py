"""Data drawn from a pair's model together with the latents that they were drawn from, as a batch for the guide."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_vae.errors import InputError
from pyro_vae.inference.importance import Values
from pyro_vae.pair import Batch, ModelAndGuide, Sites, sample_sites
from pyro_vae.pair.hooks import JoinsOutputs


@dataclasses.dataclass(frozen=True)
class Simulated:
    """Draws from p(z) p(x | z).

    Attributes:
        latents: the latent sites as they were drawn, by name.
        observed: the observed sites as they were drawn, by name.
        batch: what model and guide take, with the drawn data in it.
        places: where in a batch the observed sites belong.
    """

    latents: Sites
    observed: Sites
    batch: Batch
    places: Places

    @property
    def values(self) -> Values:
        """The latents, (..., N, *event), by name."""
        return {name: site["value"] for name, site in self.latents.items()}


Places = dict[
    str, tuple[int, Any, Any, int] | None
]  # by site: tensor of the batch, shape, strides, offset; None: all of x


def simulate(
    pair: ModelAndGuide, batch: Batch, latents: Values | None = None, *, places: Places | None = None
) -> Simulated:
    """One draw of x for each datum of `batch`, whose values of x are ignored and whose further tensors are kept.

    Args:
        pair: model and guide.
        batch: N data of the right shapes.
        latents: z of each datum, (..., N, *event) by name; drawn from the model by default.
        places: those of an earlier draw for the same number of data; without them the model is run twice more, to find
            them, and to find out whether it reads x other than by observing it.

    Raises:
        InputError: if the model can't be simulated: it observes nothing, has factors that are no distribution, observes
            values that are not taken from the batch unchanged, or reads x other than by observing it.
    """
    model = poutine.uncondition(pair.model)
    if latents:
        fixed = poutine.Trace()
        for name, value in latents.items():
            fixed.add_node(name, type="sample", name=name, value=value, is_observed=False, infer={}, fn=None)
        model = poutine.replay(model, fixed)
    sites = sample_sites(poutine.trace(model).get_trace(*batch), observed=False)
    observed = {name: site for name, site in sites.items() if site["infer"].get("was_observed")}
    _refuse_unlike_data(observed)
    drawn = {name: site for name, site in sites.items() if name not in observed}
    known = places
    if known is None:
        known = {} if joins(pair, observed) else find_places(pair, observed, batch)
    simulated = Simulated(drawn, observed, placed(pair, observed, batch, known), known)
    if places is None:
        _check_reads(pair, simulated)
    return simulated


def _refuse_unlike_data(observed: Sites) -> None:
    if not observed:
        raise InputError("The model observes nothing: no pyro.sample(..., obs=x) was met.")
    factors = [name for name, site in observed.items() if isinstance(site["fn"], dist.Unit)]
    if factors:
        raise InputError(
            f"The model can't be simulated: {factors} are pyro.factor terms, which weigh latents and draw no data."
        )


def joins(pair: ModelAndGuide, observed: Sites) -> bool:
    """Whether the pair says itself what several observed sites make together."""
    return len(observed) > 1 and isinstance(pair, JoinsOutputs)


def find_places(pair: ModelAndGuide, observed: Sites, batch: Batch) -> Places:
    """Which part of the batch the model observes at each site.

    Raises:
        InputError: if a site's observation is not a part of the batch, unchanged.
    """
    blank = tuple(t.contiguous() for t in batch)
    trace = poutine.trace(pair.model).get_trace(*blank)
    places: Places = {}
    for name, site in observed.items():
        seen: Any = trace.nodes[name]["value"]
        source = next((i for i, t in enumerate(blank) if _is_part(seen, t)), None)
        if source is not None:
            offset = seen.storage_offset() - blank[source].storage_offset()
            places[name] = (source, seen.shape, seen.stride(), offset)
        elif len(observed) == 1 and site["value"].numel() == blank[0].numel():
            places[name] = None
        else:
            raise InputError(
                f"The model can't be simulated: what it observes at {name!r} is not taken from the batch unchanged, so "
                "where a drawn value belongs is not known; give the pair a joined_outputs hook, see docs/hooks.md."
            )
    return places


def placed(pair: ModelAndGuide, observed: Sites, batch: Batch, places: Places) -> Batch:
    """The batch with the values drawn at observed sites in the place of those that the model observes."""
    if joins(pair, observed):
        assert isinstance(pair, JoinsOutputs)
        joined = pair.joined_outputs({name: site["value"] for name, site in observed.items()}, *batch)
        return (joined.to(batch[0].dtype).reshape(batch[0].shape), *batch[1:])
    new = [t.clone(memory_format=torch.contiguous_format) for t in batch]
    for name, site in observed.items():
        place, value = places[name], site["value"]
        if place is None:
            new[0] = value.to(batch[0].dtype).reshape(batch[0].shape)
        else:
            source, shape, stride, offset = place
            new[source].as_strided(shape, stride, offset).copy_(value.expand(shape))
    return tuple(new)


def _is_part(seen: Any, whole: torch.Tensor) -> bool:
    """Whether an observation is the tensor itself or a view of it."""
    same = isinstance(seen, torch.Tensor) and seen.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    return same and seen.dtype == whole.dtype


def _check_reads(pair: ModelAndGuide, drawn: Simulated) -> None:
    """Refuses a model that draws x by reading the x it was handed, as a teacher-forced one does."""
    again = poutine.trace(poutine.condition(pair.model, data=drawn.values)).get_trace(*drawn.batch)
    for name, site in {**drawn.latents, **drawn.observed}.items():
        node: Any = again.nodes[name]
        # Without masks, which may differ: what is missing in the batch has been drawn.
        then, now = (one["fn"].log_prob(one["value"]) for one in (site, node))
        if not torch.allclose(now, then, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise InputError(
                f"The model can't be simulated: the distribution at {name!r} depends on the x that the model is handed, "
                "and not on the x that it draws. Use the value that pyro.sample returns in place of x."
            )
