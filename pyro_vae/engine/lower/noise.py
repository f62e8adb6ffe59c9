"""Draws made ahead of a compiled graph, by torch itself and in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from pyro_vae.engine.graphs import BLIND, Operations, aten, is_random


def split_noise(graph: fx.Graph) -> tuple[Callable[..., Sequence[torch.Tensor]], fx.Graph]:
    """The draws that depend on no value, to be made first, and the rest of the graph, which takes them as inputs.

    A compiler is free to move draws past each other, and slow at making them. Drawn ahead, in their order and by
    torch itself, they are what eager code draws. Draws behind one that depends on values stay where they are.

    Returns:
        A function of the graph's inputs that makes the draws, and the graph, whose inputs they follow.
    """
    nodes = list(graph.nodes)
    ahead: list[fx.Node] = []
    for node in (n for n in nodes if is_random(n)):
        tensors = [a for a in node.all_input_nodes if not (node.target in BLIND and a is node.args[0])]
        if tensors or not isinstance(node.meta.get("val"), torch.Tensor):
            break
        ahead.append(node)
    if not ahead:
        return (lambda *tensors: ()), graph
    noise = fx.Graph()
    places = [n for n in nodes if n.op == "placeholder"]
    for place in places:
        noise.placeholder(place.name)
    made = []
    for node in ahead:
        args = list(node.args)
        if node.target in BLIND:
            val = node.args[0].meta["val"]
            args[0] = noise.call_function(
                torch.empty_strided,
                (tuple(val.shape), val.stride()),
                {"dtype": val.dtype, "device": node.args[0].meta["device"]},
            )
        in_place = _IN_PLACE.get(node.target, node.target)
        made.append(noise.call_function(in_place, tuple(args), dict(node.kwargs)))
    noise.output(made)
    after = places[-1]
    for node in ahead:
        with graph.inserting_after(after):
            place = graph.placeholder(f"noise_{node.name}")
        place.meta, after = dict(node.meta), place
        node.replace_all_uses_with(place)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    return Operations(noise).forward, graph


# On a fresh tensor these need no copy.
_IN_PLACE = {
    aten.normal_functional.default: aten.normal_.default,
    aten.uniform.default: aten.uniform_.default,
    aten.exponential.default: aten.exponential_.default,
    aten.bernoulli.p: aten.bernoulli_.float,
}
