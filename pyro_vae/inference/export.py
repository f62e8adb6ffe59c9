"""A pair's draws and scores in ArviZ's form, so that its plots, diagnostics and comparisons work on them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

from pyro_vae.data import Binarization
from pyro_vae.errors import positive_int
from pyro_vae.inference.checked import held_data
from pyro_vae.inference.diagnostics import pareto_khat, tail_length
from pyro_vae.inference.importance import Draws, Layout, Values, find_layout, per_datum, summed
from pyro_vae.inference.simulation import simulate
from pyro_vae.pair import Batch, ModelAndGuide, PairLike, as_pair, evaluating, kept_random_state, log_prob


def to_arviz(
    pair: PairLike,
    x: Any,
    num_samples: int = 200,
    *,
    resample: bool = True,
    binarize: Binarization | None = None,
    seed: int = 0,
) -> Any:
    """Draws of latents and data with their scores: an `arviz.InferenceData`, or a DataTree from ArviZ 1 on.

    Groups: `posterior`, z of each datum; `sample_stats`, with "log_weight", log p(x, z) − log q(z | x), "lp", log p(x, z),
    and "log_conditional", log p(x | z); `posterior_predictive`; `prior` and `prior_predictive`, as many draws;
    `observed_data`; `constant_data` with each datum's Pareto "khat". Dimensions are (chain, draw, datum, ...), with one
    chain.

    `log_likelihood` holds log p(x_n), estimated from all weights and the same for every draw: parameters are fixed, and
    latents are integrated out. ArviZ's `loo` and `compare` therefore give Σ log p(x_n). Their warning of large k-hats has no
    cause, since that of equal weights is infinite to ArviZ; that of the importance weights is in `constant_data`. With the
    conditional log p(x_n | z_n) in its place, `loo` would take a harmonic mean over draws of z_n, far too high in practice.

    Args:
        pair: model and guide.
        x: data in any form that `fit` takes; all draws for all of them are held in memory.
        num_samples: draws K per datum.
        resample: draw the K with replacement from 10 K weighted ones (sampling importance resampling, Rubin 1987), which
            brings them from the guide closer to the posterior; False keeps the guide's draws.
        binarize: as in `log_likelihood`.
        seed: of all draws; torch's random state is left as it was.

    Raises:
        InputError: on bad data, or where sites lie outside the plate over the data.
        ImportError: if ArviZ is missing; `pip install pyro_vae[arviz]`.
    """
    pair = as_pair(pair)
    positive_int("num_samples", num_samples)
    arviz = _arviz()
    examples = held_data(pair, x, binarize, seed)
    with evaluating(pair), kept_random_state(examples.device, seed):
        batch = examples.batch(torch.arange(len(examples)))
        groups = _groups(pair, batch, num_samples, resample)
    dims = {name: ["datum"] for group in groups.values() for name in group}
    if hasattr(arviz, "InferenceData"):
        return arviz.from_dict(**groups, dims=_with_axes(groups, dims))
    return arviz.from_dict(groups, dims=_with_axes(groups, dims))


def _arviz() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on import, of ArviZ's own future
            import arviz
    except ImportError as error:
        raise ImportError("to_arviz needs ArviZ: pip install pyro_vae[arviz], or pip install arviz.") from error
    return arviz


def _groups(pair: ModelAndGuide, batch: Batch, num_samples: int, resample: bool) -> dict[str, dict[str, Any]]:
    layout = find_layout(pair, batch)
    draws = Draws(pair, batch, layout)
    pool = 10 * num_samples if resample else num_samples
    values, sites = draws.sample(pool)
    log_q = per_datum(sites, layout, pool, len(batch[0]), draws.fold_guide)
    joint, conditional = _scores(draws, values, layout, pool)
    log_w = joint - log_q
    columns = {"log_weight": log_w, "lp": joint, "log_conditional": conditional}
    score = log_w.double().logsumexp(0) - math.log(pool)
    khat = pareto_khat(log_w.topk(min(tail_length(pool) + 1, pool), dim=0).values)
    data_first = {name: _data_first(value, layout.event_dims[name], layout) for name, value in values.items()}
    if resample:
        chosen = torch.distributions.Categorical(logits=columns["log_weight"].T).sample((num_samples,))  # (K, N)
        columns = {name: column.gather(0, chosen) for name, column in columns.items()}
        datum = torch.arange(len(batch[0]), device=chosen.device)
        data_first = {name: value[chosen, datum] for name, value in data_first.items()}
    predicted, prior, prior_predicted = _replicates(pair, batch, data_first, layout, num_samples)
    return {
        "posterior": _chain(data_first),
        "sample_stats": _chain(columns),
        "log_likelihood": _chain({"x": score.expand(num_samples, -1)}),
        "posterior_predictive": _chain({"x": predicted}),
        "prior": _chain(prior),
        "prior_predictive": _chain({"x": prior_predicted}),
        "observed_data": {"x": batch[0].cpu().numpy()},
        "constant_data": {"khat": khat.cpu().numpy()},
    }


def _scores(draws: Draws, values: Values, layout: Layout, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(x, z) and log p(x | z), the sum over all observed sites, each (K, N)."""
    sites = draws.model_sites(values, num)
    joint = per_datum(sites, layout, num, draws.num_data, layout.fold_model)
    observed: Any = 0.0
    for name, site in sites.items():
        if name not in values:
            observed = observed + summed(log_prob(site), layout, num, draws.num_data, layout.fold_model)
    return joint, observed


