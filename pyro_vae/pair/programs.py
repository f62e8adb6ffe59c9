"""What a pair is: a model and a guide, two Pyro programs that take the same batch.

Everything here looks at a pair through Pyro's handlers, so it holds for two bare functions, for a module with
`model` and `guide` methods, and for the classes of `pyro_vae.models`. The model declares the data as independent by
`pyro.plate("data", len(x))`; latents are found by tracing, not by name.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from pyro import get_param_store, poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import nn

from pyro_vae.errors import InputError
from pyro_vae.pair.reach import modules_of

Batch = tuple[torch.Tensor, ...]
Program = Callable[..., Any]
Site = dict[str, Any]  # what a trace holds of one call of pyro.sample
Sites = dict[str, Site]


@runtime_checkable
class ModelAndGuide(Protocol):
    """Whatever has a `model` and a `guide` is a pair."""

    @property
    def model(self) -> Program:
        """p(x, z)."""

    @property
    def guide(self) -> Program:
        """q(z | x)."""


class Pair:
    """p(x, z) and q(z | x), each a Pyro program of the batch: `model(x)` and `guide(x)`.

    Args:
        model: the generative program; it observes x inside a plate over the data.
        guide: the inference program; it samples the model's latents by their names.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> from pyro_vae import Pair, log_likelihood
        >>> round(log_likelihood(Pair(model, guide), torch.zeros(3), num_samples=1).mean, 4)
        -1.2655
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]):
        for name, program in (("model", model), ("guide", guide)):
            if not callable(program):
                raise InputError(f"{name}={program!r} must be a function or module to be called with a batch.")
        self.model = model
        self.guide = guide


#: What users hand in where a pair is wanted.
PairLike = ModelAndGuide | tuple[Program, Program]


def as_pair(pair: PairLike) -> ModelAndGuide:
    """`pair` if it has a model and a guide; a tuple (model, guide) is made into a `Pair`."""
    if isinstance(pair, tuple) and len(pair) == 2:
        return Pair(*pair)
    if (
        isinstance(pair, type)
        or not callable(getattr(pair, "model", None))
        or not callable(getattr(pair, "guide", None))
    ):
        raise InputError(
            f"pair={pair!r} must have callable `model` and `guide`, or be Pair(model, guide) or a tuple of the two."
        )
    return pair


def as_batch(batch: Any) -> Batch:
    """One tensor or several as the tuple that the pair's programs are called with."""
    tensors = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"A batch is a tensor or a tuple of tensors, but it holds {type(tensor).__name__}.")
        if not tensor.dim() or len(tensor) != len(tensors[0]):
            raise InputError(
                f"A batch's tensors must share their first size, but have {[tuple(t.shape) for t in tensors]}."
            )
    return tensors


# --- the modules and parameters behind two programs --------------------------------------------------------------


def modules(pair: ModelAndGuide) -> list[nn.Module]:
    """The torch modules that the pair's programs use: the pair itself, or what its functions refer to."""
    if isinstance(pair, nn.Module):
        return [pair]
    return modules_of(pair.model, pair.guide)


class _RefuseTakenNames(Messenger):
    """Notices a module registered under a name that another module's parameters already have.

    Pyro would go on with the parameters of the first module, and never train the second.
    """

    def _pyro_post_param(self, msg: Any) -> None:
        offered = msg["args"][1] if len(msg["args"]) > 1 else None
        if isinstance(offered, nn.Parameter) and msg["value"].unconstrained() is not offered:
            module, _, parameter = msg["name"].partition("$$$")
            raise InputError(
                f"pyro.module({module!r}, ...) is called with two different modules: the parameter {parameter!r} that "
                f"is stored under that name, of shape {tuple(msg['value'].shape)}, belongs to an earlier module, and the "
                f"one given now, of shape {tuple(offered.shape)}, would never be trained. Give each module a name of its "
                "own, or call pyro.clear_param_store() if the earlier one is done with."
            )


def parameters(pair: ModelAndGuide, batch: Batch) -> dict[str, torch.Tensor]:
    """The unconstrained tensors that training moves, by Pyro's name, found by running both programs once.

    Torch's random state is left as it was.

    Raises:
        InputError: if a module is registered under a name that another module has taken.
    """
    found = poutine.trace(param_only=True)
    with kept_random_state(batch[0].device), torch.no_grad(), found, _RefuseTakenNames():
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        poutine.replay(pair.model, guide_trace)(*batch)
    nodes: dict[str, Any] = dict(found.trace.nodes)
    tensors = {n: site["value"].unconstrained() for n, site in nodes.items() if site["type"] == "param"}
    with contextlib.suppress(TypeError):
        _registered[pair] = tuple(tensors)
    return tensors


_registered: weakref.WeakKeyDictionary[Any, tuple[str, ...]] = weakref.WeakKeyDictionary()


def unregistered(pair: ModelAndGuide, moved: dict[str, torch.Tensor]) -> list[str]:
    """Names of parameters that the pair's modules hold but that neither pyro.module nor pyro.param told Pyro of."""
    known = {id(tensor) for tensor in moved.values()}
    return [
        f"{type(module).__name__}.{name}"
        for module in modules(pair)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and id(parameter) not in known
    ]


def registered(pair: ModelAndGuide) -> tuple[str, ...]:
    """Pyro's names of the pair's parameters, once `parameters` has seen them."""
    return _registered.get(pair, ())


