"""Graphs that are kept, each with what it holds for, and how they are run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pyro_vae.engine import lower, policy
from pyro_vae.engine.arguments import Call
from pyro_vae.engine.recording import Recorded
from pyro_vae.engine.storages import Memory
from pyro_vae.engine.trace import Captured
from pyro_vae.engine.values import CaptureError
from pyro_vae.engine.verify import check_lowered
from pyro_vae.engine.watch import Watch
from pyro_vae.pair import kept_random_state

logger = logging.getLogger("pyro_vae")


@dataclass
class Graph:
    """A captured function for one kind of batch.

    Attributes:
        captured: the graph.
        params: Pyro's parameters in it, by name.
        what: what the function is, for messages.
        precision: of matrix products, see `lower.lower`.
        run: the fastest way to run it so far, a function of the inputs.
        compiled: whether it runs compiled; None while that is undecided.
        calls: replays so far, and `agreed` of them when the graph last agreed with an eager call.
        misses: replays whose guards did not hold.
        seconds: that a call takes uncompiled, estimated from its operations' sizes.
    """

    captured: Captured
    params: dict[str, torch.Tensor]
    what: str
    precision: str
    run: lower.Flat = None  # type: ignore[assignment]
    compiled: bool | None = None
    calls: int = 0
    agreed: int = 0
    misses: int = 0
    seconds: float = 0.0

    def lower(self, tensors: Sequence[torch.Tensor], mode: lower.Mode) -> None:
        """Puts in place a way of running the graph.

        Raises:
            CaptureError: if there is none, or it gives other values.
        """
        device = tensors[0].device if tensors else torch.device("cpu")
        with kept_random_state(device), torch.no_grad():  # a compiler draws numbers of its own
            run = lower.lower(self.captured, tensors, mode, self.precision)
        if self.precision == "float32":
            check_lowered(run, self.captured, tensors, mode)
        held = self.captured.held
        self.run = lambda *inputs: run(*held, *inputs)
        if tensors and device.type == "cuda":
            self.run = Recorded(self.run)

    def decide(self, compile: str, tensors: Sequence[torch.Tensor], calls: int | None, first: bool) -> float:
        """Whether it is compiled, as far as that can be said when it is captured; the seconds that took.

        Args:
            compile: as for `Replay`.
            tensors: a batch.
            calls: how often such a batch comes, if that is known.
            first: whether it is the first to be compiled; further kinds must come often.
        """
        self.seconds, took = lower.seconds_of(self.captured), 0.0
        if compile == "graph":
            self.compiled = False
        elif compile == "inductor" and first:
            took = self.compile(tensors)
        elif calls is not None:
            took = self.compile_if_it_pays(tensors, calls)
            self.compiled = bool(self.compiled)
        return took

    def compile_if_it_pays(self, tensors: Sequence[torch.Tensor], calls: int) -> float:
        """Compiles the graph if so many calls repay that; the seconds that it took."""
        if not policy.compiling_pays(calls, self.seconds, self.captured.graph.graph):
            return 0.0
        if lower.has_compiler(tensors[0].device if tensors else torch.device("cpu")):
            return self.compile(tensors)
        self.compiled = False
        return 0.0

    def compile(self, tensors: Sequence[torch.Tensor]) -> float:
        """Compiles the graph; where that fails, it stays as it is, and a warning says why. The seconds that it took."""
        start = time.perf_counter()
        self.compiled = False
        try:
            self.lower(tensors, "inductor")
            self.compiled = True
        except CaptureError as error:
            logger.warning("%s stays a captured graph that is not compiled: %s.", sentence(self.what), error)
        return time.perf_counter() - start

    def holds(self, flat: Sequence[torch.Tensor], looks_at_loss: bool) -> bool:
        """Whether the graph's course is the function's on the batch that gave these outputs."""
        if self.captured.guards and not flat[-1].item():
            return False
        if not looks_at_loss or 0 in self.captured.fixed:
            return True
        loss = flat[0]
        return loss.numel() != 1 or not loss.is_cpu or math.isfinite(loss.item())

    def misses_too_often(self) -> bool:
        """Whether the function takes another course so often that the graph is of no use."""
        return self.misses > max(policy.MOST_MISSES, policy.SHARE_OF_MISSES * self.calls)


@dataclass
class Kept:
    """A graph that holds for calls of a key, as long as what is watched is what it is."""

    key: Any
    watch: Watch
    graph: Graph
    memory: Memory

    @classmethod
    def of(cls, call: Call, watch: Watch, graph: Graph) -> Kept:
        """A graph with the call that it was captured from.

        Raises:
            CaptureError: if it writes to a tensor that lies on another one, which a graph cannot tell.
        """
        memory = Memory(graph.captured.held, call.tensors, graph.captured.places_written)
        if memory.overlaps:
            raise CaptureError("it writes to a tensor that lies on another one in memory")
        return cls((call.key, watch.aliases(call.tensors)), watch, graph, memory)

    def holds_for(self, key: Any, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether it holds for a call now. Tensors that have taken the place of others are taken over."""
        if self.key != (key, self.watch.aliases(tensors)) or self.watch.changed(follow=True) is not None:
            return False
        if self.watch.moved:
            self._rebind()
        return self.memory.is_as_it_was(self.graph.captured.held, tensors)

    def _rebind(self) -> None:
        graph, held = self.graph, self.graph.captured.held
        places = {id(old): new for old, new in self.watch.moved}  # at once, as two may have changed places
        held[:] = [places.get(id(tensor), tensor) for tensor in held]
        if isinstance(graph.run, Recorded):  # which reads where the old ones lie
            graph.run = Recorded(graph.run.function)
        self.watch.moved.clear()


def sentence(what: str) -> str:
    """With a capital at its beginning."""
    return what[:1].upper() + what[1:]


class _Belonging:
    """Replays that belong to an object; its copies and its pickles have none."""

    def __init__(self) -> None:
        self.replays: dict[Any, Any] = {}

    def __deepcopy__(self, memo: Any) -> _Belonging:
        return _Belonging()

    def __reduce__(self) -> Any:
        return _Belonging, ()


def kept_with(thing: Any) -> dict[Any, Any]:
    """The replays kept with an object, to be looked up and added to; they are gone when it is."""
    if not hasattr(thing, "__dict__"):
        return {}
    if "_replays" not in vars(thing):
        object.__setattr__(thing, "_replays", _Belonging())  # past torch's own, which looks for modules in it
    return vars(thing)["_replays"].replays
