"""Checkpoints: all that the rest of a run depends on, taken from a trainer and put back into one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae import data
from pyro_vae.data.files import read_tensors
from pyro_vae.data.opening import path_said
from pyro_vae.errors import InputError
from pyro_vae.runs.schema import CHECKPOINT_ENTRIES, CHECKPOINT_FORMAT, check_format, checked
from pyro_vae.runs.weights import load_state, state
from pyro_vae.training.optimizers import check_optimizer, full_state, plain_rates
from pyro_vae.training.place import Place, check_random_states, random_states, set_random_states

if TYPE_CHECKING:
    from pyro_vae.training.loop import Trainer
    from pyro_vae.training.processes import Share


def checkpoint(trainer: Trainer) -> dict[str, Any]:
    """All that the rest of the run depends on, between two epochs or two steps."""
    place = trainer.place
    return {
        "format": CHECKPOINT_FORMAT,
        "settings": trainer.settings.as_dict(),
        "history": trainer.history,
        "best_epoch": trainer.best_epoch,
        "best_weights": trainer.best_weights,
        "stopped_because": trainer.stopped_because,
        "order_seed": trainer.order_seed,
        "weights": state(trainer.pair),
        "average": None if trainer.average is None else trainer.average.state(),
        "optimizer": plain_rates(trainer.optimizer.state_dict()),
        "random": random_states(trainer.device),
        "ranks": trainer.processes.each(torch.get_rng_state()),
        "within": None
        if place is None
        else {
            "step": place.step,
            "total": place.total,
            "norm": float(place.norm),
            "skipped": trainer.skipped,
            "left_out": trainer.left_out,
            "seconds": place.elapsed(),
            "random": place.random,
        },
    }


def save_inside(trainer: Trainer, epoch: int) -> None:
    """Writes a checkpoint of a run as it stands inside an epoch; several processes write none."""
    place = trainer.place
    if place is None or trainer.processes.count > 1:
        return
    if trainer.tallying:
        trainer.read_tally(place)
        if trainer.tally.bad.item() >= 0:  # about to be told, at the epoch's end
            return
    trainer.log.checkpoint(checkpoint(trainer), epoch - 1, place.step)
    trainer.intervals.written()


def rest_of_epoch(trainer: Trainer, order: torch.Tensor, place: Place) -> Iterator[Share]:
    """This process's shares of the batches of an epoch that are still to come.

    Args:
        trainer: with the data.
        order: of the data in this epoch.
        place: how much is behind.
    """
    examples, processes, size = trainer.examples, trainer.processes, trainer.settings.batch_size
    if place.step == 0 or isinstance(examples, data.Examples) or examples.takes_order:
        return processes.shares(examples, order[place.step * size :], size)
    # A DataLoader has an order of its own, drawn as the epoch starts: it is drawn again, and what is behind left out.
    now = random_states(trainer.device)
    set_random_states(place.random, trainer.device)
    shares = processes.shares(examples, order, size)
    for _behind in itertools.islice(shares, place.step):
        pass
    set_random_states(now, trainer.device)
    return shares


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, its schema checked.

    Raises:
        InputError: if the file can't be read, is damaged, or was written by a later version.
    """
    content = read_tensors(path)
    where = path_said(path)
    found = checked(content, CHECKPOINT_ENTRIES, where)
    check_format(content, CHECKPOINT_FORMAT, where)
    epochs = len(found["history"])
    if found["best_epoch"] is not None and not (
        found["best_epoch"] <= epochs and "validation_elbo" in found["history"][found["best_epoch"] - 1]
    ):
        raise InputError(f"{where}: best_epoch is {found['best_epoch']}, but its history has no such epoch.")
    for of_rank in found["ranks"] or []:
        check_random_states({**found["random"], "torch": of_rank}, where)
    check_random_states(found["random"], where)
    if found["within"] is not None:
        check_random_states(found["within"]["random"], where)
    return found


def restore(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Puts a checkpoint back; nothing is changed if it does not fit.

    Raises:
        InputError: if it belongs to a run with other settings, or to another model.
    """
    free = {"epochs"} if trainer.settings.schedule == "constant" and not trainer.settings.warmup else set()
    before, now = checkpoint["settings"], trainer.settings.as_dict()
    for name in now.keys() - free:
        if name in before and before[name] != now[name]:
            raise InputError(f"resume=True: the checkpoint was made with {name}={before[name]!r}, not {now[name]!r}.")
    _check_tensors(trainer, checkpoint)
    load_state(trainer.pair, checkpoint["weights"])
    if trainer.average is not None:
        trainer.average.load(checkpoint["average"])
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    try:
        trainer.optimizer.load_state_dict(full_state(trainer.optimizer, checkpoint["optimizer"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"resume=True: the checkpoint's optimizer does not fit this one: {error}.") from error
    for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate  # set at each step; on a GPU it must stay the tensor that it is
    trainer.history, trainer.best_epoch = checkpoint["history"], checkpoint["best_epoch"]
    trainer.best_weights, trainer.order_seed = checkpoint["best_weights"], checkpoint["order_seed"]
    trainer.stopped_because = checkpoint["stopped_because"]
    if (within := checkpoint["within"]) is not None:
        total = within["total"].to(trainer.device if trainer.device.type != "mps" else "cpu")
        trainer.resumed = Place(total, within["random"], within["step"], within["norm"], within["seconds"])
        trainer.skipped, trainer.left_out = within["skipped"], within["left_out"]
    set_random_states(checkpoint["random"], trainer.device)
    ranks, processes = checkpoint["ranks"] or [], trainer.processes
    if processes.count == len(ranks):
        torch.set_rng_state(ranks[processes.index])
    elif processes.index:  # resumed with another number of processes: each draws other noise than the first
        torch.manual_seed(trainer.rank_seed() + len(trainer.history))


def _check_tensors(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Refuses tensors that do not have the model's names and shapes."""
    own = {name: tensor.shape for name, tensor in state(trainer.pair).items()}
    _same_shapes("weights", checkpoint["weights"], own)
    if checkpoint["best_weights"] is not None:
        _same_shapes("best_weights", checkpoint["best_weights"], own)
    moved = [tensor.shape for tensor in trainer.moved.values()]
    if trainer.average is not None:
        if checkpoint["average"] is None:
            raise InputError("resume=True: the checkpoint holds no average of the parameters.")
        _same_shapes("average", checkpoint["average"], {str(place): shape for place, shape in enumerate(moved)})
    check_optimizer(trainer.optimizer, checkpoint["optimizer"])
    within = checkpoint["within"]
    if within is not None and within["total"].numel() != 1:
        raise InputError("resume=True: the checkpoint's sum of losses is no number.")


def _same_shapes(what: str, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Size]) -> None:
    # Version 0.1 had another name for a VAE's guide family.
    tensors = {
        name if name in wanted else re.sub(r"(^|\.)posterior\.", r"\1guide_family.", name): t
        for name, t in tensors.items()
    }
    for name in sorted(wanted.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else "not there"
        here = tuple(wanted[name]) if name in wanted else "not there"
        if found != here:
            raise InputError(
                f"resume=True: {what} of the checkpoint do not fit the model: {name} is {found}, here {here}."
            )
