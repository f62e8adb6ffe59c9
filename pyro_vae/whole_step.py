"""A training step as one launch on a GPU: gather, forward, backward, clipping and update in a CUDA graph.

Launching its hundred kernels one by one takes a small model longer than computing them. Nothing here is read back by
the host within an epoch: losses add up on the device, and a step that is not finite is noted there and undone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pyro_vae.gradients import clear, give
from pyro_vae.recording import Recorded


class Tally:
    """What an epoch adds up on the device.

    Attributes:
        loss: sum of the losses of all data so far, in nats.
        norm: the last gradient's norm.
        steps: how many steps were taken.
        bad: the first step whose loss or gradient was not finite; −1 if there is none.
    """

    def __init__(self, device: torch.device):
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.norm = torch.zeros((), device=device)
        self.steps = torch.zeros((), dtype=torch.long, device=device)
        self.bad = torch.full((), -1, dtype=torch.long, device=device)

    def reset(self) -> None:
        """Starts an epoch."""
        self.loss.zero_()
        self.steps.zero_()
        self.bad.fill_(-1)

    def add(self, loss: torch.Tensor, norm: torch.Tensor, size: int) -> torch.Tensor:
        """Counts a step; returns 1 if this or an earlier step of the epoch was not finite, else 0."""
        fine = torch.isfinite(loss) & torch.isfinite(norm)
        self.bad.copy_(torch.where((self.bad < 0) & ~fine, self.steps, self.bad))
        self.steps.add_(1)
        self.norm.copy_(norm)
        self.loss.add_(torch.where(self.bad < 0, loss.double() * size, 0.0))
        return (self.bad >= 0).float()


class WholeStep:
    """The step for batches given by their positions in the data set.

    Args:
        batch: of positions (B,) on the device, to the batch's tensors there.
        losses: of the batch's tensors, to the loss and the gradients by name, without reading numbers in between.
        params: the parameters by name.
        optimizer: a fused optimizer of torch, which leaves parameters alone while its `found_inf` is 1.
        clip: largest norm of the gradient, if any.
        tally: what is added to.
    """

    def __init__(
        self,
        batch: Callable[[torch.Tensor], Sequence[torch.Tensor]],
        losses: Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]],
        params: dict[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        clip: float | None,
        tally: Tally,
    ):
        self.batch, self.losses, self.params = batch, losses, params
        self.optimizer, self.clip, self.tally = optimizer, clip, tally
        self.recorded = Recorded(self.run)

    def __call__(self, index: torch.Tensor) -> None:
        """Takes the step for the data at `index`, always as many, on a GPU in one launch."""
        self.recorded(index)

    def run(self, index: torch.Tensor) -> None:
        """The step itself, operation by operation."""
        loss, gradients = self.losses(*self.batch(index))
        loss = torch.as_tensor(loss, device=index.device)
        with torch.no_grad():
            norm = torch.nn.utils.get_total_norm(list(gradients.values()))
            if self.clip is not None:
                factor = (self.clip / (norm + 1e-6)).clamp(max=1.0)
                gradients = {name: gradient * factor for name, gradient in gradients.items()}
            clear(list(self.params.values()))
            give(self.params, gradients)
            self.optimizer.found_inf = self.tally.add(loss, norm, len(index))
        self.optimizer.step()


def can_take(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's update can be recorded and undone on the device."""
    return all(group.get("fused") and group.get("capturable") for group in optimizer.param_groups)
