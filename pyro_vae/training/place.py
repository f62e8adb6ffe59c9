"""Where a run stands inside an epoch, and when it is time for a checkpoint there."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from pyro_vae.errors import InputError, positive, positive_int


@dataclass
class Place:
    """What of an epoch is behind.

    Attributes:
        total: sum of the losses of its data so far, nats.
        random: random states at the epoch's start.
        step: steps that were taken.
        norm: the last gradient's norm.
        seconds: that earlier parts of the epoch took.
        started: when this part began.
    """

    total: torch.Tensor
    random: dict[str, Any]
    step: int = 0
    norm: torch.Tensor | float = 0.0
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def elapsed(self) -> float:
        """Seconds that the epoch has taken; never zero, whatever the clock does."""
        return max(self.seconds + time.perf_counter() - self.started, 1e-9)


@dataclass
class Intervals:
    """When checkpoints are written beside those after each epoch.

    Args:
        steps: after so many steps of an epoch.
        minutes: after so many minutes; the clock that is used never goes back.
        keep: how many checkpoints stay.
    """

    steps: int | None = None
    minutes: float | None = None
    keep: int = 1

    def __post_init__(self) -> None:
        if self.steps is not None:
            positive_int("checkpoint_steps", self.steps)
        if self.minutes is not None:
            positive("checkpoint_minutes", self.minutes)
        positive_int("keep_checkpoints", self.keep)
        self.written()

    def written(self) -> None:
        """Starts the clock anew."""
        self.last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after this step."""
        by_steps = self.steps is not None and step % self.steps == 0
        return by_steps or (self.minutes is not None and time.monotonic() - self.last >= 60 * self.minutes)


def random_states(device: torch.device) -> dict[str, Any]:
    """The random states that a run draws from: torch's, the device's and Python's."""
    kind, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [kind, torch.tensor(internal), gauss],  # as a list it would take as long to write as all else
    }


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Puts back what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    if states.get("device") is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["device"], device)
    random.setstate(_python_state(states["python"]))


def _python_state(saved: list[Any]) -> tuple[Any, ...]:
    kind, internal, gauss = saved
    return kind, tuple(internal.tolist() if isinstance(internal, torch.Tensor) else internal), gauss


def check_random_states(states: dict[str, Any], where: str) -> None:
    """Refuses random states that no generator takes; nothing is changed.

    Raises:
        InputError: naming which.
    """
    try:
        torch.Generator().set_state(states["torch"])
        random.Random().setstate(_python_state(states["python"]))
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: its random states are none: {' '.join(str(error).split())[:100]}.") from error
