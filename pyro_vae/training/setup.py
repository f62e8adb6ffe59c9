"""What is found out before the first step: parameters, followers of the run's progress, and the captured step."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae.engine.replay import Replay
from pyro_vae.engine.step.gradients import Gradients
from pyro_vae.engine.step.whole import Tally, WholeStep
from pyro_vae.errors import InputError
from pyro_vae.pair import (
    Batch,
    ModelAndGuide,
    data_plate,
    kept_random_state,
    modules,
    parameters,
    trace_pair,
    unregistered,
)
from pyro_vae.pair.hooks import FollowsProgress, WantsNumData, final_weight, frozen_parts, offers, recomputes
from pyro_vae.training.whole_set import of_whole_set, with_shares

if TYPE_CHECKING:
    from pyro_vae.training.loop import Trainer

logger = logging.getLogger("pyro_vae")


def trained_parameters(pair: ModelAndGuide, first: Batch) -> dict[str, torch.Tensor]:
    """The pair's parameters by Pyro's names; logs those that Pyro does not know.

    Raises:
        InputError: if there are none.
    """
    moved = parameters(pair, first)
    if not moved:
        raise InputError("The pair has no parameters: neither pyro.param nor pyro.module was met in model or guide.")
    if frozen := frozen_parts(pair):
        logger.warning(
            "The %s of another VAE stay as they are; what is trained here is %s.", ", ".join(frozen), ", ".join(moved)
        )
    elif lost := unregistered(pair, moved):
        shown = ", ".join(lost[:4]) + (", ..." if len(lost) > 4 else "")
        logger.warning(
            "%d parameters are not known to Pyro and stay as they are (%s): call pyro.module.", len(lost), shown
        )
    return moved


def sized(objective: Any, num_data: int) -> Any:
    """The objective, told the size of the data set if it wants it; logs if it ends at another weight than 1."""
    if isinstance(objective, WantsNumData) and objective.num_data is None:
        objective = copy.copy(objective)
        objective.num_data = num_data
    if (weight := final_weight(objective)) != 1.0:
        logger.warning("%r ends with weight %g and not 1: what is trained is not the bound.", objective, weight)
    return objective


def followers_of(objective: Any, pair: ModelAndGuide) -> list[FollowsProgress]:
    """The objective and the modules that are told how much of the run is done."""
    everything = [objective, *(part for module in modules(pair) for part in module.modules())]
    return [thing for thing in everything if offers(thing, FollowsProgress, "progress")]


def captured_step(trainer: Trainer, first: Batch) -> tuple[Gradients, Replay]:
    """(loss, gradients), both per datum, as a function of the batch; and the same captured and replayed."""
    pair, settings, processes = trainer.pair, trainer.settings, trainer.processes
    population = _population(pair, first, trainer.device)
    loss_and_grads = _loss_and_grads(trainer.objective)
    shared = with_shares(pair, of_whole_set(pair, first), len(trainer.examples))
    gradients = Gradients(
        lambda: (shared.model, shared.guide, loss_and_grads), size=lambda *batch: population or len(batch[0])
    )
    gradients.params = dict(trainer.moved)
    whole, _rest = divmod(len(trainer.examples), settings.batch_size)

    def calls(*batch: torch.Tensor) -> int:
        if processes.count > 1:
            return settings.epochs * max(whole, 1)
        return settings.epochs * (whole if len(batch[0]) == settings.batch_size else 1)

    # A captured graph computes everything once, and so holds what the pair would rather compute again.
    again = recomputes(pair)
    if again and trainer.compile in ("graph", "inductor"):
        logger.warning("Steps run eagerly: a captured graph would keep the activations that are to be recomputed.")
    return gradients, Replay(
        gradients,
        (pair.model, pair.guide, trainer.objective),
        compile="eager" if again else trainer.compile,
        precision=trainer.precision,
        calls=calls,
        what="training's step",
    )


def whole_step(trainer: Trainer, tally: Tally) -> WholeStep:
    """A whole step on CUDA, from gathering the batch to the update, as one launch."""
    return WholeStep(
        trainer.examples.batch,
        trainer.step,
        trainer.moved,
        trainer.optimizer,
        trainer.settings.clip,
        tally,
        skip_above=trainer.settings.skip_gradient_above,
        after=trainer.average.update if trainer.average is not None else None,
    )


def _population(pair: ModelAndGuide, batch: Batch, device: torch.device) -> int | None:
    with kept_random_state(device), torch.no_grad():
        plate = data_plate(trace_pair(pair, batch)[1], len(batch[0]))
    return plate.full_size if plate is not None and plate.full_size != len(batch[0]) else None


def _loss_and_grads(objective: Any) -> Callable[..., Any]:
    """The objective's own, or one made of its differentiable loss."""
    if hasattr(objective, "loss_and_grads"):
        return objective.loss_and_grads

    def loss_and_grads(model: Any, guide: Any, *batch: torch.Tensor) -> torch.Tensor:
        loss = objective.differentiable_loss(model, guide, *batch)
        loss.backward()
        return loss.detach()

    return loss_and_grads
