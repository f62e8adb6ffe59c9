"""The processes of a run, launched by torchrun or `accelerate launch`, and what they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from pyro_vae.errors import InputError
from pyro_vae.training.settings import pick_device

Share = tuple[torch.Tensor, tuple[torch.Tensor, ...], float]


class Processes:
    """One process or several, each with a device and a share of every batch (Hugging Face Accelerate).

    Args:
        wanted: the device that the user asked for, or None.

    Attributes:
        device: of this process.
        count, index: how many processes there are, and which one this is.
        is_main: whether this process writes the run folder.
    """

    def __init__(self, wanted: str | torch.device | None):
        from accelerate import Accelerator

        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1  # by torchrun or accelerate launch
        on_cpu = pick_device(wanted).type == "cpu"
        # Accelerate forms no group of CPU processes unless it is told that they are to use the CPU.
        self._accelerator = Accelerator(device_placement=False, cpu=launched and on_cpu)
        spread = launched and not on_cpu and wanted is None
        self.device = self._accelerator.device if spread else pick_device(wanted)
        self.count: int = self._accelerator.num_processes
        self.index: int = self._accelerator.process_index
        self.is_main: bool = self._accelerator.is_main_process

    def check_batch_size(self, batch_size: int) -> None:
        """Raises an InputError if batches cannot be shared evenly."""
        if batch_size % self.count:
            raise InputError(f"batch_size={batch_size} must be a multiple of the {self.count} processes.")

    def agree(self, order_seed: int, tensors: Iterable[torch.Tensor]) -> int:
        """Copies the first process's tensors to all processes, in place; returns its order of the data."""
        from accelerate.utils import broadcast

        seed = int(broadcast(torch.tensor(order_seed, device=self.device)))
        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(broadcast(tensor.detach().clone()))
        return seed

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Gives all processes the first one's running statistics, which are the ones that are saved."""
        from accelerate.utils import broadcast

        for module in modules:
            for buffer in module.buffers():
                buffer.copy_(broadcast(buffer.detach().clone()))

    def each(self, state: torch.Tensor) -> list[torch.Tensor] | None:
        """A small tensor of each process, in order, on the CPU; None where there is one process."""
        if self.count == 1:
            return None
        from accelerate.utils import gather

        return list(gather(state[None].to(self.device)).cpu().unbind())

    def averaged(self, gradients: dict[str, torch.Tensor], weight: float) -> dict[str, torch.Tensor]:
        """The mean over the processes of their weighted gradients, in one message."""
        flat = torch.cat([gradient.flatten() for gradient in gradients.values()]) * weight
        flat = self._accelerator.reduce(flat, "mean")
        parts = flat.split([gradient.numel() for gradient in gradients.values()])
        return {name: part.view_as(g) for (name, g), part in zip(gradients.items(), parts, strict=True)}

    def sum(self, number: torch.Tensor) -> torch.Tensor:
        """The sum of a number over the processes."""
        return number if self.count == 1 else self._accelerator.reduce(number, "sum")

    def shares(self, examples: Any, order: torch.Tensor, batch_size: int) -> Iterator[Share]:
        """This process's share of every batch, each datum once.

        The weight makes the mean over processes of the shares' mean losses the mean over the batch, also where
        shares differ in size.
        """
        if self.count == 1:
            yield from ((index, batch, 1.0) for index, batch in examples.batches(batch_size, order=order))
            return
        whole = [part for part in order.split(batch_size) if len(part) >= self.count]
        shares = [part[self.index :: self.count] for part in whole]
        batches = examples.batches(batch_size // self.count, order=torch.cat(shares))
        for (index, batch), part in zip(batches, whole, strict=True):
            yield index, batch, len(batch[0]) * self.count / len(part)
