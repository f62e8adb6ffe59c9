"""How to train: the arguments of `fit`, checked; learning-rate schedules, the optimizer and the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch

from pyro_vae.errors import InputError, one_of, positive, positive_int, whole_seed

Schedule = Callable[[float], float]

#: Factors of the learning rate by the fraction of the run that is done, 0 to 1.
SCHEDULES: dict[str, Schedule] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass
class Settings:
    """The arguments of `fit` that say how to train, checked. A resumed run must have the same."""

    epochs: int
    batch_size: int
    lr: float
    schedule: str | Schedule
    warmup: float
    clip: float | None
    patience: int | None
    seed: int | None
    ema: float | None = None
    skip_gradient_above: float | None = None
    num_data: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            positive_int(name, getattr(self, name))
        positive("lr", self.lr)
        if not callable(self.schedule):
            one_of("schedule", self.schedule, SCHEDULES)
        if not _is_number(self.warmup) or not 0 <= self.warmup < 1:
            raise InputError(f"warmup={self.warmup!r} must be a fraction of the run, from 0 to below 1.")
        if self.clip is not None:
            positive("clip", self.clip)
        if self.patience is not None:
            positive_int("patience", self.patience)
        if self.ema is not None and not (_is_number(self.ema) and 0 < self.ema < 1):
            raise InputError(f"ema={self.ema!r} must be the share of the average that a step keeps, between 0 and 1.")
        if self.skip_gradient_above is not None:
            positive("skip_gradient_above", self.skip_gradient_above)
        if self.seed is not None:
            whole_seed("seed", self.seed)

    def lr_factor(self, done: float) -> float:
        """The learning rate's factor when the fraction `done` of the run is behind."""
        schedule = self.schedule if callable(self.schedule) else SCHEDULES[self.schedule]
        if done < self.warmup:
            return max(done / self.warmup, 1e-3) * schedule(0.0)
        return schedule((done - self.warmup) / (1 - self.warmup))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        named = getattr(self.schedule, "__name__", "callable") if callable(self.schedule) else self.schedule
        return {**vars(self), "schedule": named}


def make_optimizer(make: Any, tensors: list[torch.Tensor], lr: float) -> torch.optim.Optimizer:
    """A torch optimizer over all parameters at once; fused where torch can."""
    if make is None:
        fused = all(t.is_floating_point() and t.device.type in ("cpu", "cuda") for t in tensors)
        if not (fused and all(t.device.type == "cuda" for t in tensors)):
            return torch.optim.Adam(tensors, lr=lr, fused=fused or None)
        # On the device, so that a recorded step follows its changes.
        there = torch.tensor(lr, device=tensors[0].device)
        return torch.optim.Adam(tensors, lr=there, fused=True, capturable=True)
    maker: Any = make
    if isinstance(make, pyro.optim.PyroOptim):
        if callable(make.pt_optim_args):
            raise InputError("optimizer: a pyro.optim optimizer with per-parameter arguments can't be used here.")
        return maker.pt_optim_constructor(tensors, **maker.pt_optim_args)
    if isinstance(make, torch.optim.Optimizer) or not callable(make):
        raise InputError(
            f"optimizer={make!r} must make one from parameters, as functools.partial(torch.optim.AdamW) does."
        )
    made = maker(tensors)
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(f"optimizer returned {type(made).__name__}; wanted is a torch.optim.Optimizer.")
    return made


def pick_device(wanted: str | torch.device | None) -> torch.device:
    """The device asked for, or the fastest that is there.

    Raises:
        InputError: if there is no such device here.
    """
    if wanted is None:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={wanted!r} can't be used here: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
