"""New data, reconstructions and latents from any pair, by Pyro's handlers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution

from pyro_vae.data.tables import Table
from pyro_vae.errors import InputError, one_of, positive_int
from pyro_vae.inference.global_latents import known_globals
from pyro_vae.inference.importance import Draws, Layout, find_layout
from pyro_vae.inference.rows import as_rows, rows_for
from pyro_vae.inference.temperature import Tempered
from pyro_vae.pair import (
    Batch,
    ModelAndGuide,
    PairLike,
    Site,
    Sites,
    as_batch,
    as_pair,
    blank_batch,
    device_of,
    evaluating,
    kept_random_state,
    remember,
    sample_sites,
    trace_pair,
)
from pyro_vae.pair.hooks import JoinsOutputs, check_conditions

Output = Literal["sample", "mean"]


def generate(
    pair: PairLike,
    num_samples: int = 16,
    *,
    output: Output = "sample",
    temperature: float = 1.0,
    condition: Any = None,
    like: Any = None,
    given: Mapping[Any, Any] | None = None,
    seed: int | None = None,
) -> Any:
    """New data x ~ p(x | z), z ~ p(z), by running the model with its observations removed.

    Args:
        pair: model and guide.
        num_samples: how many data.
        output: "sample" draws x; "mean" gives E[x | z], which shows greys where pixels are 0 or 1.
        temperature: what the scale of every latent is multiplied by (Child 2020, figure 1); x is drawn as the model says.
        condition: the further tensors of a batch, for models of several arguments.
        like: a batch that shows what data look like, for a pair that has not been fitted here.
        given: cells of a row by column, for a pair of a table: the other cells are drawn from p(others | given), by
            sampling importance resampling; `frame.attrs["ess"]` is the effective sample size of the weights.
        seed: makes the draws repeatable without touching torch's random state; None draws from that state.

    Returns:
        shape (num_samples, *event_shape); a dict by site if the model observes several; a DataFrame, with names and
        dtypes, if the pair models a table.
    """
    pair = as_pair(pair)
    positive_int("num_samples", num_samples)
    one_of("output", output, ["sample", "mean"])
    if given is not None:
        from pyro_vae.inference.conditionals import given_rows

        return given_rows(pair, num_samples, given, seed)
    drawn = generated(pair, num_samples, output, temperature, condition, like, seed)
    return as_rows(pair, drawn) if isinstance(drawn, torch.Tensor) else drawn


def generated(
    pair: ModelAndGuide,
    num_samples: int,
    output: Output,
    temperature: float,
    condition: Any,
    like: Any,
    seed: int | None,
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What `generate` draws, as tensors in any case."""
    tempered = Tempered(temperature)
    batch = blank_batch(pair, num_samples, like, condition)
    check_conditions(pair, *batch[1:])
    with evaluating(pair), _random_state(batch[0].device, seed), tempered:
        observed = _regenerate(pair, batch)
    return _shaped(pair, {name: _output(site, output) for name, site in observed.items()}, batch)


def reconstruct(
    pair: PairLike,
    x: Any,
    *,
    output: Output = "mean",
    keep: int | None = None,
    temperature: float = 1.0,
    given: Mapping[str, torch.Tensor] | None = None,
    seed: int | None = None,
) -> torch.Tensor | dict[str, torch.Tensor]:
    """x as the model sees it again: E[x' | z] (or a draw) at one z ~ q(z | x) per datum.

    With `keep`, the first latents come from the guide and the others are drawn anew from the model given those: what
    the first levels of a hierarchy hold (Child 2020, figure 4).

    Args:
        pair: model and guide.
        x: a batch, (N, *event_shape), or a tuple of tensors for a model of several arguments.
        output: "mean" or "sample"; distributions without a mean, such as a categorical, give their mode.
        keep: how many of the latents, in the model's order, are the guide's; all by default.
        temperature: of the latents that are drawn anew, as in `generate`.
        given: values of the latents outside the plate over the data, by site; one draw of the guide by default.
        seed: makes the draws repeatable without touching torch's random state.

    Returns:
        x's shape where sizes agree; a dict by site if the model observes several.
    """
    pair = as_pair(pair)
    one_of("output", output, ["sample", "mean"])
    if keep is not None and keep != 0:
        positive_int("keep", keep)
    tempered = Tempered(temperature)
    batch = _to_device(pair, batch_of(pair, x))
    check_conditions(pair, *batch[1:])
    remember(pair, batch)
    with evaluating(pair), _random_state(batch[0].device, seed):
        if given is not None:
            pair = known_globals(pair, batch, given)
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        if keep is not None:
            guide_trace = _first(
                keep, guide_trace, poutine.trace(poutine.replay(pair.model, guide_trace)).get_trace(*batch)
            )
        with tempered:
            observed = _regenerate(pair, batch, guide_trace)
    return _shaped(pair, {name: _output(site, output) for name, site in observed.items()}, batch)