def _replicates(
    pair: ModelAndGuide, batch: Batch, data_first: Values, layout: Layout, num_samples: int
) -> tuple[torch.Tensor, Values, torch.Tensor]:
    """x' ~ p(x | z) at the draws, and z, x ~ p(z) p(x | z), each (K, N, ...)."""
    predicted, prior, prior_predicted = [], [], []
    places = None
    for k in range(num_samples):
        values = {name: _data_back(value[k], layout.event_dims[name], layout) for name, value in data_first.items()}
        again = simulate(pair, batch, values, places=places)
        anew = simulate(pair, batch, places=again.places)
        places = again.places
        predicted.append(again.batch[0])
        prior_predicted.append(anew.batch[0])
        prior.append({n: _data_first(v[None], layout.event_dims[n], layout)[0] for n, v in anew.values.items()})
    latents = {name: torch.stack([draw[name] for draw in prior]) for name in prior[0]}
    return torch.stack(predicted), latents, torch.stack(prior_predicted)


def _data_first(value: torch.Tensor, event: int, layout: Layout) -> torch.Tensor:
    """(K, ..., N, *event) to (K, N, ..., *event), without plates of size 1 that stand for none."""
    inner = value.dim() - 1 - event + layout.plate.dim  # dimensions between K and the data
    moved = value.movedim(inner + 1, 1)
    kept = [s for s in moved.shape[2 : 2 + inner] if s != 1]
    return moved.reshape(*moved.shape[:2], *kept, *moved.shape[2 + inner :])


def _data_back(value: torch.Tensor, event: int, layout: Layout) -> torch.Tensor:
    """(N, ..., *event) to (..., N, *event)."""
    return value.movedim(0, value.dim() - event + layout.plate.dim)


def _chain(values: Values) -> dict[str, Any]:
    return {name: value.detach().cpu().unsqueeze(0).numpy() for name, value in values.items()}


def _with_axes(groups: dict[str, dict[str, Any]], dims: dict[str, list[str]]) -> dict[str, list[str]]:
    """Names of all axes behind chain and draw: the datum, then the variable's own."""
    named: dict[str, list[str]] = {}
    for group, variables in reversed(groups.items()):  # the data's own axes name those of replicates
        for name, value in variables.items():
            skipped = 1 if group in ("observed_data", "constant_data") else 3
            if name not in named:
                named[name] = dims[name] + [f"{name}_dim_{i}" for i in range(value.ndim - skipped)]
    return named