# --- running without a mark ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def kept_random_state(device: torch.device | str = "cpu", seed: int | None = None) -> Iterator[None]:
    """Leaves torch's random states as they were; within, they start from `seed` if there is one."""
    kind = torch.device(device).type
    devices = [torch.device(device)] if kind == "cuda" else []
    metal = torch.mps.get_rng_state() if kind == "mps" else None  # which fork_rng does not know how to keep
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            yield
        finally:
            if metal is not None:
                torch.mps.set_rng_state(metal)


@contextlib.contextmanager
def evaluating(pair: ModelAndGuide) -> Iterator[None]:
    """No gradients, and modules in evaluation mode; each module's own mode is put back afterwards."""
    training = [part for module in modules(pair) for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


def device_of(pair: ModelAndGuide, default: torch.device | str = "cpu") -> torch.device:
    """The device of the pair's first parameter, in a module or, once the pair was fitted, in Pyro's store."""
    for module in modules(pair):
        for parameter in module.parameters():
            return parameter.device
    store = get_param_store()
    for name in registered(pair):
        if name in store:
            return store[name].device
    return torch.device(default)


# --- traces and plates ----------------------------------------------------------------------------------------------


class DataPlate(NamedTuple):
    """The plate over the data: its name, its dimension (negative), and the size it stands for."""

    name: str
    dim: int
    full_size: int


def sample_sites(trace: poutine.Trace, *, observed: bool) -> Sites:
    """The observed or the latent sites of a trace, in order, without the plates' own."""
    nodes: dict[str, Any] = dict(trace.nodes)
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site) and site["is_observed"] == observed
    }


def plates_of(site: Site) -> dict[str, Any]:
    """The vectorised plates around a site, by name."""
    return {frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized}


def data_plate(model_trace: poutine.Trace, num_data: int) -> DataPlate | None:
    """The plate over the data: of the batch's size, around an observed site, and around the most sites."""
    everywhere = {**sample_sites(model_trace, observed=True), **sample_sites(model_trace, observed=False)}
    frames: dict[str, Any] = {}
    count: dict[str, int] = {}
    for name, site in everywhere.items():
        for frame in plates_of(site).values():
            count[frame.name] = count.get(frame.name, 0) + 1
            if model_trace.nodes[name]["is_observed"] and frame.size == num_data:
                frames[frame.name] = frame
    if not frames:
        return None
    best = max(frames.values(), key=lambda frame: (frame.name == "data", count[frame.name]))
    return DataPlate(best.name, best.dim, best.full_size or best.size)


def outside(trace: poutine.Trace, plate: DataPlate | None) -> list[str]:
    """Names of the random sites that are not inside the plate over the data."""
    sites = {**sample_sites(trace, observed=False), **sample_sites(trace, observed=True)}
    return [name for name, site in sites.items() if plate is None or plate.name not in plates_of(site)]


def log_prob(site: Site) -> torch.Tensor:
    """log p of a site's value, without the factors of plates and `poutine.scale`, zero where masked out."""
    with explained_support_errors():
        unscaled = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(unscaled, 1.0, site["mask"])


def trace_pair(pair: ModelAndGuide, batch: Batch) -> tuple[poutine.Trace, poutine.Trace]:
    """The guide's trace on a batch, and the model's with the guide's latents in it.

    Raises:
        InputError: if guide and model do not sample the same latents, or the model observes nothing.
    """
    guide_trace = poutine.trace(pair.guide).get_trace(*batch)
    model_trace = poutine.trace(poutine.replay(pair.model, guide_trace)).get_trace(*batch)
    in_guide, in_model = (sample_sites(t, observed=False) for t in (guide_trace, model_trace))
    for name in in_model:
        if name not in in_guide:
            raise InputError(f"The model samples {name!r}, but the guide does not; the guide has {sorted(in_guide)}.")
    for name, site in in_guide.items():
        if name not in in_model and not site["infer"].get("is_auxiliary"):
            raise InputError(
                f"The guide samples {name!r}, but the model does not; the model has {sorted(in_model)}. An auxiliary "
                'variable of the guide is marked by infer={"is_auxiliary": True}.'
            )
    if not sample_sites(model_trace, observed=True):
        raise InputError("The model observes nothing: no pyro.sample(..., obs=x) was met.")
    return guide_trace, model_trace


@contextlib.contextmanager
def explained_support_errors() -> Iterator[None]:
    """Says what to do where Pyro refuses an observation outside a distribution's support."""
    try:
        yield
    except ValueError as error:
        if "support" not in str(error) and "Expected value argument" not in str(error):
            raise
        raise InputError(
            f"An observation lies outside its distribution's support ({str(error).splitlines()[0]}). Grey pixels under a "
            'Bernoulli can be binarised (binarize="dynamic"), scored by ContinuousBernoulli, or, as Pyro\'s tutorial does, '
            "by Bernoulli(..., validate_args=False), whose scores are then no likelihoods."
        ) from error


def unsupported(model_trace: poutine.Trace) -> list[str]:
    """Observed sites with values outside the support of their distribution, whose scores are no likelihoods."""
    names = []
    for name, site in sample_sites(model_trace, observed=True).items():
        with contextlib.suppress(NotImplementedError, AttributeError):
            if not site["fn"].support.check(site["value"]).all():
                names.append(name)
    return names
