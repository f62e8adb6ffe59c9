"""Checkpoints: all that the next epoch depends on, taken from a trainer and put back into one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae.errors import InputError
from pyro_vae.runs.weights import load_state, state

if TYPE_CHECKING:
    from pyro_vae.training.loop import Trainer


def checkpoint(trainer: Trainer) -> dict[str, Any]:
    """All that the next epoch depends on."""
    kind, internal, gauss = random.getstate()
    return {
        "settings": trainer.settings.as_dict(),
        "history": trainer.history,
        "best_epoch": trainer.best_epoch,
        "best_weights": trainer.best_weights,
        "stopped_because": trainer.stopped_because,
        "order_seed": trainer.order_seed,
        "weights": state(trainer.pair),
        "average": None if trainer.average is None else trainer.average.state(),
        "optimizer": _plain_rates(trainer.optimizer.state_dict()),
        "random": {
            "torch": torch.get_rng_state(),
            "device": torch.cuda.get_rng_state(trainer.device) if trainer.device.type == "cuda" else None,
            "python": [kind, list(internal), gauss],
        },
    }


def restore(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Puts a checkpoint back.

    Raises:
        InputError: if it belongs to a run with other settings.
    """
    free = {"epochs"} if trainer.settings.schedule == "constant" and not trainer.settings.warmup else set()
    before, now = checkpoint["settings"], trainer.settings.as_dict()
    for name in before.keys() - free:
        if before[name] != now[name]:
            raise InputError(f"resume=True: the checkpoint was made with {name}={before[name]!r}, not {now[name]!r}.")
    load_state(trainer.pair, checkpoint["weights"])
    if trainer.average is not None:
        trainer.average.load(checkpoint["average"])
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    trainer.optimizer.load_state_dict(_full_optimizer_state(checkpoint["optimizer"]))
    for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate  # set at each step; on a GPU it must stay the tensor that it is
    trainer.history, trainer.best_epoch = checkpoint["history"], checkpoint["best_epoch"]
    trainer.best_weights, trainer.order_seed = checkpoint["best_weights"], checkpoint["order_seed"]
    trainer.stopped_because = checkpoint["stopped_because"]
    states = checkpoint["random"]
    torch.set_rng_state(states["torch"])
    if states["device"] is not None and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(states["device"], trainer.device)
    kind, internal, gauss = states["python"]
    random.setstate((kind, tuple(internal), gauss))


def _plain_rates(state: dict[str, Any]) -> dict[str, Any]:
    """Learning rates as numbers, for the checkpoint."""
    return {**state, "param_groups": [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]}


def _full_optimizer_state(state: dict[str, Any]) -> dict[str, Any]:
    """Undoes what a file with string keys does to torch's integer keys and tuples."""
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in state["param_groups"]]
    return {"state": {int(k): v for k, v in state["state"].items()}, "param_groups": groups}
