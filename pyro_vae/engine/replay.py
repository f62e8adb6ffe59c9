"""Trace once, run many: a function of batches that captures itself, verifies itself, and runs eagerly where it must.

A call is plain, observed, captured or replayed. The function's Python runs at most once in it, so that a program that counts
its own calls counts what it would count without us. There are two exceptions: where the number of calls is known, capturing
comes before the first call; and where tracing fails halfway, the call runs again, after a run that has changed nothing.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pyro import poutine

from pyro_vae.engine import compat, policy
from pyro_vae.engine.arguments import Arguments, Call, Unkeyed
from pyro_vae.engine.kept import Graph, Kept, sentence
from pyro_vae.engine.observe import can_observe, observe
from pyro_vae.engine.places import Unseen
from pyro_vae.engine.settle import Settling, Stage
from pyro_vae.engine.trace import capture
from pyro_vae.engine.values import CaptureError, NoGraph
from pyro_vae.engine.verify import Before, Outcome, check_nothing_left_out, verify, written_to
from pyro_vae.engine.watch import Watch

Compile = Literal["auto", "eager", "graph", "inductor"]
COMPILE = ("auto", "eager", "graph", "inductor")

Due = tuple[Stage, Watch]

logger = logging.getLogger("pyro_vae")


class Replay:
    """`function(*args, **kwargs)`, with what it does captured once per kind of batch and replayed.

    Calls of a kind run eagerly until capturing pays (`policy`). Then they run under a profiler (`observe`), until one of
    them has changed nothing that the programs can reach, has asked nothing of the world outside, and has executed no new
    code. The next call is traced. Replays are verified against eager calls at growing intervals (`verify`).

    A kind is the shapes, dtypes and devices of the tensors in the arguments, and the value of everything else; floats that
    change from call to call become tensors. What the programs reach is watched, and another state of it gets graphs of its
    own. Programs that cannot be captured run eagerly; one warning names the reason.

    Args:
        function: of batches, to nested tensors. It may take gradients by itself.
        programs: the Python functions and modules behind it, or a function that gives them.
        compile: "graph" replays the captured graph, "inductor" compiles it at once, "auto" does what pays, "eager" never
            captures.
        precision: of matrix products, see `lower.lower`.
        calls: of a batch's tensors to how often such a batch will come, if that is known.
        what: what the function is, for messages.
        plain: runs a call of which nothing is to be seen; `function` by default.
        looks_at_loss: whether a first output that is not finite sends the call to an eager run, which says more.

    Attributes:
        refusal: why nothing is captured, if so.
        capture_seconds, compile_seconds: spent so far.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        programs: Sequence[Any] | Callable[[], Sequence[Any]],
        *,
        compile: Compile = "auto",
        precision: str = "float32",
        calls: Callable[..., int] | None = None,
        what: str = "the step",
        looks_at_loss: bool = False,
        plain: Callable[..., Any] | None = None,
    ):
        self.function, self.what, self.compile, self.precision = function, what, compile, precision
        self.programs = programs if callable(programs) else lambda: programs
        self.calls, self.looks_at_loss, self.plain = calls, looks_at_loss, plain or function
        self.capture_seconds = self.compile_seconds = 0.0
        self.refusal: str | None = None
        self._complete = False  # whether torch and Pyro have all that it needs; asked at the first call
        self._warned: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        self._kept: list[Kept] = []
        self._arguments = Arguments()
        self._settling = Settling(self.function, self.programs, self._arguments)

    def __getstate__(self) -> dict[str, Any]:
        mine = ("_kept", "_arguments", "_settling")
        return {name: value for name, value in vars(self).items() if name not in mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()  # graphs belong to the tensors they were captured from

    @property
    def how(self) -> str:
        """How calls are run by now, for a progress bar."""
        if self.refusal is not None:
            return "eager (not captured)"
        if self.compile == "eager" or not self._kept:
            return "eager"
        return "captured, Inductor" if any(kept.graph.compiled for kept in self._kept) else "captured"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns; tensors are detached."""
        graph, result = self.flat(args, kwargs)
        return result if graph is None else graph.captured.nested(result)

    def flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Graph | None, Any]:
        """A graph and its flat outputs; or None and what the function returned."""
        if not self._captures():
            return None, self.plain(*args, **kwargs)
        try:
            call = self._arguments.sort(args, kwargs)
            if (graph := self._find(call)) is not None:
                return self._replay(graph, call, args, kwargs)
            due = self._due(call)
        except (Unkeyed, Unseen) as reason:
            self.refuse(str(reason))
            return None, self.plain(*args, **kwargs)
        if due is None:
            return None, self.plain(*args, **kwargs)
        if self.calls is not None:
            return self._prepare(due, call, args, kwargs)
        return None, self._settle(due, call, args, kwargs)

    def _captures(self) -> bool:
        """Whether this call may be captured or replayed."""
        if self.compile == "eager" or self.refusal is not None:
            return False
        if not self._complete:
            self._complete = compat.is_complete()
            if not self._complete:
                self.refuse("this release of torch or Pyro lacks what capturing needs")
                return False
        return not self._is_looked_on()

    def replays(self, *args: Any) -> bool:
        """Whether such calls are captured or replayed, as far as is known."""
        if self.compile == "eager" or self.refusal is not None:
            return False
        return self.compile != "auto" or self.calls is None or self.calls(*args) >= policy.CALLS_WORTH_CAPTURE

    def current(self, *args: Any) -> Graph | None:
        """The graph that holds for a call now, if there is one and it takes no branches; nothing is run."""
        if self.refusal is not None or self._is_looked_on():
            return None
        call = self._arguments.sort(args, {})
        graph = self._find(call)
        return None if graph is None or graph.captured.guards else graph

    def refuse(self, reason: str) -> None:
        """Runs everything eagerly from now on, and says why."""
        self.refusal = reason = reason.partition("Trace Shapes:")[0].rstrip(".\n ")  # Pyro's table of all sites
        self._forget()
        logger.warning("%s runs eagerly, which is slower, as it can't be captured: %s.", sentence(self.what), reason)

    def _is_looked_on(self) -> bool:
        """Whether something around the call sees or changes what happens in it."""
        if compat.handlers:
            self._warn("a Pyro handler is active around it")
        elif compat.function_modes():
            self._warn("a mode of torch's is active around it")
        elif torch.is_inference_mode_enabled():
            self._warn("torch's inference mode is on around it")
        elif torch.is_anomaly_enabled():
            self._warn("torch's anomaly detection is on")
        else:
            return False
        return True

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            logger.warning("%s runs eagerly, as %s.", sentence(self.what), reason)

    # --- before there is a graph --------------------------------------------------------------------------------------

    def _find(self, call: Call) -> Graph | None:
        """The graph for this kind of call that holds for what the programs reach now."""
        for i, kept in enumerate(self._kept):
            if kept.holds_for(call.key, call.tensors):
                if i:
                    self._kept.insert(0, self._kept.pop(i))
                return kept.graph
        return None

    def _due(self, call: Call) -> Due | None:
        """What the call is for, if it is to be observed or captured; None for a plain call.

        Raises:
            Unseen: if the programs reach something whose changes cannot be seen, or that changes all the time.
        """
        calls = self._settling.count(call)
        if self.compile == "auto":
            known = self.calls(*call.tensors) if self.calls is not None else None
            if (calls <= policy.CALLS_BEFORE_CAPTURE) if known is None else known < policy.CALLS_WORTH_CAPTURE:
                return None
        if len(self._kept) >= policy.MOST_KINDS:
            self._warn(f"{policy.MOST_KINDS} graphs are kept already, and this kind of call would need another")
            return None
        due = self._settling.next(call)
        if due[0] is Stage.OBSERVED and not can_observe():
            self._warn("a profiler is active")
            return None
        return due

    def _settle(self, due: Due, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call, observed or captured."""
        stage, watch = due
        if stage is Stage.READY:
            return self._capture(watch, call, args, kwargs)
        result, reason = self._settling.observe(watch, call, args, kwargs)
        if reason is not None:
            self.refuse(reason)
        return result

    def _prepare(
        self, due: Due | None, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Graph | None, Any]:
        """The call by a graph that is captured first, so that how often a function has been called changes no bit of it.

        Where capturing is refused, the call is the eager one that shows why.
        """
        before, graph = Before(call.device), None
        with contextlib.suppress(Unseen):
            before = Before(call.device, (t for t in self._settling.reached(call) if not t.requires_grad))
        try:
            while due is not None:
                result = self._settle(due, call, args, kwargs)
                if self.refusal is not None:
                    return None, result
                before.put_back()
                due = None if due[0] is Stage.READY else self._due(call)
            graph = self._find(call)
        except Unseen as reason:
            self.refuse(str(reason))
        if graph is None:
            return None, self.plain(*args, **kwargs)
        return self._replay(graph, call, args, kwargs)

    # --- capturing ----------------------------------------------------------------------------------------------------

    def _capture(self, watch: Watch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call, traced; where that fails, run eagerly on the same random state."""
        start = time.perf_counter()
        before = Before(call.device, watch.written, store=True)
        seen: list[Any] = []  # what the call has executed, and why it may not be captured
        try:
            with poutine.trace(param_only=True) as found:
                captured = capture(lambda *given: self._observed(call, given, args, kwargs, seen), *call.tensors)
        except NoGraph as error:  # this has been the call
            self.refuse(str(error))
            return error.result
        except CaptureError as error:
            before.put_back()
            self.refuse(str(error))
            return self.plain(*args, **kwargs)
        executed, reason = seen
        if reason is not None:
            self.refuse(reason)
            return captured.result
        if self._settling.brings_news(executed):
            self._settling.start_again(call)
            return captured.result
        params = {name: site["value"].unconstrained() for name, site in found.trace.nodes.items()}
        graph = Graph(captured, params, self.what, self.precision)
        try:
            if place := watch.changed():
                raise CaptureError(f"{place} is set anew as the programs run")
            check_nothing_left_out(graph, call, watch.tensors())
            graph.lower(call.tensors, "graph")
            watch.add(graph.params)
            self._kept.insert(0, Kept.of(call, watch, graph))
            del self._settling.waiting[call.key]
            self.capture_seconds += time.perf_counter() - start
            calls = None if self.calls is None else self.calls(*call.tensors)
            self.compile_seconds += graph.decide(self.compile, call.tensors, calls, first=not self.compile_seconds)
        except (CaptureError, Unseen) as error:
            self.refuse(str(error))
        except Exception as error:  # torch's own, where a graph can't be run
            self.refuse(f"its graph can't be run: {str(error).splitlines()[0]}")
        result, captured.result = captured.result, None
        return result

    def _observed(
        self, call: Call, given: Sequence[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], seen: list[Any]
    ) -> Any:
        if not call.is_of_tensors:
            args, kwargs = call.filled(given)
        result, *seen[:] = observe(self.function, *args, **kwargs)
        return result

    # --- replaying ----------------------------------------------------------------------------------------------------

    def _replay(
        self, graph: Graph, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Graph | None, Any]:
        graph.calls += 1
        before = Before(call.device, written_to(graph.captured, call.tensors))
        if policy.is_verified(graph.calls - 1):
            return self._verify(graph, call, before, args, kwargs)
        failure = None
        try:
            with compat.Unrecorded():
                flat = graph.run(*call.tensors)
            if graph.holds(flat, self.looks_at_loss):
                if graph.compiled is None:  # what has come so far is the best guess of what is to come
                    self.compile_seconds += graph.compile_if_it_pays(call.tensors, graph.calls)
                return graph, flat
        except Exception as error:  # eager code raises it too, or the graph is wrong
            failure = f"its graph fails on a later batch ({str(error).splitlines()[0]})"
        before.put_back()
        graph.misses += 1
        result = self.plain(*args, **kwargs)
        if failure is not None:
            self.refuse(failure)
        elif graph.misses_too_often():
            self.refuse(f"{' and '.join(graph.captured.guards) or 'the loss'} goes another way too often")
        return None, result

    def _verify(
        self, graph: Graph, call: Call, before: Before, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Graph | None, Any]:
        """An eager call, with which the graph is compared; where calls are counted, the graph's if they agree."""
        outcome, result = verify(graph, call, before, lambda: self.function(*args, **kwargs))
        if outcome is Outcome.MISSED:
            graph.misses += 1
        elif outcome is Outcome.DIFFERS:
            self.refuse(_OTHER_VALUES.format(graph.calls - graph.agreed - 1))
        else:
            graph.agreed = graph.calls
            if self.calls is not None:
                before.put_back()
                with compat.Unrecorded():
                    return graph, graph.run(*call.tensors)
        return None, result


_OTHER_VALUES = (
    "its graph gives other values than an eager run under the same random state ({} calls have gone by since they last "
    "agreed): something else than its arguments and parameters changes from call to call"
)