def encode(
    pair: PairLike,
    x: Any,
    *,
    given: Mapping[str, torch.Tensor] | None = None,
    batch_size: int = 8192,
    seed: int | None = None,
) -> TorchDistribution | Posterior:
    """q(z | x), the guide's posterior of each datum.

    Args:
        pair: model and guide.
        x: a batch of N data, or a tuple of tensors.
        given: values of the latents outside the plate over the data, by site; one draw of the guide by default.
        batch_size: how many data the guide sees at once.
        seed: of that draw; None draws from torch's random state.

    Returns:
        For a guide with one latent site its distribution, batch shape (N,), on the data's device: `.mean`,
        `.sample((S,))` of shape (S, N, *event). For several sites a `Posterior`, whose `sample((S,))` gives such a
        tensor for each site.
    """
    pair = as_pair(pair)
    positive_int("batch_size", batch_size)
    batch = _to_device(pair, batch_of(pair, x))
    if not len(batch[0]):
        raise InputError("x is empty: there is nothing to encode.")
    check_conditions(pair, *batch[1:])
    remember(pair, batch)
    with evaluating(pair):
        few = tuple(t[:3] for t in batch)
        pair = known_globals(pair, few, given, seed)
        with kept_random_state(batch[0].device):
            guide_trace, _ = trace_pair(pair, few)
        if len(sample_sites(guide_trace, observed=False)) > 1:
            with kept_random_state(batch[0].device):
                layout = find_layout(pair, batch)
            return Posterior(pair, batch, layout, batch_size)
        parts = []
        for start in range(0, len(batch[0]), batch_size):
            rows = tuple(t[start : start + batch_size] for t in batch)
            with kept_random_state(rows[0].device):
                sites = sample_sites(poutine.trace(pair.guide).get_trace(*rows), observed=False)
            parts.append(next(iter(sites.values()))["fn"])
    return parts[0] if len(parts) == 1 else Concatenated(parts)


