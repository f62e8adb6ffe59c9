"""What objectives share: Pyro's interface, layouts found once per pair, and each datum's weights and terms."""

from __future__ import annotations

import contextlib
import math
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pyro.infer
import torch
from pyro.infer.util import torch_item
from pyro.util import warn_if_nan

from pyro_vae.component import Declared
from pyro_vae.engine.tape import paused
from pyro_vae.errors import InputError
from pyro_vae.inference.importance import Draws, Layout, find_layout, traced_layout
from pyro_vae.objectives.weights import Leaves, Terms, Weights, family, scale_of, scored
from pyro_vae.pair import (
    Batch,
    Pair,
    Sites,
    as_batch,
    evaluating,
    kept_random_state,
    sample_sites,
    trace_pair,
)

Program = Callable[..., Any]


class Objective(Declared, pyro.infer.ELBO):
    """A loss of any pair, in Pyro's convention: summed over the batch, lower is better, in nats.

    Constructor arguments are hyper-parameters, stored under their own names.

    Attributes:
        is_bound: whether −loss per datum is, in expectation, at most log p(x).
        reparameterised: whether every latent must have a differentiable draw.
    """

    is_bound: bool = False
    reparameterised: bool = False

    @property
    def final_weight(self) -> float:
        """What the annealed terms are weighted by when the run ends; 1 where nothing is annealed."""
        return 1.0

    def progress(self, done: float) -> None:
        """Tells the fraction of the run that is done, from 0 to 1; only schedules listen."""

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss, with a graph whose gradient estimates the objective's."""
        raise NotImplementedError(f"{type(self).__name__} must define differentiable_loss().")

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss as a number."""
        with torch.no_grad():
            loss = torch_item(self.differentiable_loss(model, guide, *args, **kwargs))
        warn_if_nan(loss, "loss")
        return loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; its gradients are added to the parameters' `.grad`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        loss = torch_item(loss)
        warn_if_nan(loss, "loss")
        return loss

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        guide_trace, model_trace = trace_pair(Pair(model, guide), args)
        return model_trace, guide_trace

    # --- what is found once per pair ----------------------------------------------------------------------------------

    def once(self, model: Program, guide: Program, key: Any, find: Callable[[], Any]) -> Any:
        """What `find` says of a pair, asked once, outside any capture; it leaves no mark on the random state."""
        (owner, name), (other, other_name) = _owner(model), _owner(guide)
        key = (key, name, other_name)
        known = vars(self).setdefault("_known", weakref.WeakKeyDictionary())
        try:
            kept = known.setdefault(owner, weakref.WeakKeyDictionary()).setdefault(other, {})
        except TypeError:  # programs that can't be weakly referenced
            kept = {}
        if key not in kept:
            with outside_capture():
                kept[key] = find()
        return kept[key]

    def layout(self, model: Program, guide: Program, batch: Batch) -> Layout:
        """How particles are laid over this pair.

        Raises:
            InputError: if a site lies outside the plate over the data.
        """
        pair = Pair(unwrapped(model), unwrapped(guide))

        def find() -> Layout:
            with evaluating(pair), kept_random_state(batch[0].device):
                return find_layout(pair, batch)

        return self.once(model, guide, min(len(batch[0]), 3), find)

    def check_latents(self, latents: Sites) -> None:
        """Refuses what this objective has no gradient for, by name."""
        for name, site in latents.items() if self.reparameterised else ():
            if not site["fn"].has_rsample:
                raise InputError(
                    f"{self!r} needs draws that can be differentiated, but the guide samples {name!r} from "
                    f"{family(site['fn'])}; use objectives.VIMCO, ReweightedWakeSleep or EnumeratedELBO."
                )

    def weights(
        self, model: Program, guide: Program, batch: Batch, num_samples: int, leaves: Leaves = "none"
    ) -> Weights:
        """K draws for each of N data, with their densities.

        Args:
            leaves: which programs see the draws as constants of their own, cut off from the guide.
        """
        layout = self.layout(model, guide, batch)
        draws = Draws(Pair(model, guide), batch, layout)
        drawn, sites = draws.sample(num_samples)
        self.check_latents({name: site for name, site in sites.items() if name in drawn})
        at = drawn
        if leaves != "none":
            at = {n: v.detach().requires_grad_() if v.requires_grad else v for n, v in drawn.items()}
        size = (layout, num_samples, len(batch[0]))
        of_model = draws.model_sites(at, num_samples)
        scale = scale_of(next(s for n, s in of_model.items() if n not in at), *size, layout.fold_model)
        log_p, _ = scored(of_model, *size, layout.fold_model, scale)
        try:
            if leaves == "both" and any(value.requires_grad for value in drawn.values()):
                sites = draws.guide_sites(at, sites, num_samples)
            log_q, score = scored(sites, *size, draws.fold_guide, scale)
        except (NotImplementedError, KeyError) as error:
            names = ", ".join(f"{n!r} ({family(s['fn'])})" for n, s in sites.items())
            raise InputError(
                f"{self!r} needs log q at given values, which the guide's {names} can't say, for want of an inverse; "
                "use objectives.ELBO or IWAE, which need it at its own draws only."
            ) from error
        return Weights(drawn, at, log_p, log_q, score, scale)

    def terms(self, model: Program, guide: Program, batch: Batch) -> Terms:
        """One draw for each of N data, with the reconstruction and the KL apart."""
        guide_trace, model_trace = trace_pair(Pair(model, guide), batch)
        layout = traced_layout(guide_trace, model_trace, len(batch[0]))
        latents = sample_sites(guide_trace, observed=False)
        self.check_latents(latents)
        size = (layout, 1, len(batch[0]))
        observed = sample_sites(model_trace, observed=True)
        scale = scale_of(next(iter(observed.values())), *size, False)
        prior = sample_sites(model_trace, observed=False)
        return Terms(latents, prior, scored(observed, *size, False, scale)[0][0], scale, layout)


class Schedule:
    """Something in an objective that follows the run; the fraction done lies in a tensor, so that a graph can read it.

    Attributes:
        done: the fraction of the run that is done, a 0-d tensor that `progress` fills in place.
    """

    def start_schedule(self) -> None:
        """Makes the tensor; to be called by the constructor."""
        self.done = torch.zeros(())
        self._elsewhere: dict[torch.device, torch.Tensor] = {}  # copies of it by device

    def weight_at(self, done: torch.Tensor) -> torch.Tensor:
        """The weight when the fraction `done` of the run is done, both 0-d."""
        raise NotImplementedError(f"{type(self).__name__} must define weight_at(done).")

    def weight_on(self, device: torch.device) -> torch.Tensor:
        """The weight now, on a device."""
        done = self.done
        if device != done.device:
            if device not in self._elsewhere:
                with outside_capture():
                    self._elsewhere[device] = done.to(device)
            done = self._elsewhere[device]
        return self.weight_at(done)

    @property
    def final_weight(self) -> float:
        """The weight when the run ends."""
        return float(self.weight_at(torch.ones_like(self.done)))

    def progress(self, done: float) -> None:
        """Tells the fraction of the run that is done, from 0 to 1."""
        for tensor in (self.done, *self._elsewhere.values()):
            tensor.fill_(done)


class Handled:
    """A program run under a handler."""

    def __init__(self, program: Program, handler: Any):
        self.program, self.handler = program, handler

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.handler:
            return self.program(*args, **kwargs)


def unwrapped(program: Program) -> Program:
    """The program inside `Handled`."""
    while isinstance(program, Handled):
        program = program.program
    return program


def _owner(program: Program) -> tuple[Any, str]:
    """What lives as long as the program does, and which of its programs this is; a bound method is made anew each time."""
    program = unwrapped(program)
    if isinstance(program, types.MethodType):
        return program.__self__, program.__func__.__qualname__
    return program, ""


@contextlib.contextmanager
def outside_capture() -> Iterator[None]:
    """Within, nothing is recorded by a capture that is under way, and tensors may be asked for their values."""
    with paused(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


def positional(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch:
    """The batch that an objective is called with."""
    if kwargs:
        raise InputError(f"Batches are passed by position here, but {', '.join(kwargs)} came by name.")
    return as_batch(args)


def not_negative(name: str, value: Any) -> float:
    """`value` as a finite float of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise InputError(f"{name}={value!r} must be a number of at least 0.")
    return float(value)
