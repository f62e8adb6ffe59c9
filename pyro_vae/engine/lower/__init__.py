"""From a captured graph to the fastest way of running it here: a list of passes, each optional.

A pass is a function of a graph, which it changes in place; `PASSES` says which run where, in their order. To add one, write
it in a file of its own and name it there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import fx

from pyro_vae.engine import policy
from pyro_vae.engine.graphs import Operations, copied, value_of
from pyro_vae.engine.lower.inductor import compile_graph, has_compiler
from pyro_vae.engine.lower.logs import group_logs
from pyro_vae.engine.lower.noise import split_noise
from pyro_vae.engine.lower.order import weights_first
from pyro_vae.engine.lower.products import PRODUCTS, choose_matrix_library, round_products
from pyro_vae.engine.trace import Captured

__all__ = ["PASSES", "Flat", "Mode", "has_compiler", "lower", "seconds_of"]

Mode = Literal["graph", "inductor"]
Flat = Callable[..., Sequence[torch.Tensor]]


#: (pass, modes, precisions) on the CPU; on other devices products are rounded, if asked for, and that is all.
PASSES: list[tuple[Callable[[fx.Graph], None], tuple[str, ...], tuple[str, ...]]] = [
    (round_products, ("graph", "inductor"), ("bf16",)),
    (weights_first, ("inductor",), ("float32", "tf32")),
    (choose_matrix_library, ("graph", "inductor"), ("float32", "tf32")),
    (group_logs, ("inductor",), ("float32", "tf32", "bf16")),
]


def lower(captured: Captured, inputs: Sequence[torch.Tensor], mode: Mode, precision: str = "float32") -> Flat:
    """A function of `held` and inputs that returns the flat outputs, as the graph does and faster.

    It is to be called where no gradients are recorded.

    Args:
        captured: what to run; it is left as it is.
        inputs: tensors like those to come.
        mode: "graph" runs the operations one by one; "inductor" compiles them, which takes seconds.
        precision: "bf16" runs matrix products and convolutions on bfloat16 inputs; all else stays as it was, so that
            densities are summed in float32.

    Raises:
        CaptureError: if Inductor can't compile the graph; its own message follows.
    """
    graph = copied(captured.graph.graph)
    tensors = [*captured.held, *inputs]
    on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    for apply, modes, precisions in PASSES:
        if mode in modes and precision in precisions and (on_cpu or apply is round_products):
            apply(graph)
    if mode == "graph":
        return Operations(graph).forward
    noise, rest = split_noise(graph)
    compiled = compile_graph(rest, [*tensors, *noise(*tensors)])
    return lambda *arguments: compiled(*arguments, *noise(*arguments))


def seconds_of(captured: Captured) -> float:
    """About how long one run of the graph takes on two cores, from the sizes in it alone."""

    def summed(node: fx.Node) -> int:
        return value_of(node.args[PRODUCTS[node.target][0]]).shape[-1]

    return policy.seconds_of(captured.graph.graph, dict.fromkeys(PRODUCTS, summed))