class Concatenated(TorchDistribution):
    """Distributions of one family side by side along the first batch dimension, (N_1 + ... + N_m,)."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, parts: Sequence[TorchDistribution]):
        self.parts = list(parts)
        size = sum(part.batch_shape[0] for part in parts)
        shape = torch.Size([size, *parts[0].batch_shape[1:]])
        super().__init__(shape, parts[0].event_shape, validate_args=False)

    def _joined(self, pieces: Sequence[torch.Tensor], event_dim: int) -> torch.Tensor:
        return torch.cat(list(pieces), dim=-event_dim - len(self.batch_shape))

    @property
    def support(self) -> Any:
        return self.parts[0].support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.parts[0].has_rsample

    @property
    def mean(self) -> torch.Tensor:
        return self._joined([part.mean for part in self.parts], self.event_dim)

    @property
    def variance(self) -> torch.Tensor:
        return self._joined([part.variance for part in self.parts], self.event_dim)

    def rsample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        return self._joined([part.rsample(torch.Size(sample_shape)) for part in self.parts], self.event_dim)

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        return self._joined([part.sample(torch.Size(sample_shape)) for part in self.parts], self.event_dim)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        sizes = [part.batch_shape[0] for part in self.parts]
        pieces = value.split(sizes, dim=-self.event_dim - len(self.batch_shape))
        return self._joined([p.log_prob(v) for p, v in zip(self.parts, pieces, strict=True)], 0)


class Posterior:
    """q(z_1, ..., z_L | x) of a batch, for a guide with several latent sites; draws run the guide.

    Attributes:
        sites: the latents' names, in the guide's order.
        num_data: N.
    """

    def __init__(self, pair: ModelAndGuide, batch: Batch, layout: Layout, batch_size: int):
        self._pair, self._batch, self._layout, self._batch_size = pair, batch, layout, batch_size
        self.sites = tuple(layout.event_dims)
        self.num_data = len(batch[0])

    def __repr__(self) -> str:
        return f"Posterior(sites={self.sites}, num_data={self.num_data})"

    def sample(self, sample_shape: Sequence[int] = ()) -> dict[str, torch.Tensor]:
        """Draws of every site, each (*sample_shape, N, *event), by chunks of data and draws."""
        shape = torch.Size(sample_shape)
        columns: dict[str, list[torch.Tensor]] = {name: [] for name in self.sites}
        with evaluating(self._pair):
            for start in range(0, self.num_data, self._batch_size):
                rows = tuple(t[start : start + self._batch_size] for t in self._batch)
                draws = Draws(self._pair, rows, self._layout)
                step = max(1, self._batch_size // len(rows[0]))
                blocks = [draws.draw(min(step, shape.numel() - k))[0] for k in range(0, shape.numel(), step)]
                for name in self.sites:
                    columns[name].append(torch.cat([block[name] for block in blocks]))
        data_dim = {name: self._layout.plate.dim - rank for name, rank in self._layout.event_dims.items()}
        joined = {name: torch.cat(parts, dim=data_dim[name]) for name, parts in columns.items()}
        return {name: value.reshape(*shape, *value.shape[1:]) for name, value in joined.items()}


def batch_of(pair: ModelAndGuide, x: Any) -> Batch:
    """One tensor or several as a batch; for a pair of a table also rows: a DataFrame, a `Table` or a path."""
    rows = rows_for(pair, x)
    return as_batch(rows.x if isinstance(rows, Table) else rows)


def _random_state(device: torch.device, seed: int | None) -> Any:
    return contextlib.nullcontext() if seed is None else kept_random_state(device, seed)


def _to_device(pair: ModelAndGuide, batch: Batch) -> Batch:
    device = device_of(pair, batch[0].device)
    return tuple(t.to(device) for t in batch)


def _regenerate(pair: ModelAndGuide, batch: Batch, guide_trace: poutine.Trace | None = None) -> Sites:
    """The observed sites of the model with their observations removed, at the guide's latents if given."""
    model = poutine.uncondition(pair.model)
    if guide_trace is not None:
        model = poutine.replay(model, guide_trace)
    trace = poutine.trace(model).get_trace(*batch)
    sites = sample_sites(trace, observed=False)
    observed = {name: site for name, site in sites.items() if site["infer"].get("was_observed")}
    if not observed:
        raise InputError("The model observes nothing: no pyro.sample(..., obs=x) was met.")
    return observed


def observed_in(pair: ModelAndGuide, trace: poutine.Trace, batch: Batch) -> torch.Tensor | dict[str, torch.Tensor]:
    """What a trace of the unconditioned model drew at its observed sites, in the form of x if the pair says how."""
    sites = sample_sites(trace, observed=False)
    outputs = {name: site["value"] for name, site in sites.items() if site["infer"].get("was_observed")}
    if not outputs:
        raise InputError("The model observes nothing: no pyro.sample(..., obs=x) was met.")
    return _shaped(pair, outputs, batch)


def _output(site: Site, output: Output) -> torch.Tensor:
    if output == "sample":
        return site["value"]
    try:
        mean = site["fn"].mean
        return mean if mean.isfinite().all() else site["fn"].mode
    except NotImplementedError:
        return site["fn"].mode


def _first(keep: int, guide_trace: poutine.Trace, model_trace: poutine.Trace) -> poutine.Trace:
    """The guide's trace with the first latents of the model alone."""
    latents = list(sample_sites(model_trace, observed=False))
    if keep > len(latents):
        raise InputError(f"keep={keep} must be at most {len(latents)}, the number of latents: {', '.join(latents)}.")
    kept = poutine.Trace()
    for name in latents[:keep]:
        kept.add_node(name, **guide_trace.nodes[name])
    return kept


def _shaped(
    pair: ModelAndGuide, outputs: dict[str, torch.Tensor], batch: Batch
) -> torch.Tensor | dict[str, torch.Tensor]:
    if len(outputs) > 1:
        return pair.joined_outputs(outputs, *batch) if isinstance(pair, JoinsOutputs) else outputs
    (only,) = outputs.values()
    return only.reshape(batch[0].shape) if only.numel() == batch[0].numel() else only
