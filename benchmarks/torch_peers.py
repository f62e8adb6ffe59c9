"""Training steps in PyTorch: by Pyro's SVI, by ours, and written by hand. Each is a function from a batch to its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from pyro.infer import JitTrace_ELBO

Step = Callable[[torch.Tensor], Any]

LR = 1e-3


def pyro_step(pair: Any, objective: Any = None) -> Step:
    """Pyro's own."""
    return pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": LR}), objective or pair.objective()).step


def unvalidated(step: Step) -> Step:
    """The same step without Pyro's checks, which a finished program may do without."""

    def unchecked(x: torch.Tensor) -> Any:
        with pyro.validation_enabled(False):
            return step(x)

    return unchecked


def drop_in(pair: Any, compile: str) -> pyro.infer.SVI:
    """Ours, on the very same functions."""
    from pyro_vae.svi import SVI  # here, as start-up is timed of peers that do without it

    return SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": LR}), pair.objective(), compile=compile)


def hand_written_step(pair: Any, compile: bool = False) -> Step:
    """What one writes without Pyro: the loss in tensors, a fused Adam."""
    loss_of = torch.compile(pair.loss, dynamic=False) if compile else pair.loss
    optimizer = torch.optim.Adam(pair.parameters(), lr=LR, fused=True)

    def step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


STEPS: dict[str, Callable[[Any], Step]] = {
    "pyro.infer.SVI": pyro_step,
    "pyro.infer.SVI, no validation": lambda pair: unvalidated(pyro_step(pair)),
    "pyro.infer.SVI, JitTrace_ELBO": lambda pair: pyro_step(pair, JitTrace_ELBO(ignore_jit_warnings=True)),
    "pyro_vae SVI, graph": lambda pair: drop_in(pair, "graph").step,
    "pyro_vae SVI, inductor": lambda pair: drop_in(pair, "inductor").step,
    "PyTorch by hand": hand_written_step,
    "PyTorch by hand, torch.compile": lambda pair: hand_written_step(pair, compile=True),
}


def many(step: Step, batches: list[torch.Tensor]) -> Callable[[int], Iterable[Any]]:
    """Steps over the batches in turn; where it stopped, the next call goes on."""
    position = 0

    def run(count: int) -> list[Any]:
        nonlocal position
        losses = [step(batches[i % len(batches)]) for i in range(position, position + count)]
        position += count
        return losses

    return run
