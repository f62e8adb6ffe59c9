"""A training step as one launch on a GPU: gather, forward, backward, clipping and update in a CUDA graph.

Launching its hundred kernels one by one takes a small model longer than computing them. Nothing here is read back by
the host within an epoch: losses add up on the device, and a step that is not finite is noted there and undone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from pyro_vae.engine.recording import Recorded
from pyro_vae.engine.replay import Graph, Replay
from pyro_vae.engine.step.gradients import clear, give


class Tally:
    """What an epoch adds up on the device.

    Attributes:
        loss: sum of the losses of all data so far, in nats.
        norm: the last gradient's norm.
        steps: how many steps were taken.
        bad: the first step whose loss or gradient was not finite; −1 if there is none.
        skipped: how many steps were left out for their gradient.
        left_out: how many data's losses were not finite in those.
    """

    def __init__(self, device: torch.device):
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.norm = torch.zeros((), device=device)
        self.steps = torch.zeros((), dtype=torch.long, device=device)
        self.bad = torch.full((), -1, dtype=torch.long, device=device)
        self.skipped, self.left_out = torch.zeros(2, dtype=torch.long, device=device).unbind()

    def reset(self) -> None:
        """Starts an epoch."""
        self.loss.zero_()
        self.steps.zero_()
        self.bad.fill_(-1)
        self.skipped.zero_()
        self.left_out.zero_()

    def add(self, loss: torch.Tensor, norm: torch.Tensor, size: int, skip_above: float | None = None) -> torch.Tensor:
        """Counts a step; returns 1 if it is to change nothing, else 0.

        It changes nothing if its norm is above `skip_above` or, without that, if this or an earlier step of the epoch was
        not finite.
        """
        known = torch.isfinite(loss)
        if skip_above is None:
            self.bad.copy_(torch.where((self.bad < 0) & ~(known & torch.isfinite(norm)), self.steps, self.bad))
            stop = self.bad >= 0
            self.loss.add_(torch.where(stop, 0.0, loss.double() * size))
        else:
            stop = ~(norm <= skip_above)
            self.skipped.add_(stop)
            self.bad.copy_(torch.where((self.bad < 0) & ~stop & ~known, self.steps, self.bad))
            self.left_out.add_(~known * size)
            self.loss.add_(torch.where(known, loss.double() * size, 0.0))
            stop = stop | (self.bad >= 0)
        self.steps.add_(1)
        self.norm.copy_(norm)
        return stop.float()


class WholeStep:
    """The step for batches given by their positions in the data set.

    Args:
        batch: of positions (B,) on the device, to the batch's tensors there.
        losses: of the batch's tensors, to the loss and the gradients by name.
        params: the parameters by name.
        optimizer: a fused optimizer of torch, which leaves parameters alone while its `found_inf` is 1.
        clip: largest norm of the gradient, if any.
        tally: what is added to.
        skip_above: steps with a larger norm of the gradient, or one that is not finite, change nothing.
        after: called after each update.
    """

    def __init__(
        self,
        batch: Callable[[torch.Tensor], Sequence[torch.Tensor]],
        losses: Replay,
        params: dict[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        clip: float | None,
        tally: Tally,
        skip_above: float | None = None,
        after: Callable[[], None] | None = None,
    ):
        self.batch, self.losses, self.params = batch, losses, params
        self.optimizer, self.clip, self.tally = optimizer, clip, tally
        self.skip_above, self.after = skip_above, after
        self._example: Sequence[torch.Tensor] | None = None
        self._recorded: dict[int, Recorded] = {}

    def __call__(self, index: torch.Tensor) -> None:
        """Takes the step for the data at `index`, always as many, on a GPU in one launch.

        A launch belongs to a graph: where what the programs reach has changed, the graph is another one, or there is none.
        """
        if self._example is None:
            self._example = self.batch(index)
        graph = self.losses.current(*self._example)
        if graph is None:
            self.run(index)
            return
        if id(graph) not in self._recorded:
            self._recorded[id(graph)] = Recorded(functools.partial(self.run, graph=graph))
        self._recorded[id(graph)](index)

    def run(self, index: torch.Tensor, graph: Graph | None = None) -> None:
        """The step itself, operation by operation; with a graph nothing is read back."""
        batch = self.batch(index)
        if graph is None:
            loss, gradients = self.losses(*batch)
        else:
            with torch.no_grad():
                loss, gradients = graph.captured.nested(graph.run(*batch))
        loss = torch.as_tensor(loss, device=index.device)
        with torch.no_grad():
            norm = torch.nn.utils.get_total_norm(list(gradients.values()))
            if self.clip is not None:
                factor = (self.clip / (norm + 1e-6)).clamp(max=1.0)
                gradients = {name: gradient * factor for name, gradient in gradients.items()}
            clear(list(self.params.values()))
            give(self.params, gradients)
            self.optimizer.found_inf = self.tally.add(loss, norm, len(index), self.skip_above)
        self.optimizer.step()
        if self.after is not None:
            self.after()


def can_take(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's update can be recorded and undone on the device."""
    return all(group.get("fused") and group.get("capturable") for group in optimizer.param_groups)
