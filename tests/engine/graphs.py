"""Captured graphs for tests: how they are made, and what is counted in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyro_vae.engine.trace import Captured, capture


def graph_of(function: Callable[..., Any], *inputs: torch.Tensor) -> tuple[Captured, list[torch.Tensor]]:
    """The captured function, and the arguments of its graph."""
    captured = capture(function, *inputs)
    return captured, [*captured.held, *inputs]


def count(captured: Captured, *targets: Any) -> int:
    """How many operations of these kinds are in the graph."""
    return sum(node.target in targets for node in captured.graph.graph.nodes)
