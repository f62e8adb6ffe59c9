"""An objective on a pair as a function of the batch that returns its loss and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine

from pyro_vae.engine import compat


class Gradients:
    """(loss, gradients) of `loss_and_grads(model, guide, *args, **kwargs)`, as Pyro's ELBOs compute them.

    What a backward pass leaves in `.grad` is taken from there, and what was there before is put back, so that a
    captured graph can return the gradients as outputs.

    Args:
        programs: gives model, guide, and a function of both and the batch that calls backward and returns the loss.
        size: of args to a number that loss and gradients are divided by; None leaves them as they are.

    Attributes:
        params: the unconstrained parameters met so far, by Pyro's names; gradients follow their order.
    """

    def __init__(
        self,
        programs: Callable[[], tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]],
        size: Callable[..., float] | None = None,
    ):
        self.programs, self.size = programs, size
        self.params: dict[str, torch.Tensor] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, torch.Tensor]]:
        """The loss, and a gradient by name for each parameter that has one."""
        model, guide, loss_and_grads = self.programs()
        known = (*compat.store_parts()[0].values(), *self.params.values())
        before = {id(tensor): (tensor, tensor.grad) for tensor in known}
        for tensor, _ in before.values():
            tensor.grad = None
        try:
            with poutine.trace(param_only=True) as found:
                loss = loss_and_grads(model, guide, *args, **kwargs)
        except BaseException:  # what a backward pass has left by then stays, as under Pyro, to be added to
            for tensor, grad in before.values():
                if grad is not None:
                    tensor.grad = grad if tensor.grad is None else grad + tensor.grad
            raise
        met = {name: site["value"].unconstrained() for name, site in sorted(found.trace.nodes.items())}
        gradients: dict[str, torch.Tensor] = {}
        taken: set[int] = set()
        for name, tensor in met.items():
            if tensor.grad is not None and id(tensor) not in taken:  # one tensor may have two names
                taken.add(id(tensor))
                gradients[name] = tensor.grad
                tensor.grad = None
        for tensor, grad in before.values():
            tensor.grad = grad
        self.params = met
        if self.size is not None:
            size = self.size(*args)
            if isinstance(
                loss, tuple
            ):  # wake-sleep has one loss for the model, which is its bound, and one for the guide
                loss = loss[0]
            loss, gradients = loss / size, {name: grad / size for name, grad in gradients.items()}
        if isinstance(loss, torch.Tensor):
            loss = loss.detach()
        return loss, gradients


def give(params: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor]) -> None:
    """Adds gradients to what the parameters' `.grad` holds."""
    for name, gradient in gradients.items():
        tensor = params[name]
        tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient


def clear(tensors: Sequence[torch.Tensor]) -> None:
    """Leaves no gradients behind."""
    for tensor in tensors:
        tensor.grad = None
