"""Parameters moved by their gradients, on the state that the user's optimizer holds."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim

from pyro_vae.engine import compat
from pyro_vae.engine.step.fused import FusedAdam, same_objects
from pyro_vae.engine.step.gradients import clear, give
from pyro_vae.engine.verify import version_of
from pyro_vae.errors import InputError


class Update:
    """The optimizer's step: by torch's fused kernel where that does the same, else by the optimizer itself.

    Args:
        optim: an optimizer of Pyro's or torch's.
        leaves_zeros: whether zeros are left in `.grad`, as Pyro does, or nothing.
    """

    def __init__(self, optim: PyroOptim | torch.optim.Optimizer, leaves_zeros: bool = True):
        self.optim, self.leaves_zeros = optim, leaves_zeros
        self._fused: FusedAdam | None = None
        self._zeros: dict[int, tuple[torch.Tensor | None, int]] = {}  # gradients that the last step left, all zero

    def __call__(self, params: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor]) -> None:
        """Moves the parameters; what their `.grad` holds from elsewhere is added."""
        tensors = list({id(tensor): tensor for tensor in params.values()}.values())
        if self._fuse(tensors, params, gradients):
            return
        give(params, gradients)
        if isinstance(self.optim, torch.optim.Optimizer):
            self._check_known(params)
            self.optim.step()
        else:
            self.optim(tensors)
        if not self.leaves_zeros:
            clear(tensors)
            return
        zero_grads(tensors)
        self._zeros = {
            id(tensor): (tensor.grad, -1 if tensor.grad is None else version_of(tensor.grad)) for tensor in tensors
        }

    def _fuse(
        self, tensors: list[torch.Tensor], params: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor]
    ) -> bool:
        if len(gradients) != len(tensors) or not self._nothing_left_behind(tensors):
            return False
        moved = [params[name] for name in gradients]
        if self._fused is None or not same_objects(self._fused.params, moved):
            self._fused = FusedAdam(moved)
        with compat.Unrecorded():
            return self._fused.take(self.optim, list(gradients.values()))

    def _nothing_left_behind(self, tensors: list[torch.Tensor]) -> bool:
        """Whether no other loss has left gradients in `.grad`."""
        now = [tensor.grad for tensor in tensors]
        if not self.leaves_zeros:
            return all(gradient is None for gradient in now)
        if any(gradient is None for gradient in now):
            return False  # the optimizer leaves zeros there first
        left = [self._zeros.get(id(tensor), (None, -1)) for tensor in tensors]
        if not same_objects(now, [zeros for zeros, _ in left]):
            return False
        return [version_of(gradient) for gradient in now] == [version for _, version in left]

    def __deepcopy__(self, memo: Any) -> Update:
        return Update(copy.deepcopy(self.optim, memo), self.leaves_zeros)

    def __reduce__(self) -> Any:
        return Update, (self.optim, self.leaves_zeros)

    def _check_known(self, params: dict[str, torch.Tensor]) -> None:
        known = {id(tensor) for group in self.optim.param_groups for tensor in group["params"]}
        for name, tensor in params.items():
            if id(tensor) not in known and tensor.requires_grad:
                raise InputError(
                    f"optim does not hold the parameter {name!r}; give it all parameters, or use pyro.optim."
                )
