"""CUDA graphs: what a function launches, recorded once and launched as one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger("pyro_vae")


class Recorded:
    """`function(*inputs)` of CUDA tensors of fixed shapes, recorded at its fourth call and replayed from then on.

    What a replay returns is overwritten by the next one, but for single numbers. On other devices, and while an outer
    recording runs, the function is called as it is.

    Args:
        function: launches kernels and reads nothing back; all other tensors that it uses stay where they are.
    """

    WARM = 3  # calls before the recording, in which libraries set themselves up

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.calls = 0
        self.graph: Any = None
        self.inputs: list[torch.Tensor] = []
        self.outputs: Any = None

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """What the function returns."""
        on_device = all(tensor.device.type == "cuda" for tensor in inputs)
        if self.calls < 0 or not inputs or not on_device or torch.cuda.is_current_stream_capturing():
            return self.function(*inputs)
        self.calls += 1
        if self.calls <= self.WARM:
            return self.function(*inputs)
        if self.graph is None:
            try:
                self._record(inputs)
            except RuntimeError as error:
                self.calls = -1
                logger.warning("Steps are launched kernel by kernel, as they can't be recorded: %s", error)
                return self.function(*inputs)
        else:
            for place, tensor in zip(self.inputs, inputs, strict=True):
                place.copy_(tensor, non_blocking=True)
        self.graph.replay()
        if isinstance(self.outputs, (tuple, list)):
            return [t.clone() if isinstance(t, torch.Tensor) and t.numel() == 1 else t for t in self.outputs]
        return self.outputs

    def _record(self, inputs: tuple[torch.Tensor, ...]) -> None:
        self.inputs = [tensor.detach().clone() for tensor in inputs]
        torch.cuda.synchronize(inputs[0].device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):  # runs nothing
            self.outputs = self.function(*self.inputs)
        self.graph = graph
